"""The planner: from the world to the wish, as a DAG of steps. Pure, total, deterministic.

`plan` looks at what is, what is wanted and how much memory there is, and returns what is still to be done, from
scratch, each time. Expected trouble is data: `blocked` says with numbers what cannot happen. The same function
serves a switch, a repair and a simulation.

Which devices a service gets is decided in `placement`, which releases a start waits for in `credits`; both prefer
what `timing` expects to have everything ready soonest.
"""

from collections.abc import Iterable, Mapping, Sequence

from gpumodd.core import timing
from gpumodd.core.credits import gates as gates_of
from gpumodd.core.credits import open_books
from gpumodd.core.ledger import share
from gpumodd.core.operations import PlannedStep, StepKey, Verb
from gpumodd.core.phase import Phase
from gpumodd.core.placement import place
from gpumodd.core.plans import PASSABLE, DeviceForecast, Plan, PlanInput, ServiceView
from gpumodd.core.problems import Reason, survivor
from gpumodd.core.specs import ServiceSpec

ANYWHERE = frozenset({"", "0.0.0.0", "::", "*", "localhost"})  # hosts that take a port on more than one address


def plan(given: PlanInput) -> Plan:
    """What is to be done so that exactly the wanted services run."""
    specs = {s.id: s.spec for s in given.services.values() if s.spec is not None}
    leaving = [v for _, v in sorted(given.services.items()) if _must_leave(v, given.wanted)]
    order = topological(given.wanted & specs.keys(), specs)
    coming = [given.services[s] for s in order if _must_come(given.services[s])]
    stops = _stops(leaving, specs)
    rising = [given.services[s] for s in order if _must_rise(given.services[s])]
    expected = timing.expected(leaving, stops, rising)
    books = open_books(leaving, expected, given)
    placements, reasons = place(coming, books, expected, given)
    reasons += _clashes(order, given)
    gates, blocked = gates_of(coming, placements, books, expected, given)
    reasons += blocked
    passed = [r for r in reasons if r.service in given.lenient and r.code in PASSABLE]
    reasons = [r for r in reasons if r not in passed]
    refused = {r.service for r in reasons}
    steps = _leave(leaving, stops, given)
    steps += _come(order, leaving, placements, gates, refused, given)
    untouched = {s.service for s in steps}
    return Plan(
        steps=tuple(steps),
        blocked=tuple(reasons),
        passed=tuple(passed),
        placements=placements,
        forecast=forecast(order, placements, given),
        kept=tuple(s for s in sorted(given.wanted) if s in specs and s not in untouched),
    )


def topological(ids: Iterable[str], specs: Mapping[str, ServiceSpec]) -> list[str]:
    """Dependencies first; among equals the higher priority, then the larger, then by id. Cycles are cut."""
    by_name = sorted(ids)
    among = frozenset(by_name)
    waits_for = {s: len(among.intersection(specs[s].depends_on)) for s in by_name}
    dependents = _dependents(by_name, specs)
    done: dict[str, None] = {}
    free = [s for s in by_name if not waits_for[s]]
    cuts = iter(by_name)
    while len(done) < len(by_name):
        free = free or [next(s for s in cuts if s not in done)]
        free.sort(key=lambda s: (-specs[s].priority, -(specs[s].vram_mib or 0), s))
        done.update(dict.fromkeys(free))
        freed: list[str] = []
        for service in free:
            for other in dependents[service]:
                waits_for[other] -= 1
                if not waits_for[other] and other not in done:
                    freed.append(other)
        free = freed
    return list(done)


def _dependents(ids: Sequence[str], specs: Mapping[str, ServiceSpec]) -> dict[str, list[str]]:
    """For each of these services those of them that depend on it, in the order of `ids`."""
    found: dict[str, list[str]] = {s: [] for s in ids}
    for service in ids:
        for needed in {*specs[service].depends_on} if service in specs else ():
            if needed in found:
                found[needed].append(service)
    return found


def _must_leave(view: ServiceView, wanted: frozenset[str]) -> bool:
    if view.quarantined:
        return False
    if view.id in wanted and not view.restart:
        # A wanted service that is on its way down has to get there before it can come again.
        return view.stopping or (view.gone and view.releasing)
    return not view.gone or view.releasing or view.stopping or view.starting


def _must_come(view: ServiceView) -> bool:
    if view.quarantined:
        return False
    return view.restart or ((view.gone or view.stopping) and not view.starting)


def _must_rise(view: ServiceView) -> bool:
    return not view.ready or _must_come(view)


# -- leaving --------------------------------------------------------------------------------------------------


def _stops(leaving: list[ServiceView], specs: Mapping[str, ServiceSpec]) -> dict[str, list[str]]:
    """What has to be stopped, dependents first, and for each the dependents it comes after."""
    to_stop = {v.id for v in leaving if not v.gone or v.starting or v.stopping}
    order = [*topological(to_stop & specs.keys(), specs)[::-1], *sorted(to_stop - specs.keys())]
    dependents = _dependents(sorted(to_stop), specs)
    stops: dict[str, list[str]] = {}
    for service in order:  # in a circle of dependencies somebody goes first
        stops[service] = [o for o in dependents[service] if o in stops]
    return stops


def _leave(leaving: list[ServiceView], stops: Mapping[str, list[str]], given: PlanInput) -> list[PlannedStep]:
    """Stops, dependents first, and for each the wait until its memory is back."""
    steps: list[PlannedStep] = []
    for service, dependents in stops.items():
        view = given.services[service]
        steps.append(
            PlannedStep(
                verb=Verb.STOP,
                service=service,
                after=() if view.stopping else tuple((Verb.STOP, o) for o in dependents),
                why=_why_stop(view, given.wanted),
                in_flight=view.stopping,
                blocked=not given.able and not view.stopping,
            )
        )
    for view in leaving:
        steps.append(
            PlannedStep(
                verb=Verb.WAIT_RELEASE,
                service=view.id,
                after=((Verb.STOP, view.id),) if view.id in stops else (),
                why="its memory must be back before it counts as free",
                in_flight=view.id not in stops,
            )
        )
    return steps


def _why_stop(view: ServiceView, wanted: frozenset[str]) -> str:
    if view.spec is None:
        return "a managed unit that nothing configures any more"
    if view.restart:
        return "it is restarted"
    if view.id in wanted:
        return "it is on its way down, and has to get there before it can come again"
    return "not part of what is wanted"


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
    going = {v.id for v in leaving}
    on_port = _by_port(v.spec for v in leaving if not v.gone and v.spec is not None)
    waiting = {s for s in order if _must_rise(given.services[s])}
    placed: set[str] = set()  # in the list already: a circle of dependencies is blocked, and no step waits for it
    for service in order:
        view = given.services[service]
        spec = view.spec
        assert spec is not None
        placed.add(service)
        if service not in waiting:
            continue
        comes = _must_come(view)
        if comes:
            after: set[StepKey] = set(gates.get(service, ()))
            after |= {(Verb.WAIT_READY, d) for d in spec.depends_on if d in waiting and d in placed}
            after |= {(Verb.STOP, other.id) for other in on_port.get(spec.port, ()) if _same_port(other, spec)}
            if service in going:
                after.add((Verb.WAIT_RELEASE, service))
            steps.append(
                PlannedStep(
                    verb=Verb.START,
                    service=service,
                    after=tuple(sorted(after)),
                    why=_why_start(spec, placements.get(service, ()), given),
                    blocked=service in refused or given.paused or not given.able,
                )
            )
        elif view.starting:
            why = _why_start(spec, view.devices, given)
            steps.append(PlannedStep(verb=Verb.START, service=service, why=why, in_flight=True))
        steps.append(
            PlannedStep(
                verb=Verb.WAIT_READY,
                service=service,
                after=((Verb.START, service),) if comes or view.starting else (),
                why="ready means that its health answers" if spec.port else "ready means that its unit is active",
                in_flight=not comes and not view.starting,
                blocked=view.phase is Phase.UNKNOWN or view.quarantined,
            )
        )
    return steps


def _by_port(specs: Iterable[ServiceSpec]) -> dict[int | None, list[ServiceSpec]]:
    """Who listens where; what has no port is in nobody's way."""
    found: dict[int | None, list[ServiceSpec]] = {}
    for spec in specs:
        if spec.port is not None:
            found.setdefault(spec.port, []).append(spec)
    return found


def _same_port(one: ServiceSpec, other: ServiceSpec) -> bool:
    """Do two services that have the same port number get into each other's way?"""
    if one.id == other.id:
        return False
    return one.host == other.host or not ANYWHERE.isdisjoint((one.host, other.host))


def _clashes(order: list[str], given: PlanInput) -> list[Reason]:
    """What can never start as things are: a circle of dependencies, and a port that another wanted service has."""
    reasons: list[Reason] = []
    taken = _by_port(v.spec for s in order if not _must_come(v := given.services[s]) and v.spec is not None)
    later = set(order)
    for service in order:
        view = given.services[service]
        spec = view.spec
        if view.quarantined:
            reasons.append(survivor(service))
        if spec is not None and _must_come(view):
            if circle := sorted(d for d in spec.depends_on if d in later):
                reasons.append(_circle(spec, circle))
            listening = taken.setdefault(spec.port, []) if spec.port is not None else []
            holder = next((other for other in listening if _same_port(other, spec)), None)
            if holder is not None:
                reasons.append(_port_taken(spec, holder))
            else:
                listening.append(spec)
        later.discard(service)
    return reasons


def _circle(spec: ServiceSpec, circle: list[str]) -> Reason:
    return Reason(
        code="dependency_cycle",
        message=f"cannot start {spec.id}: it depends on {', '.join(circle)}, which cannot start before it",
        hint=f"break the circle in services/{spec.id}.yaml",
        service=spec.id,
        details={"depends_on": circle},
    )


def _port_taken(spec: ServiceSpec, holder: ServiceSpec) -> Reason:
    return Reason(
        code="port_conflict",
        message=f"cannot start {spec.id}: port {spec.port} belongs to {holder.id}, which is wanted beside it",
        hint=f"give one of them another `port:`, or stop {holder.id} first",
        service=spec.id,
        details={"port": spec.port, "holder": holder.id},
    )


def _why_start(spec: ServiceSpec, devices: tuple[str, ...], given: PlanInput) -> str:
    there = [given.budgets[u] for u in devices if u in given.budgets]  # one of them may have vanished meanwhile
    where = ", ".join(f"device {budget.index}" for budget in there)
    return f"wanted, {spec.vram_mib or 0} MiB on {where}" if where else "wanted"


# -- forecast -------------------------------------------------------------------------------------------------


def forecast(
    order: list[str], placements: Mapping[str, tuple[str, ...]], given: PlanInput
) -> tuple[DeviceForecast, ...]:
    """Each device once all that leaves has left and all that comes is up."""
    needed: dict[str, dict[str, int]] = {uuid: {} for uuid in given.budgets}
    for service in order:
        view = given.services[service]
        devices = placements.get(service, view.devices)
        for uuid in devices:
            if uuid in needed:
                estimate = share(view.needed_mib, len(devices))
                held = 0 if service in placements else given.budgets[uuid].held.get(service, 0)
                needed[uuid][service] = max(estimate, held)
    return tuple(
        DeviceForecast(
            uuid=uuid,
            total_mib=budget.total_mib,
            needed_mib=sum(needed[uuid].values()),
            headroom_mib=budget.capacity_mib - sum(needed[uuid].values()),
            services=needed[uuid],
        )
        for uuid, budget in sorted(given.budgets.items(), key=lambda item: item[1].index)
    )
