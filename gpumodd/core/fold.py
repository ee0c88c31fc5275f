"""Folding observations into the state: what was seen, and what that says about a service's run.

Owns the reading of facts: a run began, a run ended (by a job, by itself), health turned.
It decides nothing; the engine plans on what stands here afterwards.
"""

from gpumodd.core import ops, releases, setbacks, story
from gpumodd.core.facts import Active, Answer, Ended, HostFact, ProbeFact, UnitFact
from gpumodd.core.phase import Health
from gpumodd.core.specs import Catalog
from gpumodd.core.state import State, Track

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
            track.fingerprint, track.address = "", None
        if not fact.gone:
            track.tell(fact.at, "found running" if state.observing else "started outside gpumodd")


def _run_ended(state: State, service: str, track: Track, fact: UnitFact | None) -> None:
    at = state.at
    survivor = track.quarantined
    if survivor:
        _released_from_quarantine(state, track)
    releases.mark_ended(state, service, at)
    if track.stop_asked_at is not None:
        state.measured(service, state.costs_of(service).stopped(at - track.stop_asked_at))
        story.ended(track, at)
    elif survivor:
        pass  # it was ending all along; who asked for that is forgotten
    elif fact is not None and fact.ended is Ended.JOB:
        if service in state.desired.services(state.catalog.services):
            track.stopped_outside = True
        track.tell(
            at, "stopped outside gpumodd", cause="a stop job that is not gpumodd's: systemctl, or another program"
        )
    elif not track.judged:
        setbacks.failed(state, service, setbacks.crash_reason(service, fact))


# -- definitions ----------------------------------------------------------------------------------------------


def catalog(state: State, new: Catalog) -> None:
    """Take over a configuration. What runs without our having started it runs what was in force until now."""
    for service, track in state.tracks.items():
        if not track.gone and not track.fingerprint and service in state.catalog.services:
            before = state.catalog.services[service]
            track.fingerprint = before.fingerprint
            track.address = (before.host, before.port) if before.port is not None else None
        was, now = state.catalog.services.get(service), new.services.get(service)
        if not track.gone and was is not None and (now is None or now.fingerprint != was.fingerprint):
            track.tell(state.at, "its definition changed" if now is not None else "its definition is gone")
        idle = track.gone and track.command is ops.Command.IDLE and not releases.releasing(state, service)
        if now is None and idle:  # nothing of it is left that anybody could mend
            setbacks.forgive(track)
            track.stopped_outside = False
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
            track.tell(state.at, f"{track.probe.bad} bad answers in a row, the last: {track.probe.told}")
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
