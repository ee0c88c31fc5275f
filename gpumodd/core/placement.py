"""Placement: which devices a coming service gets, judged on the memory there will be once everything has left."""

from collections.abc import Mapping

from gpumodd.core.ledger import Budget, share
from gpumodd.core.plans import PlanInput, ServiceView
from gpumodd.core.problems import Reason
from gpumodd.core.specs import ServiceSpec


def place(
    coming: list[ServiceView], order: list[str], given: PlanInput
) -> tuple[dict[str, tuple[str, ...]], list[Reason]]:
    """Choose devices for what comes, judged on the forecast: the largest first, each where most room will be."""
    placements: dict[str, tuple[str, ...]] = {}
    reasons: list[Reason] = []
    room = {uuid: b.capacity_mib for uuid, b in given.budgets.items()}
    arriving = {v.id for v in coming}
    for service in order:
        if service not in arriving:
            for uuid in given.services[service].devices:
                if uuid in room:
                    room[uuid] -= given.budgets[uuid].held.get(service, 0)
    for view in sorted(coming, key=lambda v: (-needed_mib(v), v.id)):
        spec = view.spec
        assert spec is not None
        if spec.vram_mib is None and not given.unbounded:
            reasons.append(_unknown(spec))
        if not given.counted or spec.vram_mib == 0:
            placements[view.id] = ()
            continue
        candidates, missing = _candidates(spec, given.budgets)
        if missing or len(candidates) < spec.device_count:
            reasons.append(_unavailable(spec, missing, candidates, given.budgets))
            placements[view.id] = ()
            continue
        chosen = sorted(candidates, key=lambda u: (-room[u], given.budgets[u].index))[: spec.device_count]
        placements[view.id] = tuple(sorted(chosen, key=lambda u: given.budgets[u].index))
        for uuid in chosen:
            room[uuid] -= share(needed_mib(view), spec.device_count)
        reasons += [_unhealthy(spec, given.budgets[u]) for u in chosen if given.budgets[u].trouble]
    return placements, reasons


def needed_mib(view: ServiceView) -> int:
    """The device memory a service takes in all, as far as is known."""
    return (view.spec.vram_mib or 0) if view.spec is not None else 0


def _candidates(spec: ServiceSpec, budgets: Mapping[str, Budget]) -> tuple[list[str], list[str]]:
    """The devices a service may get, and the ones it names that do not exist. Healthy ones are preferred."""
    if spec.devices is None:
        usable = [u for u, b in sorted(budgets.items()) if not b.trouble]
        return (usable if len(usable) >= spec.device_count else sorted(budgets)), []
    found: list[str] = []
    missing: list[str] = []
    by_index = {str(b.index): u for u, b in budgets.items()}
    for wish in spec.devices:
        uuid = by_index.get(wish, wish)
        (found if uuid in budgets else missing).append(uuid)
    return found, missing


def _unknown(spec: ServiceSpec) -> Reason:
    return Reason(
        code="vram_unknown",
        message=f"cannot start {spec.id}: nobody knows how much device memory it takes",
        hint=f"set `vram_mib:` in services/{spec.id}.yaml (0 for a service that uses no device), or pass --force",
        service=spec.id,
    )


def _unavailable(spec: ServiceSpec, missing: list[str], candidates: list[str], budgets: Mapping[str, Budget]) -> Reason:
    if missing:
        message = f"cannot place {spec.id}: no device {', '.join(missing)}"
    elif not budgets:
        message = f"cannot place {spec.id}: no device is visible"
    else:
        message = f"cannot place {spec.id} on {spec.device_count} devices: {len(candidates)} to choose from"
    return Reason(
        code="device_unavailable",
        message=message,
        hint="`gpumodctl device list` shows the devices; `devices:` and `device_count:` choose among them",
        service=spec.id,
        details={"missing": missing, "device_count": spec.device_count, "devices": sorted(budgets)},
    )


def _unhealthy(spec: ServiceSpec, budget: Budget) -> Reason:
    what = "its figures are stale" if budget.trouble == "telemetry_stale" else "the device is lost"
    return Reason(
        code=budget.trouble,
        message=f"cannot start {spec.id} on {budget.name} (device {budget.index}): {what}",
        hint="`gpumodctl status` names the device's problem",
        service=spec.id,
        device=budget.uuid,
    )
