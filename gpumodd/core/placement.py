"""Placement: which devices a coming service gets, judged on the memory there will be once everything has left."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from gpumodd.core.ledger import Budget, share
from gpumodd.core.plans import PlanInput, ServiceView
from gpumodd.core.problems import Reason
from gpumodd.core.specs import ServiceSpec

TRIES = 500  # how far to look for a way to fit everything before the first idea is taken as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """What is to be placed: so much on each of so many of these devices."""

    service: str
    each_mib: int
    count: int
    candidates: tuple[str, ...]


def place(
    coming: list[ServiceView], leaving: list[ServiceView], given: PlanInput
) -> tuple[dict[str, tuple[str, ...]], list[Reason]]:
    """Choose devices for what comes: the largest first, each where most room will be, unless something else would
    then not fit that could."""
    placements: dict[str, tuple[str, ...]] = {view.id: () for view in coming}
    reasons: list[Reason] = []
    items: list[_Item] = []
    for view in sorted(coming, key=lambda v: (-needed_mib(v), v.id)):
        spec = view.spec
        assert spec is not None
        if spec.vram_mib is None:
            reasons.append(_unknown(spec))
        if not given.counted or spec.vram_mib == 0:
            continue
        candidates, missing = _candidates(spec, given.budgets)
        if missing or len(candidates) < spec.device_count:
            reasons.append(_unavailable(spec, missing, candidates, given.budgets))
            continue
        each_mib = share(needed_mib(view), spec.device_count)
        item = _Item(service=view.id, each_mib=each_mib, count=spec.device_count, candidates=tuple(candidates))
        items.append(item)
    room = {
        uuid: budget.available_mib + sum(budget.held.get(v.id, 0) for v in leaving)
        for uuid, budget in sorted(given.budgets.items(), key=lambda pair: pair[1].index)
    }
    chosen = _fit(items, room, iter(range(TRIES))) or _best_effort(items, room)
    for service, devices in chosen.items():
        placements[service] = tuple(sorted(devices, key=lambda u: given.budgets[u].index))
        spec = given.services[service].spec
        assert spec is not None
        reasons += [_unfit(spec, given.budgets[u]) for u in placements[service] if given.budgets[u].trouble]
    return placements, reasons


def _fit(items: list[_Item], room: Mapping[str, int], tries: Iterator[int]) -> dict[str, tuple[str, ...]] | None:
    """A way to place all of these, or None when there is none or it is too hard to find."""
    if not items:
        return {}
    item, *rest = items
    for devices in combinations(_roomiest(item, room), item.count):
        if next(tries, None) is None:
            return None
        if all(room[u] >= item.each_mib for u in devices):
            found = _fit(rest, _less(room, item, devices), tries)
            if found is not None:
                return {item.service: devices, **found}
    return None


def _best_effort(items: list[_Item], room: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Not everything fits: what does not will be said, with numbers, when the memory is handed out."""
    chosen: dict[str, tuple[str, ...]] = {}
    for item in items:
        chosen[item.service] = tuple(_roomiest(item, room)[: item.count])
        room = _less(room, item, chosen[item.service])
    return chosen


def _roomiest(item: _Item, room: Mapping[str, int]) -> list[str]:
    return sorted((u for u in room if u in item.candidates), key=lambda u: -room[u])


def _less(room: Mapping[str, int], item: _Item, devices: tuple[str, ...]) -> dict[str, int]:
    return {uuid: mib - item.each_mib if uuid in devices else mib for uuid, mib in room.items()}


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
        if uuid not in found:  # by index and by UUID it is still one device
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


def _unfit(spec: ServiceSpec, budget: Budget) -> Reason:
    what = "; ".join(ailment.text for ailment in budget.ailments) or "its figures are stale"
    return Reason(
        code=budget.trouble,
        message=f"cannot start {spec.id} on {budget.name} (device {budget.index}): {what}",
        hint=budget.ailments[0].hint if budget.ailments else "`gpumodctl status` names the device's problem",
        service=spec.id,
        device=budget.uuid,
        details={
            **{name: value for ailment in budget.ailments for name, value in ailment.details.items()},
            **({"ailments": [ailment.kind for ailment in budget.ailments]} if budget.ailments else {}),
        },
    )
