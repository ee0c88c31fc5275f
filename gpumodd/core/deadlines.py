"""Deadlines: every wait has an end. When they are due, and what becomes of those that have passed."""

from gpumodd.core import effects as fx
from gpumodd.core import outcomes, releases, setbacks, world
from gpumodd.core.outbox import Outbox
from gpumodd.core.phase import Phase
from gpumodd.core.problems import survivor
from gpumodd.core.state import State, Track

KILL_GRACE_S = 5.0  # past a unit's own stop timeout before the engine reaches for SIGKILL
UNSEEN_S = 5.0  # after a job's end without news of its unit the last state that was seen is believed again
SURVIVOR_S = 10.0  # a process that outlives SIGKILL this long is put into quarantine
AGAIN_S = 30.0  # between further kills of it, which also show whether it is still there
FOREIGN_STOP_S = 90.0  # systemd's default, for a unit that nothing configures any more


def startup_deadline(state: State, service: str, track: Track) -> float | None:
    """When a service that comes up has to be ready."""
    spec = state.catalog.services.get(service)
    if spec is None or track.started_at is None or track.failure is not None:
        return None
    waiting = world.phase_of(state, service) in (Phase.STARTING, Phase.LOADING)
    return track.started_at + spec.startup_timeout_s if waiting else None


def kill_deadline(state: State, service: str, track: Track) -> float | None:
    """When a service that was asked to end is to be killed: past its own timeout, which the backend keeps."""
    since = _ending_since(track)
    if since is None or state.units_lost:
        return None
    if track.killed_at is not None:
        return track.killed_at + AGAIN_S if track.quarantined else None
    spec = state.catalog.services.get(service)
    return since + (spec.stop_timeout_s if spec else FOREIGN_STOP_S) + KILL_GRACE_S


def survivor_deadline(track: Track) -> float | None:
    """When a service that was killed and is still there is put into quarantine."""
    if track.gone or _ending_since(track) is None or track.killed_at is None or track.quarantined:
        return None  # gone though its job is not over yet: it has not survived
    return track.killed_at + SURVIVOR_S


def unseen_deadline(state: State, track: Track) -> float | None:
    """When to stop waiting for news of a unit whose job is over; an absent manager tells when it is back."""
    return track.unseen_since + UNSEEN_S if track.unseen_since is not None and not state.units_lost else None


def _ending_since(track: Track) -> float | None:
    """Since when it is on its way down, at our word or somebody else's; None when it is not."""
    if track.stop_asked_at is not None and (track.command.leaving or not track.gone):
        return track.stop_asked_at
    return track.deactivating_since


def following(state: State) -> float | None:
    """The next moment at which time alone changes something."""
    times: list[float | None] = [state.retry_save_at]
    policy = state.catalog.policy
    for service, track in state.tracks.items():
        times += [track.backoff_until, world.settles_at(state, service), startup_deadline(state, service, track)]
        times += [kill_deadline(state, service, track), survivor_deadline(track), unseen_deadline(state, track)]
    for window in state.windows.values():
        for entry in window.leaving.values():
            if entry.ended_at is not None:
                late = entry.ended_at + policy.release_timeout_s
                times += [late, late + world.STALE_S]
    if world.quiesce_left(state) > 0:
        times.append(state.at + world.quiesce_left(state))
    for op in state.active_operations():
        times.append(op.last_step_at + world.SAMPLE_S)
        if op.blocked_since is not None:
            times.append(op.blocked_since + policy.release_timeout_s)
    return min((t for t in times if t is not None and t > state.at), default=None)


def expire(state: State, outbox: Outbox) -> None:
    """Turn the deadlines that have passed into facts and commands."""
    for service, track in sorted(state.tracks.items()):
        if track.backoff_until is not None and track.backoff_until <= state.at:
            track.backoff_until = None
        if _past(state, unseen_deadline(state, track)):
            track.unseen_since = None
        if _past(state, startup_deadline(state, service, track)):
            setbacks.failed(state, service, outcomes.not_ready(state, service, track))
        if _past(state, survivor_deadline(track)):
            track.quarantined = True
            track.failure = survivor(service)
            track.failed_at = state.at
            track.tell(state.at, "survives SIGKILL: left as it is until it is gone")
        if _past(state, kill_deadline(state, service, track)):
            track.killed_at = state.at
            track.kill_effect = outbox.number()
            if not track.quarantined:
                track.tell(state.at, "did not end in time: SIGKILL")
            outbox.emit(fx.KillUnit(id=track.kill_effect, service=service))
    timeout_s = state.catalog.policy.release_timeout_s
    for uuid, window in sorted(state.windows.items()):
        ends = [e.ended_at for e in window.leaving.values() if e.ended_at is not None]
        if any(end + timeout_s <= state.at for end in ends):
            outbox.emit(fx.SampleDevices())  # a fresh sample decides, whatever it shows …
        if any(end + timeout_s + world.STALE_S <= state.at for end in ends):
            releases.abandon_release(state, uuid)  # … and when none can be had, nobody waits for ever


def _past(state: State, deadline: float | None) -> bool:
    return deadline is not None and deadline <= state.at
