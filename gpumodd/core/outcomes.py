"""Outcomes: what counts as an operation's failure, in words and numbers, and what its end means. Pure functions."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from gpumodd.core import world
from gpumodd.core.desired import Claim, Desired, undone
from gpumodd.core.effects import Announce, Effect, OperationChanged, StepChanged
from gpumodd.core.events import UnitStarted, UnitStopped
from gpumodd.core.facts import Answer
from gpumodd.core.operations import Kind, Operation, PlannedStep, State, Step, StepState, Verb
from gpumodd.core.ops import Command
from gpumodd.core.plans import Plan
from gpumodd.core.problems import Reason
from gpumodd.core.state import State as EngineState
from gpumodd.core.state import Track

# -- reasons --------------------------------------------------------------------------------------------------


def start_failed(event: UnitStarted) -> Reason:
    """A start's job ended badly, or the backend refused it."""
    return Reason(
        code="driver_error" if event.error else "unit_failed",
        message=f"cannot start {event.service}: {event.error or f'its start job ended {event.result!r}'}",
        hint=f"`gpumodctl service logs {event.service}` shows its last words",
        service=event.service,
        details={"command": "start", "result": event.result},
    )


def stop_refused(event: UnitStopped) -> Reason:
    """The backend refused a stop."""
    return Reason(
        code="driver_error",
        message=f"cannot stop {event.service}: {event.error}",
        hint="`gpumodctl status` shows whether the service manager answers",
        service=event.service,
        details={"command": "stop", "result": event.result},
    )


def not_ready(state: EngineState, service: str, track: Track) -> Reason:
    """The startup timeout passed; the last answer of the probe says how far it got."""
    spec = state.catalog.services[service]
    probe = track.probe
    seen = "its health was never asked" if probe is None else f"last answer: {probe.told}"
    if probe is not None and probe.answer is Answer.STRANGER:
        return Reason(
            code="port_conflict",
            message=f"{service} was not ready in {spec.startup_timeout_s:g} s: a stranger answers on port {spec.port}",
            hint=f"end that program, or change `port:` in services/{service}.yaml",
            service=service,
            details={"port": spec.port, "startup_timeout_s": spec.startup_timeout_s},
        )
    return Reason(
        code="health_timeout",
        message=f"{service} was not ready after {spec.startup_timeout_s:g} s, {seen}",
        hint=f"raise `startup_timeout_s:`, or see `gpumodctl service logs {service}`",
        service=service,
        details={
            "startup_timeout_s": spec.startup_timeout_s,
            "answer": str(probe.answer) if probe is not None else None,
            "status": probe.status if probe is not None else None,
        },
    )


def unsaved(why: str) -> Reason:
    """The state file cannot be written."""
    return Reason(
        code="state_unwritable",
        message=f"cannot begin anything: {why}",
        hint="make room or mend the permissions of the state directory; running services are not affected",
    )


# -- what spoils an operation ---------------------------------------------------------------------------------


def spoils(state: EngineState, op: Operation, service: str) -> Reason | None:
    """Why this service makes the operation fail, or None: it must have gone wrong under the operation's hands."""
    track = state.tracks[service]
    if not op.covers(service):
        return None
    if service in op.goals and (obstacle := world.left_alone(state, service)) is not None:
        return _left_alone(service, obstacle, state.tracks[obstacle])
    reason = track.failure
    if reason is None or track.failed_at is None or track.failed_at < op.created_at:
        return None
    if leaves(reason):
        touched = any(s.service == service and s.verb in (Verb.STOP, Verb.WAIT_RELEASE) for s in op.steps)
        return reason if touched else None
    if service not in op.goals:
        return None
    waited = reason.code in ("health_timeout", "port_conflict")
    return reason if service in op.attempted or waited else None


def leaves(reason: Reason) -> bool:
    """Is it about a service on its way out rather than in?"""
    return reason.code in ("vram_not_released", "stop_failed") or reason.details.get("command") == "stop"


def _left_alone(service: str, obstacle: str, track: Track) -> Reason:
    """It was wanted ready, and nothing will start it any more, or something that it needs."""
    if not track.stopped_outside and track.failure is not None:
        return track.failure
    how = "was stopped without gpumodd" if track.stopped_outside else "failed too often and is left alone"
    return Reason(
        code="stopped_outside" if track.stopped_outside else "gave_up",
        message=f"{obstacle} {how}",
        hint=f"`gpumodctl service start {service}` tries again",
        service=service,
    )


def blocked_too_long(state: EngineState, op: Operation, proposed: Plan) -> Reason | None:
    """Nothing of the operation can go on, and has not for as long as a release may take."""
    if state.unsaved and op.returning is None and not touched(state, op):
        return unsaved(state.unsaved)
    timeout_s = state.catalog.policy.release_timeout_s
    if op.blocked_since is None or op.blocked_since + timeout_s > state.at:
        return None
    if state.unsaved:
        return unsaved(state.unsaved)
    mine = [r for r in proposed.blocked if r.service is None or op.covers(r.service)]
    if mine and not state.units_lost:
        return mine[0]
    return Reason(
        code="units_unreachable",
        message=f"{op.kind} {op.target} could not go on for {timeout_s:g} s: {state.units_lost or 'nothing can begin'}",
        hint="`gpumodctl status` shows what stands in the way",
    )


def touched(state: EngineState, op: Operation) -> bool:
    """Has it done anything yet, or is it about to?"""

    def done(step: Step) -> bool:
        if step.verb is Verb.INSPECT or step.state is not StepState.RUNNING:
            return step.verb is not Verb.INSPECT and step.state is StepState.DONE
        track = state.track(step.service)
        return track.command is not Command.IDLE or track.unseen_since is not None

    return any(done(step) for step in op.steps)


def policy_of(op: Operation) -> Literal["rollback", "keep", "stop"] | None:
    """What the operation does when a service fails; None: end as failed once the rest is done."""
    if op.kind in (Kind.SWITCH, Kind.START, Kind.RESTART):
        return op.on_failure.value
    return None


# -- ends -----------------------------------------------------------------------------------------------------


def wish_after(op: Operation, end: State, now: Desired) -> Desired:
    """What is desired once an operation turns back: what it has asked for is undone. A switch that is to stop what it
    had started goes nowhere instead; what it had kept, and what others asked for since, goes on."""
    if end is not State.FAILED or op.kind is not Kind.SWITCH:
        return undone(now, before=op.before, after=op.wish)
    kept = [Claim(kind="manual", owner=s, services=(s,)) for s in op.kept if s in now.claimed()]
    others = [c for c in now.claims if c not in kept and (c not in op.wish.claims or c.kind in ("lease", "job"))]
    return Desired(claims=(*kept, *others), stopped=now.stopped)


def mode_after(op: Operation, end: State, before: str | None) -> str | None:
    """The mode last reached in full, once this switch has ended so."""
    match end:
        case State.SUCCEEDED:
            return op.target
        case State.FAILED:
            return None
        case _:
            return before


def unrestored(op: Operation, services: Iterable[str]) -> Operation:
    """With these among those that its way back could not bring back; without a way back there are none."""
    known = op.details.get("unrestored", ())
    lost = sorted({*services, *(known if isinstance(known, list) else ())})
    return replace(op, details={**op.details, "unrestored": lost}) if lost and op.turned_at is not None else op


def names(steps: Iterable[PlannedStep]) -> list[str]:
    """The services of these steps, each once, sorted."""
    return sorted({s.service for s in steps})


def announcements(before: Operation | None, now: Operation) -> list[Effect]:
    """What subscribers are told of a changed operation: the operation itself, and each step that changed state."""
    told: list[Effect] = []
    old = {s.id: s.state for s in before.steps} if before is not None else {}
    for step in now.steps:
        if old.get(step.id) is not step.state:
            told.append(Announce(change=StepChanged(operation=now, step=step)))
    if before is None or before.state is not now.state or before.returning is not now.returning:
        told.append(Announce(change=OperationChanged(operation=now)))
    return told
