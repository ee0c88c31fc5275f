"""Operations: user-visible, journalled runs of a plan, and the steps they show.

Owns the records and how a fresh plan is merged into the steps already shown. Which steps there are is the
planner's decision; what they lead to is the engine's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gpumodd.core.desired import Desired
from gpumodd.core.problems import Reason
from gpumodd.core.specs import OnFailure


class Verb(StrEnum):
    """What a step does: one command, or one wait."""

    INSPECT = "inspect"
    DRAIN = "drain"
    STOP = "stop"
    SLEEP = "sleep"
    WAIT_RELEASE = "wait_release"
    START = "start"
    WAKE = "wake"
    WAIT_READY = "wait_ready"


class StepState(StrEnum):
    """Where a step is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"  # the world turned out not to need it
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def open(self) -> bool:
        """It may still happen."""
        return self in (StepState.PENDING, StepState.RUNNING)


class Kind(StrEnum):
    """Why an operation exists."""

    SWITCH = "switch"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    SLEEP = "sleep"
    WAKE = "wake"
    HEAL = "heal"
    RESTORE = "restore"


class State(StrEnum):
    """Where an operation is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"

    @property
    def open(self) -> bool:
        """It has not ended."""
        return self in (State.PENDING, State.RUNNING)


StepKey = tuple[Verb, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """A step the world still needs: `after` names other planned steps that must be over first."""

    verb: Verb
    service: str
    after: tuple[StepKey, ...] = ()
    why: str = ""
    in_flight: bool = False  # its command was given, or its wait has begun
    blocked: bool = False  # nothing the plan does will make room for it

    @property
    def key(self) -> StepKey:
        """What it is, whatever its id."""
        return (self.verb, self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step as an operation shows it."""

    id: str
    verb: Verb
    service: str
    after: tuple[str, ...] = ()
    state: StepState = StepState.PENDING
    why: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    error: str | None = None
    code: str = ""  # what `error` is about
    back: bool = False  # a step of the way back, after a failure or a cancellation

    @property
    def key(self) -> StepKey:
        """What it is, whatever its id."""
        return (self.verb, self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an operation did not reach its target."""

    reason: Reason
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One run of a plan towards `target`.

    `scope` limits it to these services, None means all. `before` is what was desired when it began and `wish` what it
    made of that: a rollback or a cancellation undoes the difference. `returning` is the state it will end in then.
    """

    id: str
    kind: Kind
    target: str
    created_at: float
    before: Desired
    wish: Desired = field(default_factory=Desired)
    state: State = State.RUNNING
    actor: str = ""
    on_failure: OnFailure = OnFailure.ROLLBACK
    force: bool = False
    quiesce: bool = True
    scope: tuple[str, ...] | None = None
    goals: tuple[str, ...] = ()  # services that must be ready at its end
    restarts: tuple[str, ...] = ()  # services that must go before they may come
    attempted: tuple[str, ...] = ()  # services it has given a start command
    abandoned: tuple[str, ...] = ()  # services that would not end: it goes on without them
    kept: tuple[str, ...] = ()
    passed: tuple[Reason, ...] = ()  # what spoke against it and was let through by force or `overcommit: warn`
    steps: tuple[Step, ...] = ()
    failure: Failure | None = None
    returning: State | None = None
    turned_at: float | None = None  # when the way back began
    logs_of: str | None = None  # a service whose last words are still being read
    blocked_since: float | None = None
    finished_at: float | None = None
    details: dict[str, object] = field(default_factory=dict)

    @property
    def last_step_at(self) -> float:
        """When the newest of its steps was over."""
        return max((s.finished_at for s in self.steps if s.finished_at is not None), default=self.created_at)

    def covers(self, service: str) -> bool:
        """Is this service its business?"""
        return service not in self.abandoned and (self.scope is None or service in self.scope)

    def concerns(self, verb: Verb, service: str) -> bool:
        """Is this step its business? What goes is, in its scope; what comes only if it is one of its goals."""
        return self.covers(service) and (verb in (Verb.STOP, Verb.WAIT_RELEASE) or service in self.goals)

    def done(self, verb: Verb, *, back: bool = False) -> tuple[str, ...]:
        """The services for which a step with this verb was completed, on the way there or on the way back, sorted."""
        done = (s for s in self.steps if s.verb is verb and s.back is back and s.state is StepState.DONE)
        return tuple(sorted({s.service for s in done}))


def merge(
    operation: Operation,
    planned: Iterable[PlannedStep],
    *,
    over: Callable[[StepKey], bool],
    at: float,
) -> Operation:
    """Bring an operation's steps in line with what a fresh plan still needs.

    An open step that the plan no longer names is done when `over` says that its purpose is fulfilled, else it
    is skipped (or cancelled, if it had begun). A planned step that no open step stands for is added; so is one that
    has to wait again although it had begun.
    """
    wanted = {step.key: step for step in planned}
    begun: list[Step] = []
    pending: dict[StepKey, Step] = {}
    for step in operation.steps:
        plan = wanted.get(step.key)
        if not step.state.open:
            begun.append(step)
        elif plan is None or (step.state is StepState.RUNNING and plan.after):
            begun.append(_closed(step, fulfilled=plan is None and over(step.key), at=at))
        elif step.state is StepState.RUNNING:
            begun.append(step)
        else:
            pending[step.key] = step
    ids = {s.key: s.id for s in (*begun, *pending.values()) if s.state.open}
    number = len(operation.steps)
    for key in wanted:
        if key not in ids:
            number += 1
            ids[key] = f"{operation.id}.{number}"
            pending[key] = Step(id=ids[key], verb=key[0], service=key[1], back=operation.turned_at is not None)
    # What has begun stays where it is; the rest stands as the plan has it, each after what it waits for.
    steps = [*begun, *(pending[key] for key in wanted if key in pending)]
    steps = [_updated(s, wanted[s.key], ids, at) if s.state.open and s.key in wanted else s for s in steps]
    merged = tuple(_in_order(steps))
    return operation if merged == operation.steps else replace(operation, steps=merged)


def let_through(operation: Operation, reasons: Iterable[Reason]) -> Operation:
    """Record what spoke against a start that was given all the same; the same reason counts once."""
    known = {(r.code, r.service, r.device) for r in operation.passed}
    new = tuple(r for r in reasons if (r.code, r.service, r.device) not in known)
    return replace(operation, passed=(*operation.passed, *new)) if new else operation


def close(operation: Operation, state: StepState, at: float, *, error: str | None = None) -> Operation:
    """End every open step in this state."""
    steps = tuple(
        replace(s, state=state, finished_at=at, error=error or s.error) if s.state.open else s for s in operation.steps
    )
    return replace(operation, steps=steps)


def fail_step(operation: Operation, service: str, verbs: tuple[Verb, ...], why: Reason, at: float) -> Operation:
    """Mark the step of this service that went wrong as failed: the newest one with one of these verbs that had
    begun and did not get to its end, else the first that was to come."""
    mine = [s for s in operation.steps if s.service == service and s.verb in verbs]
    begun = [s for s in mine if s.state in (StepState.RUNNING, StepState.CANCELLED)]
    failed = begun[-1] if begun else next((s for s in mine if s.state.open), None)
    if failed is None:
        return operation
    told = replace(failed, state=StepState.FAILED, finished_at=at, error=why.message, code=why.code)
    return replace(operation, steps=tuple(told if s is failed else s for s in operation.steps))


def _closed(step: Step, *, fulfilled: bool, at: float) -> Step:
    if fulfilled:
        return replace(step, state=StepState.DONE, started_at=step.started_at or at, finished_at=at)
    state = StepState.SKIPPED if step.state is StepState.PENDING else StepState.CANCELLED
    return replace(step, state=state, finished_at=at)


def _in_order(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps; one that was over before its time waited for no more than what stands before it."""
    passed: set[str] = set()
    for step in steps:
        after = tuple(id for id in step.after if id in passed)
        yield step if after == step.after else replace(step, after=after)
        passed.add(step.id)


def _updated(step: Step, planned: PlannedStep, ids: dict[StepKey, str], at: float) -> Step:
    after = tuple(ids[key] for key in planned.after if key in ids)
    if planned.in_flight and step.state is StepState.PENDING:
        step = replace(step, state=StepState.RUNNING, started_at=at)
    # What a running step waited for stays visible; a pending one shows what it still waits for.
    after = step.after if step.after and not after else after
    same = (step.why, step.after) == (planned.why, after)
    return step if same else replace(step, why=planned.why, after=after)
