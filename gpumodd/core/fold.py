"""Folding observations into the state: what was seen, and what that says about a service's run.

Owns the reading of facts: a run began, a run ended (by a job, by itself), health turned, memory came back.
It decides nothing; the engine plans on what stands here afterwards.
"""

from gpumodd.core import ops
from gpumodd.core.costs import Costs
from gpumodd.core.facts import Active, Answer, DeviceFact, DevicesFact, Ended, HostFact, ProbeFact, UnitFact
from gpumodd.core.health import kinds
from gpumodd.core.ledger import Leaving, ReleaseWindow, attribute, share
from gpumodd.core.phase import Health
from gpumodd.core.problems import Reason
from gpumodd.core.specs import Catalog
from gpumodd.core.state import State, Track

BACKOFF_BASE_S = 1.0
BACKOFF_CAP_S = 120.0
GIVE_UP_AFTER = 6  # failures in a row
LOOK_AGAIN_S = 10.0  # after a repair that something stood in the way of
UNNAMED = ""  # whoever held memory that was on its way back when the last daemon ended
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
        track.started_at = fact.since if fact.since is not None else fact.at
        if not state.observing:  # what the last daemon started it with is remembered, anybody else took what is there
            track.fingerprint = ""
        if not fact.gone:
            track.tell(fact.at, "found running" if state.observing else "started outside gpumodd")


def _run_ended(state: State, service: str, track: Track, fact: UnitFact | None) -> None:
    at = state.at
    if track.quarantined:
        _released_from_quarantine(state, track)
    mark_ended(state, service, at)
    if track.stop_asked_at is not None:
        _measured(state, service, state.costs_of(service).stopped(at - track.stop_asked_at))
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
    state.catalog = new


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
        _measured(state, service, state.costs_of(service).loaded(state.at - track.loading_from))
        track.loading_from = None


def _measured(state: State, service: str, costs: Costs) -> None:
    if service in state.catalog.services:  # what nothing configures will not come again
        state.costs[service] = costs


# -- the host -------------------------------------------------------------------------------------------------


def host(state: State, fact: HostFact | None) -> bool:
    """Take over what is known of the host's memory, and say whether a plan could come out differently: it changes all
    the time, so only who holds some of it counts, and everything while an operation waits for something."""
    if fact is None:
        return False
    before, state.host = state.host, fact
    waits = any(op.blocked_since is not None for op in state.active_operations())
    return waits or before is None or before.services.keys() != fact.services.keys()


# -- devices --------------------------------------------------------------------------------------------------


def devices(state: State, fact: DevicesFact) -> bool:
    """Take over a sample, verify releases against it, and say whether anything a plan depends on changed."""
    if state.devices is not None and fact.at < state.devices.at:
        return False
    before, state.devices = state.devices, fact
    changed = before is None or before.error != fact.error or len(before.devices) != len(fact.devices)
    known = {d.uuid: d for d in before.devices} if before is not None else {}
    for device in fact.devices:
        old = known.get(device.uuid)
        window = state.windows.get(device.uuid)
        same = old is not None and _same(old, device)
        if same and window is None:
            continue
        changed |= _device(state, device) or not same
    return changed


def _same(one: DeviceFact, other: DeviceFact) -> bool:
    """Would a plan make no difference between these samples?"""
    figures = (one.used_mib, one.processes, one.lost) == (other.used_mib, other.processes, other.lost)
    return figures and (one.health == other.health or kinds(one) == kinds(other))


def estimate_on(state: State, service: str, device: DeviceFact) -> int:
    """What this service is expected to take there if it runs. Who was started by somebody else may be on any device
    that its definition allows, until it is seen on one."""
    spec, track = state.catalog.services.get(service), state.tracks.get(service)
    if spec is None or track is None or not spec.vram_mib:
        return 0
    if track.devices:
        return share(spec.vram_mib, len(track.devices)) if device.uuid in track.devices else 0
    allowed = spec.devices is None or not {device.uuid, str(device.index)}.isdisjoint(spec.devices)
    return share(spec.vram_mib, spec.device_count) if allowed else 0


def _device(state: State, device: DeviceFact) -> bool:
    """One device's sample: whose the memory is, whose processes vanished, which releases are verified."""
    before = state.attribution.get(device.uuid)
    now = state.attribution[device.uuid] = attribute(device, lambda s: estimate_on(state, s, device))
    if before is None and device.uuid in state.baselines:
        _resume_release(state, device.uuid, state.baselines.pop(device.uuid), now.unlisted_mib)
    if before is not None:
        for service in sorted(before.pids_of - now.pids_of):
            # Its processes vanished, perhaps before its unit is seen to end: the window opens at the last good figure.
            open_release(state, device.uuid, service, before.services[service], before.unlisted_mib, gone=True)
    for service, mib in now.services.items():
        track = state.track(service)
        if not track.devices and not track.command.coming:
            track.devices = (device.uuid,)  # adopted: where it holds memory is where it was placed
        track.peak_mib = max(track.peak_mib, mib)
    window = state.windows.get(device.uuid)
    if window is None:
        return False
    for service in [s for s in window.leaving if s in state.tracks]:
        _still_leaving(state.tracks[service], service, window, listed=service in now.services)
    # A lost device shows its last figures for ever, and nothing is started on it: when it is back, what its processes
    # held then is on its way back, and verified like any other.
    ends = {s: entry.ended_at for s, entry in window.leaving.items()}
    released = window.waive() if device.lost else window.settle(now.unlisted_mib, now.pids_of, device.at)
    late = window.give_up(now.unlisted_mib, state.at - state.catalog.policy.release_timeout_s)
    for service in released:
        state.quiesce_from = state.at
        if service in state.tracks:
            _memory_back(state, service, None if device.lost else ends[service])
    for service in late:
        _not_released(state, service, device)
    if not window.leaving:
        del state.windows[device.uuid]
    return bool(released or late)


def _memory_back(state: State, service: str, ended_at: float | None) -> None:
    """A device has its memory back, verified if it is known when its last process ended."""
    state.track(service).tell(state.at, "its memory is back")
    if ended_at is not None and not releasing(state, service):  # on several devices the last one counts
        _measured(state, service, state.costs_of(service).released(state.at - ended_at))


def _not_released(state: State, service: str, device: DeviceFact) -> None:
    if service == UNNAMED:
        return
    track = state.track(service)
    timeout_s = state.catalog.policy.release_timeout_s
    track.failure = Reason(
        code="vram_not_released",
        message=f"{service} ended, but its memory on {device.name} was not back after {timeout_s:g} s",
        hint="another process may hold it: `gpumodctl status` lists foreign memory; a driver reset frees the rest",
        service=service,
        device=device.uuid,
        details={"device_used_mib": device.used_mib, "release_timeout_s": timeout_s},
    )
    track.failed_at = state.at
    track.tell(state.at, track.failure.message)


def _resume_release(state: State, uuid: str, baseline_mib: int, unlisted_mib: int) -> None:
    """After a daemon start, unlisted memory above the last known level is a release that was under way."""
    if unlisted_mib > baseline_mib:
        window = state.windows.setdefault(uuid, ReleaseWindow(baseline_mib=baseline_mib))
        if not window.leaving:
            window.leaving[UNNAMED] = Leaving(held_mib=unlisted_mib - baseline_mib, ended_at=state.at)


def abandon_release(state: State, uuid: str) -> None:
    """The device cannot be sampled: what should be back by now is reported as not released."""
    window = state.windows[uuid]
    device = next((d for d in state.devices.devices if d.uuid == uuid), None) if state.devices else None
    for service in sorted(s for s, e in window.leaving.items() if e.ended_at is not None):
        del window.leaving[service]
        if device is not None:
            _not_released(state, service, device)
    if not window.leaving:
        del state.windows[uuid]


def open_release(state: State, uuid: str, service: str, held_mib: int, unlisted_mib: int, *, gone: bool) -> None:
    """From now on this service's memory on this device is on its way back; the first opening sets the level.

    `gone`: no process of it is left there, so the release clock runs.
    """
    window = state.windows.setdefault(uuid, ReleaseWindow(baseline_mib=unlisted_mib))
    entry = window.leaving.setdefault(service, Leaving(held_mib=held_mib))
    entry.held_mib = max(entry.held_mib, held_mib)
    if gone and entry.ended_at is None:
        entry.ended_at = state.at


def open_releases(state: State, service: str, *, gone: bool = False) -> None:
    """It was asked to end, or has: open a release wherever it holds memory. What it may have taken since the last
    sample nobody has seen, so where it was placed it counts with its estimate at least."""
    for device in state.devices.devices if state.devices is not None else ():
        seen = state.attribution[device.uuid]
        held_mib = max(seen.services.get(service, 0), estimate_on(state, service, device))
        if held_mib:
            open_release(state, device.uuid, service, held_mib, seen.unlisted_mib, gone=gone)


def mark_ended(state: State, service: str, at: float) -> None:
    """Its last process is gone: from now on the release clock runs."""
    open_releases(state, service, gone=True)
    for window in state.windows.values():
        if service in window.leaving:
            window.leaving[service].ended_at = at


def _still_leaving(track: Track, service: str, window: ReleaseWindow, *, listed: bool) -> None:
    """Forget a release that came to nothing: it runs on and nobody wants it to end, or it had never begun."""
    entry = window.leaving[service]
    if listed and not track.gone:
        entry.ended_at = None
    never_came = track.gone and track.command is ops.Command.IDLE and track.unseen_since is None
    if entry.ended_at is None and (track.stop_asked_at is None or never_came):
        del window.leaving[service]


def releasing(state: State, service: str) -> bool:
    """Has it ended on some device without its memory being back?"""
    return any(service in window.leaving for window in state.windows.values())
