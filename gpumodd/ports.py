"""The ports: what the shell needs from the outside world, as Protocols.

Each has one adapter per foreign system in `adapters/`, and a contract suite in `tests/contracts` that every
implementation passes. Foreign errors stop in the adapter: a port raises `PortError` or nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gpumodd.core.facts import DevicesFact, HostFact, ProbeFact, UnitFact
from gpumodd.drivers.api import ProbeSpec, UnitFile


class PortError(Exception):
    """A foreign system did not do what was asked: `code` for programs, `message` ("cannot …") and `hint` for people."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class JobResult(StrEnum):
    """How a start or stop job ended; systemd's words."""

    DONE = "done"
    CANCELED = "canceled"  # another job for the same unit replaced it
    TIMEOUT = "timeout"
    FAILED = "failed"
    DEPENDENCY = "dependency"
    SKIPPED = "skipped"
    LOST = "lost"  # the connection broke while waiting: nobody knows; a resync follows


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsChanged:
    """Units whose state changed; with `complete`, the whole list: a unit not in it does not exist."""

    facts: tuple[UnitFact, ...]
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsLost:
    """The service manager is out of reach; a complete UnitsChanged follows when it is back."""

    reason: str


UnitsEvent = UnitsChanged | UnitsLost


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What `Units.apply` changed on disk or in its table, by service id."""

    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()


class Units(Protocol):
    """Starts, stops and watches the processes of services.

    Use as an async context manager: inside it the connection (or the supervisor) lives. All methods take the
    service's id, never a unit name. Every method may raise PortError.
    """

    backend: str  # "systemd" | "process"

    async def __aenter__(self) -> "Units": ...

    async def __aexit__(self, *exc: object) -> None: ...

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[UnitsEvent]]:
        """State changes from now on; the first item is always a complete UnitsChanged."""
        ...

    async def apply(self, files: Mapping[str, UnitFile]) -> Applied:
        """Make these, and no other, units exist; never starts, stops or restarts one. A running unit without a
        file stays until it ends. Writes only what differs and reloads the manager at most once."""
        ...

    async def start(self, service: str, env: Mapping[str, str]) -> JobResult:
        """Start and wait for the matching job. `env` (the device selection) goes before the unit's own environment."""
        ...

    async def stop(self, service: str) -> JobResult:
        """Stop and wait for the matching job: SIGTERM, then SIGKILL after the unit's stop timeout."""
        ...

    async def kill(self, service: str) -> None:
        """SIGKILL every process of the unit."""
        ...

    async def reset_failed(self, service: str) -> None:
        """Forget a failed run, so that the unit counts as inactive."""
        ...

    async def refresh(self, service: str) -> None:
        """Read the unit's state anew and report it as an event, changed or not."""
        ...

    async def pids(self, service: str) -> tuple[int, ...]:
        """Every process of the unit, its children included; empty when it is gone."""
        ...

    def owner(self, pid: int) -> str | None:
        """The service whose unit this process belongs to; cheap enough for every process of every sample."""
        ...

    async def owns_listener(self, service: str, host: str, port: int) -> bool | None:
        """Does the socket listening there belong to the unit? None when nobody listens."""
        ...

    async def logs(self, service: str, *, lines: int, this_run: bool = False) -> list[str]:
        """The last lines the unit wrote, oldest first; with `this_run`, only those of its newest start."""
        ...

    def needs(self) -> str:
        """What of this backend is missing on this machine, or an empty string."""
        ...


class UnitFiles(Protocol):
    """Renders units for systemd; the configuration layer's renderer, passed in by the composition root."""

    def render(self, unit: UnitFile, *, environment_file: str) -> str:
        """The text of `gpumod-<service>.service`; raises PortError when a template fails."""
        ...

    def render_environment(self, env: Mapping[str, str]) -> str:
        """The text of a systemd EnvironmentFile, values quoted by its rules."""
        ...


class Devices(Protocol):
    """Samples device memory. Blocking calls stay on the adapter's own thread."""

    backend: str  # "nvml" | "simulated" | "none"

    async def sample(self, *, thorough: bool = False) -> DevicesFact:
        """One sample of all devices, `service` of each process still unset. Never raises for a missing driver, a
        lost GPU or a hung call: `error` and `lost` say so, and the last good figures stay with their old `at`.
        `thorough`: begun after this call, with a look at the devices' health, which may else be some seconds old."""
        ...

    def asleep(self) -> bool:
        """True when sampling would wake a GPU that the system has powered down."""
        ...

    def close(self) -> None: ...


class Prober(Protocol):
    """Asks one HTTP endpoint how it is."""

    async def probe(self, service: str, spec: ProbeSpec) -> ProbeFact:
        """One GET without keep-alive, redirects or retries; bounded in time and bytes; never raises."""
        ...


class Host(Protocol):
    """The machine: memory, files, ports, programs."""

    def memory(self) -> HostFact:
        """Of the host as a whole; raises PortError."""
        ...

    def held_mib(self, pids: Iterable[int]) -> int:
        """What these processes hold of it that only their end gives back; one that has ended holds nothing."""
        ...

    def missing_file(self, path: str) -> str:
        """Why this file cannot be read, or an empty string."""
        ...

    async def listener(self, host: str, port: int) -> str:
        """Who listens there ("pid 4711 (nginx)" as well as can be told), or an empty string."""
        ...


class PageCache(Protocol):
    """The kernel's page cache, where what was read once is found the next time."""

    async def size_mib(self, model: str) -> int:
        """What the model's files would take of it; 0 for what cannot be read."""
        ...

    async def read(self, model: str, wanted: Callable[[], bool]) -> int:
        """Read the model's files until they are through or no longer `wanted`; the MiB that were read. Never raises."""
        ...


class Clock(Protocol):
    """The only source of time."""

    def boottime(self) -> float:
        """CLOCK_BOOTTIME in seconds; goes on during suspend."""
        ...

    def suspended(self) -> float:
        """How much boottime is ahead of what processes have lived through: it grows while the machine sleeps."""
        ...

    def wall(self) -> float:
        """Unix time in seconds."""
        ...

    def boot_id(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOperation:
    """One row of the operations table: `record` is the encoded operation."""

    id: str
    open: bool
    record: bytes


class Store(Protocol):
    """The state file. Every write is durable when it returns; raises PortError(`state_unwritable`, …)."""

    async def load(self) -> bytes | None:
        """The last saved snapshot, or None in a fresh state file."""
        ...

    async def save(self, snapshot: bytes, operations: Collection[StoredOperation]) -> None:
        """Replace the snapshot and upsert these operations in one transaction."""
        ...

    async def operations(self, limit: int) -> list[StoredOperation]:
        """The newest operations, newest first."""
        ...

    async def close(self) -> None: ...


class EventLog(Protocol):
    """Keeps lines in a few bounded files. Nothing here waits for a disk and nothing raises: `trouble` says why what
    was given is not kept, until the next `begin`."""

    @property
    def trouble(self) -> str: ...

    @property
    def full(self) -> bool:
        """The file has reached its size: begin another one."""
        ...

    def begin(self, head: bytes) -> None:
        """Start a new file with this; the oldest ones make room."""
        ...

    def append(self, lines: bytes) -> None:
        """More for the file that was begun last."""
        ...

    def close(self) -> None:
        """End the file; waits for a moment at most."""
        ...


class Notifier(Protocol):
    """Tells the service manager how the daemon is (sd_notify)."""

    def ready(self) -> None: ...

    def status(self, text: str) -> None: ...

    def stopping(self) -> None: ...


Post = Callable[[object], Awaitable[None]]
