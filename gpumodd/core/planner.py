"""The planner: from the world to the wish, as a DAG of steps. Pure, total, deterministic.

`plan` looks at what is, what is wanted and how much memory there is, and returns what is still to be done, from
scratch, each time. Expected trouble is data: `blocked` says with numbers what cannot happen. The same function
serves a switch, a repair and a simulation.

Which devices a service gets is decided in `placement`, which releases a start waits for in `credits`.
"""

from collections.abc import Iterable, Mapping

from gpumodd.core.credits import gates as gates_of
from gpumodd.core.ledger import share
from gpumodd.core.operations import PlannedStep, StepKey, Verb
from gpumodd.core.phase import Phase
from gpumodd.core.placement import needed_mib, place
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
    placements, reasons = place(coming, leaving, given)
    reasons += _clashes(order, given)
    steps = _leave(leaving, specs, given)
    gates, blocked = gates_of(coming, leaving, placements, given)
    reasons += blocked
    passed = [r for r in reasons if r.service in given.lenient and r.code in PASSABLE]
    reasons = [r for r in reasons if r not in passed]
    refused = {r.service for r in reasons}
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
    rest = set(ids)
    done: list[str] = []
    while rest:
        free = [s for s in rest if not (set(specs[s].depends_on) & rest)] or sorted(rest)[:1]
        free.sort(key=lambda s: (-specs[s].priority, -(specs[s].vram_mib or 0), s))
        done.extend(free)
        rest.difference_update(free)
    return done


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


# -- leaving --------------------------------------------------------------------------------------------------


def _leave(leaving: list[ServiceView], specs: Mapping[str, ServiceSpec], given: PlanInput) -> list[PlannedStep]:
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
                after=((Verb.STOP, view.id),) if view.id in to_stop else (),
                why="its memory must be back before it counts as free",
                in_flight=view.id not in to_stop,
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
    going = {v.id: v for v in leaving}
    waiting = {s for s in order if not given.services[s].ready or _must_come(given.services[s])}
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
            after |= {(Verb.STOP, v.id) for v in leaving if not v.gone and _same_port(v.spec, spec)}
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


def _same_port(one: ServiceSpec | None, other: ServiceSpec) -> bool:
    if one is None or one.port is None or one.port != other.port or one.id == other.id:
        return False
    return one.host == other.host or not ANYWHERE.isdisjoint((one.host, other.host))


def _clashes(order: list[str], given: PlanInput) -> list[Reason]:
    """What can never start as things are: a circle of dependencies, and a port that another wanted service has."""
    reasons: list[Reason] = []
    taken = [v.spec for s in order if (v := given.services[s]).spec is not None and not _must_come(v)]
    earlier: set[str] = set()
    for service in order:
        view = given.services[service]
        spec = view.spec
        if view.quarantined:
            reasons.append(survivor(service))
        if spec is None or not _must_come(view):
            earlier.add(service)
            continue
        if circle := sorted(d for d in spec.depends_on if d in order and d not in earlier):
            reasons.append(_circle(spec, circle))
        holder = next((other for other in taken if _same_port(other, spec)), None)
        if holder is not None:
            reasons.append(_port_taken(spec, holder))
        else:
            taken.append(spec)
        earlier.add(service)
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
                estimate = share(needed_mib(view), len(devices))
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
