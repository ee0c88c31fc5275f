"""The planner: from the world to the wish, as a DAG of steps. Pure, total, deterministic.

`plan` looks at what is, what is wanted and how much memory there is, and returns what is still to be done, from
scratch, each time. Expected trouble is data: `blocked` says with numbers what cannot happen. The same function
serves a switch, a repair and a simulation.

Memory is handed out as credits: what is free now, and what each leaving service will give back. Every MiB is
credited to one start only, and a start comes after all the releases it draws on, so no order that the DAG
permits over-commits a device at any point.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gpumodd.core.desired import closure
from gpumodd.core.ledger import Budget, share
from gpumodd.core.operations import PlannedStep, StepKey, Verb
from gpumodd.core.phase import Phase
from gpumodd.core.problems import Reason
from gpumodd.core.specs import ServiceSpec

RAM = "ram"  # the host's memory, kept in the same books as a device


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """One service as the planner sees it."""

    id: str
    phase: Phase
    gone: bool  # no process of it is left
    spec: ServiceSpec | None = None  # None: a managed unit that nothing configures any more
    starting: bool = False  # a start's job is in flight
    stopping: bool = False  # a stop's job is in flight, or the unit is on its way down
    releasing: bool = False  # its memory has not come back yet
    restart: bool = False  # it must go before it may come
    devices: tuple[str, ...] = ()  # where it runs

    @property
    def ready(self) -> bool:
        """It serves, or at least it runs and has served."""
        return self.phase in (Phase.READY, Phase.DEGRADED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """Everything a plan depends on."""

    services: Mapping[str, ServiceView]
    wanted: frozenset[str]
    budgets: Mapping[str, Budget]
    counted: bool = True  # False: nobody watches device memory (backend none), so it is not planned either
    ram_available_mib: int | None = None  # MemAvailable less the reserve; None: not known, not judged
    unbounded: bool = False  # forced, or overcommit: warn
    reachable: bool = True  # the service manager answers
    paused: bool = False  # quiesce: no start yet


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceForecast:
    """One device once the plan is through."""

    uuid: str
    total_mib: int
    needed_mib: int
    headroom_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is still to be done, and what it leads to."""

    steps: tuple[PlannedStep, ...] = ()
    blocked: tuple[Reason, ...] = ()
    placements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forecast: tuple[DeviceForecast, ...] = ()
    kept: tuple[str, ...] = ()

    def ready(self) -> tuple[PlannedStep, ...]:
        """The steps that may begin now: they wait for nothing and nothing blocks them."""
        return tuple(s for s in self.steps if not s.after and not s.in_flight and not s.blocked)


def plan(given: PlanInput) -> Plan:
    """What is to be done so that exactly the wanted services run."""
    specs = {s.id: s.spec for s in given.services.values() if s.spec is not None}
    leaving = [v for _, v in sorted(given.services.items()) if _must_leave(v, given.wanted)]
    order = topological(given.wanted & specs.keys(), specs)
    coming = [given.services[s] for s in order if _must_come(given.services[s])]
    placements, reasons = _place(coming, order, given)
    steps = _leave(leaving, specs)
    gates, blocked = _credits(coming, leaving, placements, given)
    reasons += blocked
    refused = {r.service for r in reasons}
    steps += _come(order, leaving, placements, gates, refused, given)
    untouched = {s.service for s in steps}
    return Plan(
        steps=tuple(steps),
        blocked=tuple(reasons),
        placements=placements,
        forecast=forecast(order, placements, given),
        kept=tuple(s for s in sorted(given.wanted) if s in specs and s not in untouched),
    )


def topological(ids: Iterable[str], specs: Mapping[str, ServiceSpec]) -> list[str]:
    """Dependencies first; among equals the higher priority, then the larger, then by id. Cycles are cut."""
    rest = set(ids)
    done: list[str] = []
    while rest:
        free = [s for s in rest if not (set(specs[s].depends_on) & rest)] or sorted(rest)[:1]
        free.sort(key=lambda s: (-specs[s].priority, -(specs[s].vram_mib or 0), s))
        done.extend(free)
        rest.difference_update(free)
    return done


def _must_leave(view: ServiceView, wanted: frozenset[str]) -> bool:
    if view.id in wanted and not view.restart:
        # A wanted service that is on its way down has to get there before it can come again.
        return view.stopping or (view.gone and view.releasing)
    return not view.gone or view.releasing or view.stopping or view.starting


def _must_come(view: ServiceView) -> bool:
    return (view.gone or view.restart or view.stopping) and not view.starting


# -- leaving --------------------------------------------------------------------------------------------------


def _leave(leaving: list[ServiceView], specs: Mapping[str, ServiceSpec]) -> list[PlannedStep]:
    """Stops, dependents first, and for each the wait until its memory is back."""
    steps: list[PlannedStep] = []
    to_stop = {v.id: v for v in leaving if not v.gone or v.starting or v.stopping}
    order = list(reversed(topological(to_stop.keys() & specs.keys(), specs)))
    order += sorted(to_stop.keys() - specs.keys())
    for service in order:
        view = to_stop[service]
        dependents = sorted(o for o in to_stop if o in specs and service in specs[o].depends_on)
        steps.append(
            PlannedStep(
                verb=Verb.STOP,
                service=service,
                after=() if view.stopping else tuple((Verb.STOP, o) for o in dependents),
                why=_why_stop(view),
                in_flight=view.stopping,
            )
        )
    for view in leaving:
        steps.append(
            PlannedStep(
                verb=Verb.WAIT_RELEASE,
                service=view.id,
                after=((Verb.STOP, view.id),) if view.id in to_stop else (),
                why="its memory must be back before it counts as free",
                in_flight=view.id not in to_stop,
            )
        )
    return steps


def _why_stop(view: ServiceView) -> str:
    if view.spec is None:
        return "a managed unit that nothing configures any more"
    if view.restart:
        return "it is restarted"
    return "not part of what is wanted"


# -- placement and credits ------------------------------------------------------------------------------------


def _place(
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
    for view in sorted(coming, key=lambda v: (-_mib(v), v.id)):
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
            room[uuid] -= share(_mib(view), spec.device_count)
        reasons += [_unhealthy(spec, given.budgets[u]) for u in chosen if given.budgets[u].trouble]
    return placements, reasons


def _mib(view: ServiceView) -> int:
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


class _Credits:
    """One device's memory as credits: what is free now, then what each release will give back."""

    def __init__(self, free_mib: int, releases: list[tuple[int, StepKey]]) -> None:
        self.chunks: list[tuple[int, tuple[StepKey, ...]]] = [(max(0, free_mib), ())]
        self.chunks += [(mib, (key,)) for mib, key in releases]
        self.debt: tuple[StepKey, ...] = ()
        if free_mib < 0:  # somebody else grew: the first releases pay for that
            self.debt = tuple(sorted(self._take(min(-free_mib, self.total))))

    @property
    def total(self) -> int:
        return sum(mib for mib, _ in self.chunks)

    @property
    def free_now(self) -> int:
        return 0 if self.debt else sum(mib for mib, keys in self.chunks if not keys)

    def draw(self, mib: int) -> frozenset[StepKey] | None:
        """The releases this much memory has to wait for, or None when there is not enough at all."""
        return frozenset(self.debt) | self._take(mib) if mib <= self.total else None

    def _take(self, mib: int) -> frozenset[StepKey]:
        keys: set[StepKey] = set()
        rest: list[tuple[int, tuple[StepKey, ...]]] = []
        for amount, origin in self.chunks:
            taken = min(mib, amount)
            mib -= taken
            if taken:
                keys.update(origin)
            if amount > taken:
                rest.append((amount - taken, origin))
        self.chunks = rest
        return frozenset(keys)


def _credits(
    coming: list[ServiceView],
    leaving: list[ServiceView],
    placements: Mapping[str, tuple[str, ...]],
    given: PlanInput,
) -> tuple[dict[str, frozenset[StepKey]], list[Reason]]:
    """For each start the releases it draws on; what fits into free memory is served first, so it waits for none."""
    if given.unbounded:
        return {v.id: frozenset() for v in coming}, []
    # What is already on its way back comes first, then what is already stopping, then the rest.
    by_nearness = sorted(leaving, key=lambda v: (not v.gone, not v.stopping, v.id))
    books: dict[str, _Credits] = {}
    for uuid, budget in sorted(given.budgets.items()):
        releases = [(budget.held.get(v.id, 0), (Verb.WAIT_RELEASE, v.id)) for v in by_nearness]
        books[uuid] = _Credits(budget.available_mib, [r for r in releases if r[0] > 0])
    if given.ram_available_mib is not None:
        stops = [(v.spec.ram_mib, (Verb.STOP, v.id)) for v in by_nearness if v.spec is not None and not v.gone]
        books[RAM] = _Credits(given.ram_available_mib, [s for s in stops if s[0] > 0])

    gates: dict[str, frozenset[StepKey]] = {}
    reasons: list[Reason] = []
    needs = {v.id: _needs(v, placements, books) for v in coming}
    first = [v for v in coming if all(mib <= books[b].free_now for b, mib in needs[v.id].items())]
    for view in [*first, *(v for v in coming if v not in first)]:
        drawn: set[StepKey] = set()
        for book, mib in needs[view.id].items():
            had = books[book].total
            keys = books[book].draw(mib)
            if keys is None:
                reasons.append(_too_little(view, book, mib, had, given))
            else:
                drawn |= keys
        gates[view.id] = frozenset(drawn)
    return gates, reasons


def _needs(
    view: ServiceView, placements: Mapping[str, tuple[str, ...]], books: Mapping[str, _Credits]
) -> dict[str, int]:
    devices = placements.get(view.id, ())
    needs = {uuid: share(_mib(view), len(devices)) for uuid in devices}
    if RAM in books and view.spec is not None and view.spec.ram_mib:
        needs[RAM] = view.spec.ram_mib
    return needs


def _too_little(view: ServiceView, book: str, mib: int, had: int, given: PlanInput) -> Reason:
    if book == RAM:
        return Reason(
            code="ram_insufficient",
            message=f"cannot start {view.id}: not enough RAM, it needs {mib} MiB and {max(0, had)} MiB are available",
            hint="end something that holds host memory, lower `policy.ram_reserve_mib`, or pass --force",
            service=view.id,
            details={"needed_mib": mib, "available_mib": had},
        )
    budget = given.budgets[book]
    return Reason(
        code="vram_insufficient",
        message=(
            f"cannot start {view.id} on {budget.name} (device {budget.index}): it needs {mib} MiB and"
            f" {max(0, had)} of {budget.total_mib} MiB can be had"
            f" (reserve {budget.reserve_mib}, foreign {budget.foreign_mib})"
        ),
        hint="`gpumodctl simulate` shows what would fit; `gpumodctl status` names who holds the memory",
        service=view.id,
        device=book,
        details={
            "needed_mib": mib,
            "available_mib": had,
            "total_mib": budget.total_mib,
            "reserve_mib": budget.reserve_mib,
            "foreign_mib": budget.foreign_mib,
            "committed_mib": budget.committed_mib,
        },
    )


# -- coming ---------------------------------------------------------------------------------------------------


def _come(
    order: list[str],
    leaving: list[ServiceView],
    placements: Mapping[str, tuple[str, ...]],
    gates: Mapping[str, frozenset[StepKey]],
    refused: set[str | None],
    given: PlanInput,
) -> list[PlannedStep]:
    """Starts in dependency order, each after the releases it needs, and for each the wait until it is ready."""
    steps: list[PlannedStep] = []
    going = {v.id: v for v in leaving}
    waiting = {s for s in order if not given.services[s].ready or _must_come(given.services[s])}
    for service in order:
        view = given.services[service]
        spec = view.spec
        assert spec is not None
        if service not in waiting:
            continue
        comes = _must_come(view)
        if comes:
            after: set[StepKey] = set(gates.get(service, ()))
            after |= {(Verb.WAIT_READY, d) for d in spec.depends_on if d in waiting}
            after |= {(Verb.STOP, v.id) for v in leaving if not v.gone and _same_port(v.spec, spec)}
            if service in going:
                after.add((Verb.WAIT_RELEASE, service))
            steps.append(
                PlannedStep(
                    verb=Verb.START,
                    service=service,
                    after=tuple(sorted(after)),
                    why=_why_start(spec, placements.get(service, ()), given),
                    blocked=service in refused or given.paused or not given.reachable,
                )
            )
        elif view.starting:
            steps.append(PlannedStep(verb=Verb.START, service=service, why="it was given the command", in_flight=True))
        steps.append(
            PlannedStep(
                verb=Verb.WAIT_READY,
                service=service,
                after=((Verb.START, service),) if comes or view.starting else (),
                why="ready means that its health answers" if spec.port else "ready means that its unit is active",
                in_flight=not comes and not view.starting,
            )
        )
    return steps


def _same_port(one: ServiceSpec | None, other: ServiceSpec) -> bool:
    return one is not None and one.port is not None and one.port == other.port and one.id != other.id


def _why_start(spec: ServiceSpec, devices: tuple[str, ...], given: PlanInput) -> str:
    where = ", ".join(f"device {given.budgets[u].index}" for u in devices)
    return f"wanted, {spec.vram_mib or 0} MiB on {where}" if where else "wanted"


# -- forecast -------------------------------------------------------------------------------------------------


def forecast(
    order: list[str], placements: Mapping[str, tuple[str, ...]], given: PlanInput
) -> tuple[DeviceForecast, ...]:
    """Each device once all that leaves has left and all that comes is up."""
    needed = dict.fromkeys(given.budgets, 0)
    for service in order:
        view = given.services[service]
        devices = placements.get(service, view.devices)
        for uuid in devices:
            if uuid in needed:
                estimate = share(_mib(view), len(devices))
                held = 0 if service in placements else given.budgets[uuid].held.get(service, 0)
                needed[uuid] += max(estimate, held)
    return tuple(
        DeviceForecast(
            uuid=uuid,
            total_mib=budget.total_mib,
            needed_mib=needed[uuid],
            headroom_mib=budget.capacity_mib - needed[uuid],
        )
        for uuid, budget in sorted(given.budgets.items(), key=lambda item: item[1].index)
    )


def wanted_with_needs(services: Iterable[str], specs: Mapping[str, ServiceSpec]) -> frozenset[str]:
    """These services and what they depend on."""
    return closure(services, specs)
