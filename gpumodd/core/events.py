"""What can happen: every fact, answer and wish that reaches the engine.

Past tense, frozen, each with `at` (CLOCK_BOOTTIME seconds). The engine learns of the world and of time
through these alone.
"""

from dataclasses import dataclass

from gpumodd.core.facts import DevicesFact, HostFact, InspectFact, ProbeFact, UnitFact
from gpumodd.core.operations import Operation
from gpumodd.core.specs import Catalog, OnFailure
from gpumodd.core.state import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""

    at: float


# -- observations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsObserved(Event):
    """Units were seen in these states; with `complete`, a unit not listed does not exist."""

    facts: tuple[UnitFact, ...]
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsLost(Event):
    """The service manager is out of reach."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(Event):
    """A health probe was answered, or met silence."""

    fact: ProbeFact


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesSampled(Event):
    """Device memory was sampled, and the host's beside it; processes carry the service they belong to."""

    fact: DevicesFact
    host: HostFact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogLoaded(Event):
    """A (new) valid configuration is in force."""

    catalog: Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRejected(Event):
    """The configuration on disk cannot be used; the last good one stays in force. Each error says where it is."""

    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked(Event):
    """Time passed; a deadline may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """The machine slept this long, between the event before and this one; `at` counts sleep, processes do not."""

    slept_s: float


# -- how effects ended ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectEnded(Event):
    """The terminal event of an effect; each effect that has an `id` yields exactly one.

    `dropped`: it was not carried out, because what has to be durable before it could not be saved.
    """

    effect: int
    dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStarted(EffectEnded):
    """A StartUnit ended: `result` is systemd's job result, `error` a refusal by the backend."""

    service: str
    result: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStopped(EffectEnded):
    """A StopUnit ended."""

    service: str
    result: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitKilled(EffectEnded):
    """A KillUnit was delivered, or refused with `error`."""

    service: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected(EffectEnded):
    """An Inspect ended: everything a preflight judges, taken after it was asked for."""

    devices: DevicesFact
    host: HostFact | None
    services: tuple[InspectFact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsRead(EffectEnded):
    """A service's last words."""

    service: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFailed(Event):
    """The state file could not be written; what depended on it was not carried out."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveWorked(Event):
    """The state file can be written again."""


# -- wishes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Event):
    """Somebody asks; the engine answers with exactly one Reply effect that carries `request`."""

    request: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRequested(Request):
    """Make this mode true."""

    mode: str
    force: bool = False
    quiesce: bool = True
    on_failure: OnFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRequested(Request):
    """Start, stop or restart one service (`kind`), with what it needs or what needs it."""

    kind: str
    service: str
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(Request):
    """End an operation: back to what was desired before it."""

    operation: str


# -- the daemon's own life ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered(Event):
    """The state file was read: what was desired and which operations were open when the last daemon ended."""

    snapshot: Snapshot | None
    operations: tuple[Operation, ...] = ()
    same_boot: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationCompleted(Event):
    """Units and devices have been seen in full at least once; decisions may begin."""
