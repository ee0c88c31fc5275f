"""Reading device samples: whose the memory is, what is on its way back, and when a release is verified or given up.

The arithmetic is the ledger's. It decides nothing; the engine plans on what stands in the state afterwards.
"""

from gpumodd.core import ops
from gpumodd.core.facts import DeviceFact, DevicesFact
from gpumodd.core.health import kinds
from gpumodd.core.ledger import Leaving, ReleaseWindow, attribute, share
from gpumodd.core.problems import Reason
from gpumodd.core.state import State, Track

UNNAMED = ""  # whoever held memory that was on its way back when the last daemon ended


def sampled(state: State, fact: DevicesFact) -> bool:
    """Take over a sample, verify releases against it, and say whether anything a plan depends on changed."""
    if state.devices is not None and fact.at < state.devices.at:
        return False
    before, state.devices = state.devices, fact
    changed = before is None or before.error != fact.error or len(before.devices) != len(fact.devices)
    known = {d.uuid: d for d in before.devices} if before is not None else {}
    if not fact.error:
        _forget_vanished(state, fact)
    for device in fact.devices:
        old = known.get(device.uuid)
        window = state.windows.get(device.uuid)
        same = old is not None and _same(old, device)
        if same and window is None:
            continue
        changed |= _device(state, device) or not same
    return changed


def _forget_vanished(state: State, fact: DevicesFact) -> None:
    """Of a device that is not even listed any more nobody can verify a release. Should it return, it is met as after
    a start of the daemon: what it holds beyond the last known level is on its way back."""
    for uuid in sorted(state.attribution.keys() - {device.uuid for device in fact.devices}):
        seen, window = state.attribution.pop(uuid), state.windows.pop(uuid, None)
        state.baselines[uuid] = window.baseline_mib if window is not None else seen.unlisted_mib
        for service in sorted(window.leaving) if window is not None else ():
            if service in state.tracks:
                state.tracks[service].tell(state.at, "the device that held its memory is not there any more")


def _same(one: DeviceFact, other: DeviceFact) -> bool:
    """Would a plan make no difference between these samples?"""
    figures = (one.index, one.used_mib, one.processes, one.lost)
    same = figures == (other.index, other.used_mib, other.processes, other.lost)
    return same and (one.health == other.health or kinds(one) == kinds(other))


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
            _memory_back(state, service, device, None if device.lost else ends[service])
    for service in late:
        _not_released(state, service, device)
    if not window.leaving:
        del state.windows[device.uuid]
    return bool(released or late)


def _memory_back(state: State, service: str, device: DeviceFact, ended_at: float | None) -> None:
    """A device has its memory back, verified if it is known when its last process ended."""
    took = f", {state.at - ended_at:.1f} s after its end" if ended_at is not None else ""
    told = f"its memory on device {device.index} is back{took}"
    track = state.track(service)
    if all(moment.text != told for moment in track.story[-2:]):  # its end may be seen after its processes have gone
        track.tell(state.at, told)
    if ended_at is not None and not releasing(state, service):  # on several devices the last one counts
        state.measured(service, state.costs_of(service).released(state.at - ended_at))


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
