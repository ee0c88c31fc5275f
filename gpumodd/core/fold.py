"""Folding observations into the state: what was seen, and what that says about a service's run.

Owns the reading of facts: a run began, a run ended (by a job, by itself), health turned.
It decides nothing; the engine plans on what stands here afterwards.
"""

from gpumodd.core import ops, releases
from gpumodd.core.facts import Active, Answer, Ended, HostFact, ProbeFact, UnitFact
from gpumodd.core.phase import Health
from gpumodd.core.problems import Reason
from gpumodd.core.specs import Catalog
from gpumodd.core.state import State, Track

BACKOFF_BASE_S = 1.0
BACKOFF_CAP_S = 120.0
GIVE_UP_AFTER = 6  # failures in a row
LOOK_AGAIN_S = 10.0  # after a repair that something stood in the way of
STEADY_S = 60.0  # a run that was ready this long wipes the slate


# -- units ----------------------------------------------------------------------------------------------------


def units(state: State, facts: tuple[UnitFact, ...], *, complete: bool) -> None:
    """Take over unit states; a complete list also says which units do not exist, and that the manager is there."""
    if complete:
        state.units_lost = ""
    for fact in facts:
        _unit(state, fact)
    if complete:
        seen = {f.service for f in facts}
        for service, track in state.tracks.items():
            if service not in seen:
                if track.unit is not None and not track.unit.gone:
                    _run_ended(state, service, track, None)
                track.unit = track.unseen_since = None
                track.run_expected = track.command.coming


def _unit(state: State, fact: UnitFact) -> None:
    track = state.track(fact.service)
    if track.unit is not None and fact.at < track.unit.at:
        return  # an older read that arrived late
    before, track.unit = track.unit, fact
    if track.unseen_since is not None and fact.at >= track.unseen_since:
        track.unseen_since = None
    new_run = fact.invocation != track.invocation and bool(fact.invocation)
    if new_run:
        _run_began(state, track, fact)
    if fact.active is Active.ACTIVE and track.active_at is None:
        track.active_at = fact.since if state.observing and fact.since is not None else state.at
    if fact.gone or fact.active in (Active.ACTIVE, Active.ACTIVATING):
        track.deactivating_since = None
    elif fact.active is not Active.UNKNOWN and track.deactivating_since is None:
        track.deactivating_since = state.at
    was_alive = before is not None and not before.gone
    if fact.gone and (was_alive or (new_run and not state.observing)):
        _run_ended(state, fact.service, track, fact)
    elif not fact.gone and track.stopped_outside:
        track.stopped_outside = False  # somebody started it again
    if track.command is ops.Command.IDLE and track.unseen_since is None:  # this is what the last job has led to
        track.run_expected = False
        if fact.active is Active.ACTIVE:
            track.stop_asked_at = None  # the stop came to nothing


def _released_from_quarantine(state: State, track: Track) -> None:
    track.quarantined = False
    track.tell(state.at, "the last process that had survived is gone")
    if track.failure is not None and track.failure.code == "stop_failed":
        track.failure = track.failed_at = None


def _run_began(state: State, track: Track, fact: UnitFact) -> None:
    track.invocation = fact.invocation
    track.health = Health.LOADING
    track.probe = None
    track.ready_at = track.active_at = None
    expected, track.run_expected = track.run_expected, False
    if not expected:
        track.stop_asked_at, track.judged, track.loading_from = None, False, None
        track.started_at = state.at  # nobody has asked it before: it has its whole time from now, however long it runs
        if not state.observing:  # what the last daemon started it with is remembered, anybody else took what is there
            track.fingerprint = ""
        if not fact.gone:
            track.tell(fact.at, "found running" if state.observing else "started outside gpumodd")


def _run_ended(state: State, service: str, track: Track, fact: UnitFact | None) -> None:
    at = state.at
    if track.quarantined:
        _released_from_quarantine(state, track)
    releases.mark_ended(state, service, at)
    if track.stop_asked_at is not None:
        state.measured(service, state.costs_of(service).stopped(at - track.stop_asked_at))
        track.tell(at, "ended as asked")
    elif fact is not None and fact.ended is Ended.JOB:
        if service in state.desired.services(state.catalog.services):
            track.stopped_outside = True
        track.tell(at, "stopped outside gpumodd")
    elif not track.judged:
        failed(state, service, crash_reason(service, fact))


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
    track.tell(state.at, reason.message)
    if track.failures >= GIVE_UP_AFTER:
        track.gave_up = True
        track.backoff_until = None
        return
    delay = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** (track.failures - 1))
    track.backoff_until = state.at + delay * _jitter(service, track.failures)


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


# -- definitions ----------------------------------------------------------------------------------------------


def catalog(state: State, new: Catalog) -> None:
    """Take over a configuration. What runs without our having started it runs what was in force until now."""
    for service, track in state.tracks.items():
        if not track.gone and not track.fingerprint and service in state.catalog.services:
            track.fingerprint = state.catalog.services[service].fingerprint
    state.catalog, state.rejected = new, ()


# -- jobs -----------------------------------------------------------------------------------------------------


def job_ended(state: State, track: Track, asked: ops.Asked) -> None:
    """A start's or stop's job is over; until the unit has been seen since, its old state says nothing."""
    track.command = ops.step(track.command, asked)
    track.unseen_since = state.at


# -- probes ---------------------------------------------------------------------------------------------------


def probe(state: State, fact: ProbeFact) -> bool:
    """Fold one answer into the streaks, turn health when a streak is long enough, and say whether it turned."""
    track = state.tracks.get(fact.service)
    spec = state.catalog.services.get(fact.service)
    if track is None or spec is None or track.gone or fact.invocation != track.invocation:
        return False  # an answer from another run says nothing about this one
    if fact.at < state.resumed_at:
        return False  # nor does one from before the machine slept
    good = fact.answer is Answer.HEALTHY
    last = track.probe
    track.probe = ProbeFact(
        service=fact.service,
        answer=fact.answer,
        at=fact.at,
        invocation=fact.invocation,
        status=fact.status,
        detail=fact.detail,
        good=(last.good if last else 0) + 1 if good else 0,
        bad=0 if good else (last.bad if last else 0) + 1,
    )
    before = track.health
    match before:
        case Health.LOADING if good:
            track.health, track.judged = Health.READY, False
            became_ready(state, fact.service, track)
        case Health.READY if track.probe.bad >= spec.health.failures:
            track.health = Health.DEGRADED
        case Health.DEGRADED if track.probe.good >= spec.health.recoveries:
            track.health = Health.READY
    return track.health is not before


def became_ready(state: State, service: str, track: Track) -> None:
    """Its run serves for the first time."""
    track.ready_at = state.at
    if track.loading_from is not None:
        state.measured(service, state.costs_of(service).loaded(state.at - track.loading_from))
        track.loading_from = None


# -- the host -------------------------------------------------------------------------------------------------


def host(state: State, fact: HostFact | None) -> bool:
    """Take over what is known of the host's memory, and say whether a plan could come out differently: it changes all
    the time, so only who holds some of it counts, and everything while an operation waits for something."""
    if fact is None:
        return False
    before, state.host = state.host, fact
    waits = any(op.blocked_since is not None for op in state.active_operations())
    return waits or before is None or before.services.keys() != fact.services.keys()
