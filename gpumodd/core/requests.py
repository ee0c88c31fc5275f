"""Requests: what somebody asks for, turned into an intent, and an intent into an operation or a refusal.

The facts an intent is judged on are gathered first (effect `Inspect`): if they speak against it, it is refused and
nothing was touched.
"""

from collections.abc import Mapping, Sequence

from gpumodd.core import desired as wishes
from gpumodd.core import world
from gpumodd.core.alternatives import Alternative
from gpumodd.core.desired import Desired
from gpumodd.core.effects import Refusal
from gpumodd.core.events import ServiceRequested, SwitchRequested
from gpumodd.core.facts import InspectFact
from gpumodd.core.intents import Intent
from gpumodd.core.operations import Kind
from gpumodd.core.planner import plan
from gpumodd.core.plans import PASSABLE, Plan, PlanInput
from gpumodd.core.problems import Reason, survivor
from gpumodd.core.specs import ModeSpec
from gpumodd.core.state import State

PASSED_BY_FORCE = PASSABLE | {"quiesce_active"}


def for_switch(state: State, event: SwitchRequested) -> Intent | Refusal:
    """The intent to reach a mode."""
    mode = state.catalog.modes.get(event.mode)
    if mode is None:
        return not_found("mode", event.mode, state.catalog.modes)
    return Intent(
        kind=Kind.SWITCH,
        target=mode.id,
        mode=mode,
        on_failure=event.on_failure or state.catalog.policy.on_failure,
        requests=(event.request,),
        actor=event.actor,
        force=event.force,
        quiesce=event.quiesce and not event.force,
    )


def for_services(state: State, target: str, services: tuple[str, ...]) -> Intent:
    """The intent to have exactly these services, as a mode would: for simulations."""
    mode = ModeSpec(id=target, services=services)
    return Intent(kind=Kind.SWITCH, target=target, mode=mode, on_failure=state.catalog.policy.on_failure)


def for_service(state: State, event: ServiceRequested) -> Intent | Refusal:
    """The intent to start, stop or restart one service."""
    specs = state.catalog.services
    service = event.service
    kind = Kind(event.kind)
    known = service in specs or (service in state.tracks and state.tracks[service].unit is not None)
    if not known or (service not in specs and kind is not Kind.STOP):
        return not_found("service", service, specs)
    wanted = state.desired.services(specs)
    above = {
        s
        for s in wishes.dependents([service], specs) - {service}
        if s in wanted or (s in state.tracks and world.alive(state.tracks[s]))
    }
    needed = wishes.closure([service], specs)
    scope = {Kind.START: needed, Kind.STOP: {service, *above}, Kind.RESTART: {*needed, *above}}[kind]
    return Intent(
        kind=kind,
        target=service,
        on_failure=state.catalog.policy.on_failure,
        requests=(event.request,),
        actor=event.actor,
        force=event.force,
        quiesce=not event.force,
        scope=tuple(sorted(scope)),
        restarts=tuple(sorted({service, *above})) if kind is Kind.RESTART else (),
    )


def not_found(what: str, wanted: str, existing: Mapping[str, object]) -> Refusal:
    """The refusal for an id that does not exist, with those that do."""
    ids = ", ".join(sorted(existing)) or "none"
    return Refusal(code="not_found", message=f"cannot find {what} {wanted!r}", hint=f"existing: {ids}")


def plan_of(state: State, intent: Intent) -> tuple[Desired, Plan]:
    """What the intent would make of the world as it stands: the wish, and the plan towards it."""
    wish, given = given_of(state, intent)
    return wish, plan(given)


def given_of(state: State, intent: Intent) -> tuple[Desired, PlanInput]:
    """The wish, and what a plan towards it is made from."""
    wish = intent.wish(state.desired, state.catalog)
    specs = state.catalog.services
    mine = {s for s in wish.services(specs) if intent.covers(s)}
    return wish, world.plan_input(
        state,
        wish,
        restarts=restarts_of(state, intent),
        lenient=world.forced(state.active_operations()) | (mine if intent.force else set()),
        quiesce=False,  # judged as a reason of its own, below
        reach=world.reach_of(state, (intent, *state.active_operations())),
        extra_back=world.held_back(state, wish) - mine,
    )


def restarts_of(state: State, intent: Intent) -> frozenset[str]:
    """What has to go before it may come: what was asked to restart, and for a switch what runs but is unwell or runs
    an old definition, with what depends on that."""
    if intent.kind is not Kind.SWITCH:
        return frozenset(s for s in intent.restarts if s in state.tracks and not state.tracks[s].gone)
    wanted = intent.wish(state.desired, state.catalog).services(state.catalog.services)
    renewed = {s for s in wanted if world.phase_of(state, s) == "degraded" or world.stale(state, s)}
    above = wishes.dependents(renewed, state.catalog.services) & wanted if renewed else frozenset()
    return frozenset(renewed | {s for s in above if s in state.tracks and not state.tracks[s].gone})


def reasons_against(state: State, intent: Intent, proposed: Plan, facts: Sequence[InspectFact]) -> list[Reason]:
    """Everything that speaks against beginning, each with its numbers; force passes what it may."""
    mine = [r for r in proposed.blocked if r.service is None or intent.covers(r.service)]
    starts = starts_of(intent, proposed)
    by_service = {f.service: f for f in facts}
    for service in starts:
        if service in by_service:
            mine += _preflight(state, by_service[service])
    if intent.kind is Kind.STOP:
        mine += [survivor(s) for s in sorted(state.quarantined()) if intent.covers(s)]
    left = world.quiesce_left(state)
    if starts and left > 0 and intent.quiesce:
        mine.append(
            Reason(
                code="quiesce_active",
                message=f"cannot start yet: memory was released moments ago, {left:.1f} s of quiesce are left",
                hint=f"try again in {left:.0f} s, or pass --no-quiesce",
                details={"wait_s": round(left, 3)},
            )
        )
    if state.units_lost and (starts or proposed.steps):
        mine.append(
            Reason(
                code="units_unreachable",
                message=f"cannot start or stop anything: {state.units_lost}",
                hint="`systemctl --user status` shows whether the user manager runs",
            )
        )
    return [r for r in mine if not (intent.force and r.code in PASSED_BY_FORCE)]


def starts_of(intent: Intent, proposed: Plan) -> list[str]:
    """The services that would have to be started for it."""
    return sorted(
        s.service for s in proposed.steps if s.verb == "start" and not s.in_flight and intent.covers(s.service)
    )


def _preflight(state: State, fact: InspectFact) -> list[Reason]:
    spec = state.catalog.services[fact.service]
    reasons: list[Reason] = []
    if fact.error:
        reasons.append(
            Reason(
                code="driver_error",
                message=f"cannot start {spec.id}: {fact.error}",
                hint="`gpumodctl status` shows whether the service manager answers",
                service=spec.id,
            )
        )
    if fact.host_unknown:
        reasons.append(
            Reason(
                code="host_unknown",
                message=f"cannot start {spec.id}: {fact.host_unknown}",
                hint=f"correct `host:` in services/{spec.id}.yaml, or add the name to /etc/hosts",
                service=spec.id,
                details={"host": spec.host},
            )
        )
    if fact.port_holder:
        reasons.append(
            Reason(
                code="port_conflict",
                message=f"cannot start {spec.id}: port {spec.port} is taken by {fact.port_holder}",
                hint=f"end that program, or change `port:` in services/{spec.id}.yaml",
                service=spec.id,
                details={"port": spec.port, "holder": fact.port_holder},
            )
        )
    if fact.file_missing:
        reasons.append(
            Reason(
                code="file_missing",
                message=f"cannot start {spec.id}: {fact.file_missing}",
                hint=f"install it or put it there, or change services/{spec.id}.yaml",
                service=spec.id,
                details={"path": spec.requires_file},
            )
        )
    return reasons


def refusal(reasons: list[Reason], what: str, alternatives: Sequence[Alternative] = ()) -> Refusal:
    """All reasons in one refusal; the first one speaks, and the best alternative says what would help."""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    waits = [w for r in reasons if isinstance(w := r.details.get("wait_s"), float)]
    return Refusal(
        code="refused",
        message=f"{what} refused, nothing was touched: {reasons[0].message}{more}",
        hint=f"to make it fit, {alternatives[0].message}" if alternatives else reasons[0].hint,
        reasons=tuple(reasons),
        alternatives=tuple(alternatives),
        retry_after_s=max(waits) if waits and len(waits) == len(reasons) else None,
    )
