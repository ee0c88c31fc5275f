"""What the engine wants done: imperative, frozen, carried out by `runtime.dispatch`.

An effect with an `id` yields exactly one terminal event that carries it. Effects of one batch are carried out
in order as far as Save goes: what follows a Save waits until it is durable.
"""

from dataclasses import dataclass

from gpumodd.core.alternatives import Alternative
from gpumodd.core.operations import Operation, Step
from gpumodd.core.problems import Reason
from gpumodd.core.state import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Make this durable before anything after it in the batch is carried out."""

    snapshot: Snapshot
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUnit:
    """Start a service's unit on these devices (UUIDs)."""

    id: int
    service: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopUnit:
    """Stop a service's unit: SIGTERM, SIGKILL after its stop timeout."""

    id: int
    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KillUnit:
    """SIGKILL every process of a service's unit."""

    id: int
    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """Take the facts a preflight needs about these services, and fresh samples of devices and host."""

    id: int
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLogs:
    """Read the last lines of a service's newest run."""

    id: int
    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDevices:
    """Take a device sample now rather than at the next tick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshUnits:
    """Read these services' units anew and report them, changed or not."""

    services: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was turned down; nothing was touched."""

    code: str  # refused | not_found | conflict
    message: str
    hint: str = ""
    reasons: tuple[Reason, ...] = ()
    alternatives: tuple[Alternative, ...] = ()  # what would make it fit, best first
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to a Request: the operation's id, or a refusal."""

    request: int
    operation: str | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged:
    """A service went from one phase to another."""

    service: str
    before: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepChanged:
    """A step of an operation changed its state."""

    operation: Operation
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationChanged:
    """An operation began, turned back or ended."""

    operation: Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChanged:
    """Another mode is wanted, or the one last reached in full is another."""

    wanted: str | None
    reached: str | None
    was_wanted: str | None
    was_reached: str | None


Change = PhaseChanged | StepChanged | OperationChanged | ModeChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Tell subscribers what changed."""

    change: Change


Effect = Save | StartUnit | StopUnit | KillUnit | Inspect | ReadLogs | SampleDevices | RefreshUnits | Reply | Announce
