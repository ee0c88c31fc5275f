"""The shapes of operations, their steps, and what stands in their way. Published with `types`."""

from typing import Any

from msgspec import Struct, field

from gpumodd.wire.words import OperationKind, OperationState, StepState, StepVerb


class Reason(Struct, kw_only=True):
    """One thing that stands in the way of a plan, with its numbers in `details`."""

    code: str
    message: str
    hint: str = ""
    service: str | None = None
    device: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class OperationError(Struct, kw_only=True):
    """Why an operation or a step ended badly; `log` holds the service's last lines."""

    code: str
    message: str
    hint: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


class Step(Struct, kw_only=True):
    """One command or one wait of a plan; `after` names the steps that must be done before.

    `gate` is the one of them that ended last, which decided when this one could begin. `critical` steps are the chain
    that the operation's length is made of. `back` marks a step of the way back, `cause` what the step is there for.
    """

    id: str
    verb: StepVerb
    service: str | None = None
    device: str | None = None
    after: list[str] = field(default_factory=list)
    state: StepState = "pending"
    why: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    error: OperationError | None = None
    seconds: float | None = None
    gate: str | None = None
    critical: bool = False
    back: bool = False
    cause: str = ""


class WayBack(Struct, kw_only=True):
    """What an operation did after it had failed or was cancelled, to undo what it was asked for: service ids, sorted.

    `unrestored` are services that ran before and could not be brought back.
    """

    began_at: str
    started: list[str] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    slept: list[str] = field(default_factory=list)
    unrestored: list[str] = field(default_factory=list)


class Operation(Struct, kw_only=True):
    """A journalled run of a plan.

    `started` … `kept` are service ids, sorted: what was done towards the target. What was done on the way back, after
    a failure or a cancellation, is apart, in `back`. `steps` stand in an order in which they may run. `why` says who
    asked, or what for. An operation that was open when the daemon crashed goes on under its own id.
    `left` are services that would not end and were left as they are. `passed` is what spoke against it and was let
    through, by force or by `overcommit: warn`.
    """

    id: str
    kind: OperationKind
    target: str
    state: OperationState
    started: list[str] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    slept: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    error: OperationError | None = None
    created_at: str = ""
    finished_at: str | None = None
    seconds: float | None = None
    forced: bool = False
    passed: list[Reason] = field(default_factory=list)
    why: str = ""
    back: WayBack | None = None
