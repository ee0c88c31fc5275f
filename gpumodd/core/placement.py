"""Placement: which devices a coming service gets, judged on the memory there will be once everything has left."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from gpumodd.core.book import Book, Demand
from gpumodd.core.credits import demand
from gpumodd.core.ledger import Budget, share
from gpumodd.core.plans import PlanInput, ServiceView
from gpumodd.core.problems import Reason
from gpumodd.core.specs import ServiceSpec
from gpumodd.core.timing import Timing

TRIES = 500  # how often to think again before the first idea is taken as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """What is to be placed: so much on each of so many of these devices."""

    view: ServiceView
    each_mib: int
    count: int
    candidates: tuple[str, ...]


_Chosen = dict[str, tuple[str, ...]]
_Preference = Callable[[int, str, Mapping[str, int]], tuple[float, ...]]  # for so much on a device; the least first


def place(
    coming: list[ServiceView], books: Mapping[str, Book], timing: Timing, given: PlanInput
) -> tuple[dict[str, tuple[str, ...]], list[Reason]]:
    """Choose devices for what comes: the largest first, each where most room will be, unless something else would
    then not fit that could, or another choice has everything ready sooner."""
    reasons: list[Reason] = []
    items: list[_Item] = []
    for view in sorted(coming, key=lambda v: (-v.needed_mib, v.id)):
        spec = view.spec
        assert spec is not None
        if spec.vram_mib is None:
            reasons.append(_unknown(spec))
        if not given.counted or spec.vram_mib == 0:
            continue
        candidates, missing = _candidates(spec, given.budgets)
        if missing or len(candidates) < spec.device_count:
            reasons.append(_unavailable(spec, missing, candidates, given))
            continue
        each_mib = share(view.needed_mib, spec.device_count)
        items.append(_Item(view=view, each_mib=each_mib, count=spec.device_count, candidates=tuple(candidates)))
    by_index = sorted(given.budgets, key=lambda u: given.budgets[u].index)
    room = {uuid: books[uuid].total_mib for uuid in by_index}
    chosen = _fit(items, room, _roomiest)
    chosen = _sooner(items, room, chosen, books, timing, given) if chosen is not None else _best_effort(items, room)
    placements: dict[str, tuple[str, ...]] = {view.id: () for view in coming}
    for item in items:
        service, spec = item.view.id, item.view.spec
        assert spec is not None
        placements[service] = tuple(u for u in by_index if u in chosen[service])
        reasons += [_unfit(spec, given.budgets[u]) for u in placements[service] if given.budgets[u].trouble]
    return placements, reasons


def _fit(items: list[_Item], room: Mapping[str, int], preference: _Preference) -> _Chosen | None:
    """A way to place all of these, or None when there is none or it is too hard to find."""
    left = dict(room)
    chosen: list[tuple[str, ...]] = []
    ideas = [_ideas(items[0], left, preference)] if items else []
    thoughts = len(items) + TRIES
    while len(chosen) < len(items):
        devices = next(ideas[-1], None)
        if devices is None:  # nowhere to put it: the one before has to go elsewhere
            ideas.pop()
            if not ideas:
                return None
            _take(left, items[len(chosen) - 1], chosen.pop(), -1)
            continue
        thoughts -= 1
        if thoughts < 0:
            return None
        _take(left, items[len(chosen)], devices, +1)
        chosen.append(devices)
        if len(chosen) < len(items):
            ideas.append(_ideas(items[len(chosen)], left, preference))
    return {item.view.id: devices for item, devices in zip(items, chosen, strict=True)}


def _ideas(item: _Item, room: Mapping[str, int], preference: _Preference) -> Iterator[tuple[str, ...]]:
    """Where it could go now, the preferred first."""
    fitting = [u for u in room if room[u] >= item.each_mib and u in item.candidates]
    return combinations(sorted(fitting, key=lambda u: preference(item.each_mib, u, room)), item.count)


def _take(room: dict[str, int], item: _Item, devices: tuple[str, ...], sign: int) -> None:
    for uuid in devices:
        room[uuid] -= sign * item.each_mib


def _roomiest(mib: int, uuid: str, room: Mapping[str, int]) -> tuple[float, ...]:
    return (mib - room[uuid],)


def _best_effort(items: list[_Item], room: Mapping[str, int]) -> _Chosen:
    """Not everything fits: what does not will be said, with numbers, when the memory is handed out."""
    left = dict(room)
    chosen: _Chosen = {}
    for item in items:
        usable = sorted((u for u in left if u in item.candidates), key=lambda u: -left[u])
        chosen[item.view.id] = tuple(usable[: item.count])
        _take(left, item, chosen[item.view.id], +1)
    return chosen


def _sooner(
    items: list[_Item],
    room: Mapping[str, int],
    chosen: _Chosen,
    books: Mapping[str, Book],
    timing: Timing,
    given: PlanInput,
) -> _Chosen:
    """Another way to place all of these that has everything ready sooner, or the same as before: those with the
    longest tails first, each where memory is free soonest."""
    if len(room) < 2 or any(budget.trouble for budget in given.budgets.values()):
        return chosen  # who can be placed at all must not depend on how long things take

    def soonest(mib: int, uuid: str, left: Mapping[str, int]) -> tuple[float, ...]:
        return (books[uuid].when_s(room[uuid] - left[uuid] + mib), -left[uuid])

    end_s = _end_s(items, chosen, books, timing)
    if end_s <= max((timing.tail_s[item.view.id] for item in items), default=0.0):
        return chosen  # whatever takes longest waits for nothing
    in_haste = sorted(items, key=lambda i: (-timing.tail_s[i.view.id], -i.each_mib, i.view.id))
    other = _fit(in_haste, room, soonest)
    return other if other is not None and _end_s(items, other, books, timing) < end_s else chosen


def _end_s(items: list[_Item], chosen: _Chosen, books: Mapping[str, Book], timing: Timing) -> float:
    """When everything can be ready if it is placed so."""
    demands: dict[str, list[Demand]] = {}
    for item in items:
        for uuid in chosen[item.view.id]:
            demands.setdefault(uuid, []).append(demand(item.view, item.each_mib, timing))
    return max((books[uuid].soonest_end_s(asked) for uuid, asked in demands.items()), default=0.0)


def _candidates(spec: ServiceSpec, budgets: Mapping[str, Budget]) -> tuple[list[str], list[str]]:
    """The devices a service may get, and the ones it names that do not exist. Healthy ones are preferred."""
    if spec.devices is None:
        usable = [u for u, b in sorted(budgets.items()) if not b.trouble]
        return (usable if len(usable) >= spec.device_count else sorted(budgets)), []
    found: list[str] = []
    missing: list[str] = []
    # When a device has fallen off and the others have moved up, its index still means the one that had it: better
    # nothing is started than on the wrong card.
    lost_last = sorted(budgets.items(), key=lambda pair: any(a.kind == "lost" for a in pair[1].ailments))
    by_index = {str(b.index): u for u, b in lost_last}
    for wish in spec.devices:
        uuid = by_index.get(wish, wish)
        if uuid not in found:  # by index and by UUID it is still one device
            (found if uuid in budgets else missing).append(uuid)
    return found, missing


def _unknown(spec: ServiceSpec) -> Reason:
    return Reason(
        code="vram_unknown",
        message=f"cannot start {spec.id}: nobody knows how much device memory it takes",
        hint=f"set `vram_mib:` in services/{spec.id}.yaml (0 for a service that uses no device), or pass --force;"
        " `gpumodctl check` says if its model could not be read",
        service=spec.id,
    )


def _unavailable(spec: ServiceSpec, missing: list[str], candidates: list[str], given: PlanInput) -> Reason:
    if given.unread:
        return Reason(
            code="telemetry_stale",
            message=f"cannot place {spec.id}: no device was seen yet, {given.unread}",
            hint="`gpumodctl status` names the device's problem",
            service=spec.id,
        )
    if missing:
        message = f"cannot place {spec.id}: no device {', '.join(missing)}"
    elif not given.budgets:
        message = f"cannot place {spec.id}: no device is visible"
    else:
        message = f"cannot place {spec.id} on {spec.device_count} devices: {len(candidates)} to choose from"
    return Reason(
        code="device_unavailable",
        message=message,
        hint="`gpumodctl device list` shows the devices; `devices:` and `device_count:` choose among them",
        service=spec.id,
        details={"missing": missing, "device_count": spec.device_count, "devices": sorted(given.budgets)},
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
