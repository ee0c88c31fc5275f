"""Conditions: how things stand as a whole, what is wrong and since when."""

from dataclasses import replace

from gpumodd.core import world
from gpumodd.core.desired import dependents
from gpumodd.core.facts import Answer, DeviceFact
from gpumodd.core.health import ailments
from gpumodd.core.ledger import Budget
from gpumodd.core.phase import AT_REST, Phase
from gpumodd.core.planner import plan
from gpumodd.core.problems import Problem, Reason, survivor
from gpumodd.core.state import State, Track


def standing(state: State) -> str:
    """switching, converged, blocked or degraded."""
    if state.active_operations():
        return "switching"
    desired = state.desired.services(state.catalog.services)
    lacking = {s for s in desired if world.phase_of(state, s) not in (Phase.READY, Phase.SLEEPING)}
    others = {s for s in state.tracks if s not in desired and world.phase_of(state, s) not in AT_REST}
    trapped = state.quarantined()
    releasing = any(window.leaving.keys() - trapped for window in state.windows.values())
    if not lacking and not others and not releasing and not state.units_lost:
        return "blocked" if trapped else "converged"
    if state.units_lost or (lacking and not others and _only_outside_helps(state, lacking)):
        return "blocked"
    return "degraded"


def _only_outside_helps(state: State, lacking: set[str]) -> bool:
    stuck = obstacles(state).keys() | (lacking & state.quarantined())
    return lacking <= {*stuck, *dependents(stuck, state.catalog.services)}


def obstacles(state: State) -> dict[str, Reason]:
    """What stands in the way of desired services, by service. Figures that are merely old do not: they are renewed."""
    blocked = plan(world.plan_input(state, state.desired)).blocked
    return {r.service: r for r in reversed(blocked) if r.service is not None and r.code != "telemetry_stale"}


# -- problems -------------------------------------------------------------------------------------------------


def problems(state: State) -> list[Problem]:
    """Everything a person should know about now: the machine's first, then each service's, by id."""
    found = [replace(p, since=state.onsets.get(_onset(p), p.since)) for p in _of_hardware(state)]
    desired = state.desired.services(state.catalog.services)
    for service, track in sorted(state.tracks.items()):
        found += of_service(state, service, track, desired=service in desired)
    return found + _of_missing(state, desired, {p.service for p in found})


def _of_missing(state: State, desired: frozenset[str], explained: set[str | None]) -> list[Problem]:
    """Desired services that are down: what stands in their way, and if nothing at all says why, at least that."""
    down = sorted(s for s in desired if world.phase_of(state, s) in AT_REST)
    if not down or state.active_operations():
        return []
    found: list[Problem] = []
    in_the_way = obstacles(state)
    for service in down:
        if service in explained and service not in in_the_way:
            continue
        since = state.tracks[service].since if service in state.tracks else state.started_at
        reason = in_the_way.get(service) or Reason(
            code="not_running",
            message=f"{service} is wanted and does not run",
            hint=f"`gpumodctl service start {service}` or a switch to the same mode starts it",
        )
        found.append(_problem(reason, since=since, service=service))
    return found


def note(state: State) -> None:
    """Remember when each problem of machine and devices began: what they are read from is new with every sample."""
    state.onsets = {key: state.onsets.get(key, state.at) for key in map(_onset, _of_hardware(state))}


def _onset(problem: Problem) -> str:
    return f"{problem.code} {problem.device or ''}"


def _of_hardware(state: State) -> list[Problem]:
    found = _of_machine(state)
    budgets = world.budgets(state)
    for device in state.devices.devices if state.devices is not None else ():
        found += _of_device(state, device, budgets.get(device.uuid))
    return found


def _of_machine(state: State) -> list[Problem]:
    found: list[Problem] = []
    since = state.started_at
    if state.units_lost:
        found.append(
            Problem(
                code="units_unreachable",
                message=f"the service manager does not answer: {state.units_lost}",
                hint="`systemctl --user status` shows whether the user manager runs; nothing is started meanwhile",
                since=since,
            )
        )
    if state.unsaved:
        found.append(
            Problem(
                code="state_unwritable",
                message=f"the state file cannot be written: {state.unsaved}",
                hint="make room or mend the permissions of the state directory; nothing new is begun meanwhile",
                since=since,
            )
        )
    if state.rejected:
        more = f" (and {len(state.rejected) - 1} more)" if len(state.rejected) > 1 else ""
        found.append(
            Problem(
                code="invalid_config",
                message=f"the last good configuration stays in force: {state.rejected[0]}{more}",
                hint="`gpumodctl check` lists every mistake; once they are mended, `gpumodctl reload` takes it over",
                since=since,
                details={"errors": list(state.rejected)},
            )
        )
    fact = state.devices
    if fact is not None and fact.error:
        silent = fact.backend == "none"
        found.append(
            Problem(
                code="no_devices" if silent else "devices_unreadable",
                message=fact.error,
                hint="without a driver, device memory is not watched" if silent else "no service is started meanwhile",
                since=fact.at,
            )
        )
    return found + _of_limits(state)


def _of_limits(state: State) -> list[Problem]:
    """A limit on a device that is not there caps nothing, which whoever wrote it will want to know."""
    fact, limits = state.devices, state.catalog.policy.vram_limits
    if not limits or fact is None or fact.error:
        return []
    there = {name for device in fact.devices for name in (device.uuid, str(device.index))}
    unknown = [limit.device for limit in limits if limit.device not in there]
    if not unknown:
        return []
    return [
        Problem(
            code="device_unknown",
            message=f"policy.vram_limit names {', '.join(unknown)}, and no such device is there",
            hint="`gpumodctl device list` shows the devices; name one of them by index or UUID",
            since=state.started_at,
            details={"devices": unknown},
        )
    ]


def _of_health(device: DeviceFact) -> list[Problem]:
    """Why nothing is started on a device."""
    ailing = ailments(device)
    if not ailing:
        return []
    name, why = f"{device.name} (device {device.index})", "; ".join(ailment.text for ailment in ailing)
    return [
        Problem(
            code="device_lost" if device.lost else "device_unhealthy",
            message=f"{name} cannot be used: {why}" if device.lost else f"nothing is started on {name}: {why}",
            hint=ailing[0].hint,
            since=device.at,
            device=device.uuid,
            details={name: value for ailment in ailing for name, value in ailment.details.items()},
        )
    ]


def _of_device(state: State, device: DeviceFact, budget: Budget | None) -> list[Problem]:
    found = _of_health(device)
    seen = state.attribution.get(device.uuid)
    if seen is not None and seen.guessed:
        found.append(
            Problem(
                code="process_memory_unknown",
                message=f"the driver does not say what {', '.join(sorted(seen.guessed))} hold on {device.name}",
                hint="usual in WSL and some containers: the figures of these services are taken from the device's sum",
                since=device.at,
                device=device.uuid,
            )
        )
    if budget is not None and budget.committed_mib > budget.capacity_mib:
        found.append(
            Problem(
                code="overcommitted",
                message=(
                    f"services may take {budget.committed_mib} MiB on {device.name},"
                    f" {max(0, budget.capacity_mib)} MiB are theirs to take"
                ),
                hint="stop one of them, or end what else holds memory there",
                since=device.at,
                device=device.uuid,
                details={"committed_mib": budget.committed_mib, "capacity_mib": budget.capacity_mib},
            )
        )
    return found


def of_service(state: State, service: str, track: Track, *, desired: bool) -> list[Problem]:
    """What is wrong with one service."""
    since = track.failed_at if track.failed_at is not None else track.since
    reasons = _of_run(state, service, track, desired=desired)
    found = [_problem(reason, since=since, service=service) for reason in reasons]
    reasons = _of_definition(state, service, track, world.phase_of(state, service))
    return found + [_problem(reason, since=track.since, service=service) for reason in reasons]


def _problem(reason: Reason, *, since: float, service: str) -> Problem:
    return Problem(
        code=reason.code,
        message=reason.message,
        hint=reason.hint,
        since=since,
        service=service,
        device=reason.device,
        details=reason.details,
    )


def what_went_wrong(service: str, track: Track) -> Reason | None:
    """With its newest run; what has survived its end is wrong until it is gone, whoever has taken note."""
    return track.failure or (survivor(service) if track.quarantined else None)


def _of_run(state: State, service: str, track: Track, *, desired: bool) -> list[Reason]:
    phase = world.phase_of(state, service)
    spec, probe = state.catalog.services.get(service), track.probe
    found: list[Reason] = [wrong] if (wrong := what_went_wrong(service, track)) is not None else []
    if track.gave_up:
        found.append(
            Reason(
                code="gave_up",
                message=f"{service} failed {max(1, track.failures)} times and is left alone",
                hint=(
                    f"see `gpumodctl service logs {service}`; a switch or `gpumodctl service start {service}` tries"
                    " again"
                ),
            )
        )
    if track.stopped_outside and desired:
        found.append(
            Reason(
                code="stopped_outside",
                message=f"{service} was stopped without gpumodd and is left alone",
                hint=f"`gpumodctl service start {service}` or a switch starts it again",
            )
        )
    if phase not in AT_REST and not desired and not _leaving(state, service):
        found.append(
            Reason(
                code="orphan_running",
                message=f"{service} runs although nothing asked for it",
                hint=f"`gpumodctl service stop {service}` or a switch ends it",
            )
        )
    if phase is Phase.DEGRADED and probe is not None:
        found.append(
            Reason(
                code="unhealthy",
                message=f"{service} answers its health probe badly: {probe.told}",
                hint=f"see `gpumodctl service logs {service}`; a switch to the same mode restarts it",
            )
        )
    if probe is not None and probe.answer is Answer.STRANGER and phase is Phase.LOADING and spec is not None:
        found.append(
            Reason(
                code="port_conflict",
                message=f"a stranger answers on port {spec.port} of {service}",
                hint=f"end that program, or change `port:` in services/{service}.yaml",
                details={"port": spec.port},
            )
        )
    return found


def _of_definition(state: State, service: str, track: Track, phase: Phase) -> list[Reason]:
    spec = state.catalog.services.get(service)
    found: list[Reason] = []
    running = phase in (Phase.LOADING, Phase.READY, Phase.DEGRADED)
    if running and world.stale(state, service):
        found.append(
            Reason(
                code="definition_changed",
                message=f"{service} still runs with the configuration it was started with",
                hint=f"a switch to its mode, or `gpumodctl service restart {service}`, takes the new one over",
            )
        )
    declared = spec.vram_mib if spec is not None else None
    if declared and running and track.peak_mib > declared * 1.1 + 64:
        found.append(
            Reason(
                code="vram_above_declared",
                message=f"{service} was seen to hold {track.peak_mib} MiB, {declared} MiB are declared",
                hint=f"set `vram_mib: {track.peak_mib}` in services/{service}.yaml",
                details={"peak_mib": track.peak_mib, "declared_mib": declared},
            )
        )
    return found


def _leaving(state: State, service: str) -> bool:
    if world.phase_of(state, service) in (Phase.STOPPING, Phase.RELEASING):
        return True
    return any(op.covers(service) for op in state.active_operations())
