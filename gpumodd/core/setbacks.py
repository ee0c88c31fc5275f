"""Setbacks: a run or a start went wrong. How that is said, when it is tried again, and when no more.

Owns back-off and giving up. It decides nothing else: what is started again, and when, is planned like any start.
"""

from gpumodd.core.facts import UnitFact
from gpumodd.core.problems import Reason
from gpumodd.core.state import State, Track

BACKOFF_BASE_S = 1.0
BACKOFF_CAP_S = 120.0
GIVE_UP_AFTER = 6  # failures in a row
LOOK_AGAIN_S = 10.0  # after a repair that something stood in the way of
STEADY_S = 60.0  # a run that was ready this long wipes the slate


def crash_reason(service: str, fact: UnitFact | None) -> Reason:
    """In words and numbers, how a run ended by itself."""
    if fact is None:
        how = "its unit disappeared"
    elif fact.result == "signal":
        how = f"killed by signal {fact.exit_code}"
    elif fact.result in ("", "success"):
        how = "exited with status 0 although nobody asked it to"
    elif fact.exit_code is not None:
        how = f"{fact.result}, exit status {fact.exit_code}"
    else:
        how = fact.result
    return Reason(
        code="unit_failed",
        message=f"{service} ended by itself: {how}",
        hint=f"`gpumodctl service logs {service}` shows its last words",
        service=service,
        details={"result": fact.result if fact else "", "exit_code": fact.exit_code if fact else None},
    )


def failed(state: State, service: str, reason: Reason) -> None:
    """A run or a start went wrong: remember it and put off the next attempt, longer each time."""
    track = state.track(service)
    track.judged = True
    if track.ready_at is not None and state.at - track.ready_at >= STEADY_S:
        track.failures = 0
    track.failures += 1
    track.failure = reason
    track.failed_at = state.at
    track.ready_at = None
    if track.failures >= GIVE_UP_AFTER:
        track.gave_up = True
        track.backoff_until = None
        track.tell(state.at, reason.message, cause=f"failure {track.failures} in a row: it is left alone from now on")
        return
    delay = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** (track.failures - 1))
    track.backoff_until = state.at + delay * _jitter(service, track.failures)
    track.tell(state.at, reason.message, cause=f"failure {track.failures} in a row" if track.failures > 1 else "")


def _jitter(service: str, attempt: int) -> float:
    """Between 0.8 and 1.2, the same for the same service and attempt: replays must not differ."""
    seed = sum(ord(c) * (i + 7) for i, c in enumerate(service)) * 31 + attempt * 17
    return 0.8 + 0.4 * (seed % 101) / 100


def forgive(track: Track) -> None:
    """Somebody asks anew: earlier failures no longer hold it back."""
    track.failures = 0
    track.failure = None
    track.failed_at = None
    track.backoff_until = None
    track.gave_up = False


def put_off(state: State, track: Track, reason: Reason) -> None:
    """A repair has to wait for something else: say what for, and look again later. This is no failure of its own."""
    track.failure, track.failed_at = reason, state.at
    track.backoff_until = state.at + LOOK_AGAIN_S
    track.tell_once(state.at, f"not started again yet: {reason.message}")
