"""What the planner is shown: budgets, service views and the effective wish, computed from the state.

Pure queries; nothing here changes the state.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from gpumodd.core import releases
from gpumodd.core.desired import Desired, closure
from gpumodd.core.facts import DeviceFact
from gpumodd.core.health import ailments
from gpumodd.core.ledger import HOST, Attribution, Budget, limit_of
from gpumodd.core.operations import Operation
from gpumodd.core.ops import Command
from gpumodd.core.phase import Phase, derive
from gpumodd.core.plans import PlanInput, ServiceView
from gpumodd.core.state import State, Track

SETTLE_S = (
    0.1  # a service without a port counts as ready once it has been active this long: long enough to fail at once
)
STALE_S = 5.0  # a sample older than this starts nothing
SAMPLE_S = 1.0  # how long the end of an operation waits for a sample taken after its last step


_UNSEEN = Track()  # of a service that was never seen nor asked for; only read


def phase_of(state: State, service: str) -> Phase:
    """The service's phase, now."""
    track = state.tracks.get(service)
    if track is None:
        return Phase.STOPPED
    if track.quarantined:
        return Phase.FAILED
    spec = state.catalog.services.get(service)
    if track.unseen_since is not None and not state.units_lost:
        # The job is over but the state it led to has not been seen: the phase of the job goes on.
        return Phase.STOPPING if track.stop_asked_at is not None else Phase.STARTING
    return derive(
        unit=track.unit,
        command=track.command,
        health=track.health,
        settled=settles_at(state, service) is None,
        has_probe=spec is not None and spec.port is not None,
        releasing=releases.releasing(state, service),
        backoff=_comes_again(state, service, track),
        failed=track.gave_up or track.failure is not None,
        reachable=not state.units_lost,
    )


def settles_at(state: State, service: str) -> float | None:
    """When a service without a port will have been active long enough, while that is still to come."""
    spec, track = state.catalog.services.get(service), state.tracks.get(service)
    if track is None or track.active_at is None or track.gone or (spec is not None and spec.port is not None):
        return None
    if track.ready_at is not None:  # it has settled, or served while its definition had a port
        return None
    return track.active_at + SETTLE_S if state.at < track.active_at + SETTLE_S else None


def _comes_again(state: State, service: str, track: Track) -> bool:
    """Will it be started by itself, now or when its backoff is over?"""
    if track.gave_up or track.stopped_outside or (track.backoff_until is None and track.failure is None):
        return False
    waits = track.backoff_until is not None or state.catalog.policy.drift == "heal"
    return waits and service in state.desired.services(state.catalog.services)


def stale(state: State, service: str) -> bool:
    """Does it still run what its definition no longer says? What nobody knows of its start counts as the present."""
    spec, track = state.catalog.services.get(service), state.tracks.get(service)
    if spec is None or track is None or track.gone:
        return False
    return track.fingerprint not in ("", spec.fingerprint)


def alive(track: Track) -> bool:
    """It has, or may soon have, processes."""
    return not track.gone or track.command is not Command.IDLE or track.unseen_since is not None


def held(state: State, devices: Mapping[str, DeviceFact]) -> dict[str, dict[str, int]]:
    """What each service is committed with on each of these devices, MiB: for what runs or may soon run, the larger of
    what was seen and what is expected; for what has ended, what is not back, still under its own name."""
    found = {uuid: _seen_on(state, device) for uuid, device in devices.items()}
    for service, track in state.tracks.items():
        if not alive(track):
            continue
        for uuid in track.devices or devices:
            if uuid in devices:
                mib = releases.estimate_on(state, service, devices[uuid])
                found[uuid][service] = max(mib, found[uuid].get(service, 0))
    return {uuid: {s: mib for s, mib in sorted(each.items()) if mib} for uuid, each in found.items()}


def _seen_on(state: State, device: DeviceFact) -> dict[str, int]:
    """What each service was seen to hold there, by itself or on its way back."""
    seen = state.attribution[device.uuid]
    window = state.windows.get(device.uuid)
    found = dict(seen.services)
    if window is not None:
        for service, mib in window.lingering(seen.unlisted_mib).items():
            found[service] = found.get(service, 0) + mib
        for service, entry in window.leaving.items():
            if entry.ended_at is not None and device.at < entry.ended_at:
                # no sample since has shown what became of it
                found[service] = max(found.get(service, 0), entry.held_mib)
    return found


def foreign_mib(seen: Attribution, device: DeviceFact, lingering_mib: int) -> int:
    """Used, but neither a service's nor on its way back."""
    return max(0, device.used_mib - sum(seen.services.values()) - lingering_mib)


def budgets(state: State) -> dict[str, Budget]:
    """Every device's memory, by UUID."""
    found: dict[str, Budget] = {}
    policy = state.catalog.policy
    sampled = state.devices.devices if state.devices is not None else ()
    devices = {d.uuid: d for d in sampled if d.uuid in state.attribution}
    committed = held(state, devices)
    for device in devices.values():
        seen = state.attribution[device.uuid]
        window = state.windows.get(device.uuid)
        lingering = sum(window.lingering(seen.unlisted_mib).values()) if window is not None else 0
        found[device.uuid] = Budget(
            uuid=device.uuid,
            index=device.index,
            name=device.name,
            total_mib=device.total_mib,
            reserve_mib=policy.vram_reserve_mib,
            foreign_mib=foreign_mib(seen, device, lingering),
            limit_mib=limit_of(device.total_mib, policy, device.uuid, str(device.index)),
            held=committed[device.uuid],
            trouble=_trouble(state, device),
            ailments=ailments(device),
        )
    return found


def _trouble(state: State, device: DeviceFact) -> str:
    if ailments(device):
        return "device_unhealthy"
    unread = state.devices is not None and state.devices.error  # a driver that does not answer may hide anything
    old = state.at - device.at > STALE_S or device.at < state.resumed_at
    return "telemetry_stale" if unread or old else ""


def held_back(state: State, desired: Desired) -> frozenset[str]:
    """Desired services that are left alone for now: given up, waiting out a backoff, stopped by a person outside,
    in quarantine, and what is down and depends on one of those."""
    specs = state.catalog.services
    wanted = desired.services(specs)
    back = {
        s
        for s in wanted
        if (track := state.tracks.get(s)) is not None
        and (track.left_alone or (track.backoff_until is not None and track.backoff_until > state.at))
    }
    while True:
        more = {
            s
            for s in wanted - back
            if (s not in state.tracks or state.tracks[s].gone) and any(d in back for d in specs[s].depends_on)
        }
        if not more:
            return frozenset(back)
        back |= more


def left_alone(state: State, service: str) -> str | None:
    """What keeps this service down until somebody asks anew: itself or something it needs was given up, or stopped by
    a person outside."""
    for needed in sorted(closure([service], state.catalog.services), key=lambda s: (s != service, s)):
        track = state.tracks.get(needed)
        if track is not None and track.left_alone:
            return needed
    return None


def views(state: State, restarts: frozenset[str]) -> dict[str, ServiceView]:
    """Every service that is configured or whose unit was ever seen."""
    found: dict[str, ServiceView] = {}
    for service in sorted({*state.catalog.services, *state.tracks}):
        spec = state.catalog.services.get(service)
        track = state.tracks.get(service, _UNSEEN)
        phase = phase_of(state, service)
        if spec is None and track.gone and phase not in (Phase.STARTING, Phase.STOPPING, Phase.RELEASING):
            continue  # nothing configures it and nothing of it is left, not even a job
        stopping = phase is Phase.STOPPING
        found[service] = ServiceView(
            id=service,
            phase=phase,
            gone=track.gone and not stopping and phase is not Phase.STARTING,
            spec=spec,
            starting=phase is Phase.STARTING and (track.command.coming or track.unseen_since is not None),
            stopping=stopping,
            releasing=releases.releasing(state, service),
            quarantined=track.quarantined,
            restart=service in restarts,
            devices=track.devices,
            costs=state.costs_of(service),
        )
    return found


def plan_input(
    state: State,
    desired: Desired,
    *,
    restarts: frozenset[str] = frozenset(),
    lenient: frozenset[str] = frozenset(),
    quiesce: bool = True,
    extra_back: frozenset[str] | None = None,
    reach: frozenset[str] | None = None,
) -> PlanInput:
    """Everything a plan towards this wish depends on, as it stands now.

    What runs beyond `reach` (None: everything is within) will not be stopped, so it counts as wanted.
    """
    policy = state.catalog.policy
    back = held_back(state, desired) if extra_back is None else extra_back
    beyond = frozenset(s for s, t in state.tracks.items() if reach is not None and s not in reach and not t.gone)
    return PlanInput(
        services=views(state, restarts),
        wanted=desired.services(state.catalog.services) - back | beyond,
        budgets=budgets(state),
        unread=state.devices.error if state.devices is not None and not state.devices.devices else "",
        counted=state.devices is None or state.devices.backend != "none",
        host=host_budget(state),
        lenient=frozenset(state.catalog.services) if policy.overcommit == "warn" else lenient,
        able=not state.units_lost and not state.unsaved,
        paused=quiesce and quiesce_left(state) > 0,
    )


def host_budget(state: State) -> Budget | None:
    """The host's memory, kept like a device's: who runs or may soon run holds the larger of its estimate and what it
    was seen to hold. Who has not been looked at holds its estimate, and has taken nothing yet if it still loads."""
    fact = state.host
    if fact is None:
        return None
    held: dict[str, int] = {}
    taken = 0
    for service in sorted({*state.tracks, *fact.services}):
        spec, track = state.catalog.services.get(service), state.tracks.get(service)
        estimate = spec.ram_mib if spec is not None and track is not None and alive(track) else 0
        loads = phase_of(state, service) in (Phase.STARTING, Phase.LOADING)
        seen = fact.services.get(service, 0 if loads else estimate)
        taken += seen
        if mib := max(estimate, seen):
            held[service] = mib
    total = max(fact.mem_total_mib, fact.mem_available_mib)
    return Budget(
        uuid=HOST,
        index=-1,
        name="the host",
        total_mib=total,
        reserve_mib=state.catalog.policy.ram_reserve_mib,
        foreign_mib=max(0, total - fact.mem_available_mib - taken),
        limit_mib=None,
        held=held,
    )


def lacks_sample(state: State, op: Operation) -> bool:
    """Would its end show device figures from before its last step, though better ones can be had soon?"""
    fact = state.devices
    if fact is None or fact.error or fact.backend == "none":
        return False
    last = op.last_step_at
    return fact.at < last and state.at < last + SAMPLE_S


def quiesce_left(state: State) -> float:
    """Seconds until the pause after the newest verified release is over."""
    pause = state.catalog.policy.quiesce_s
    if not pause or state.quiesce_from is None:
        return 0.0
    return max(0.0, state.quiesce_from + pause - state.at)


def must_restart(operations: list[Operation]) -> frozenset[str]:
    """Services that some of these operations want to go before they come."""
    return frozenset(s for op in operations for s in op.restarts)


def forced(operations: list[Operation]) -> frozenset[str]:
    """Services that may come although there is too little memory for them."""
    return frozenset(s for op in operations if op.force for s in op.goals)


class Doer(Protocol):
    """An operation, or an intent that may become one."""

    def covers(self, service: str) -> bool:
        """Is this service its business?"""
        ...


def reach_of(state: State, doers: Iterable[Doer]) -> frozenset[str]:
    """The services that these may stop."""
    doers = list(doers)
    return frozenset(s for s in state.tracks if any(doer.covers(s) for doer in doers))


def manages_anything(state: State) -> bool:
    """Does any unit of ours run, or is memory of ours on its way back?"""
    return any(alive(t) for t in state.tracks.values()) or bool(state.windows)
