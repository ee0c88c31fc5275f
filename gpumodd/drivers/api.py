"""The driver interface: pure functions from a service to what the shell needs to run it.

A driver never starts, stops or asks anything. It returns data, so a third-party driver cannot block the
event loop and is tested without fakes. What the shell does with that data is in `runtime` and `adapters`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from gpumodd.core.specs import ServiceSpec


class DriverError(ValueError):
    """A service its driver cannot run: `message` says what, `hint` what would help, `field` the YAML key."""

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFile:
    """What one unit must say. Values are plain; quoting is the renderer's business.

    `argv[0]` is an absolute path or a bare program name; a bare name is resolved on PATH when rendering.
    """

    service: str
    description: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()  # the service's own `env:`, after what the driver needs
    working_directory: str | None = None
    stop_timeout_s: float = 30.0
    kill_signal: str = "SIGTERM"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec:
    """Where readiness shows: GET http://host:port/path; 2xx is healthy, `loading_statuses` still loading."""

    host: str
    port: int
    path: str
    timeout_s: float
    loading_statuses: tuple[int, ...] = (503,)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverContext:
    """What a driver may know about the machine when it renders."""

    command: tuple[str, ...] = ()  # drivers.<name>.command of gpumodd.yaml
    settings: Mapping[str, Any] = field(default_factory=dict)  # the rest of that section


@runtime_checkable
class Driver(Protocol):
    """One runtime.

    `name` is what `driver:` says in YAML; `options` is a frozen dataclass type (all fields defaulted) that
    `config` validates a service's `options:` with.
    """

    name: str
    options: type

    def check(self, spec: ServiceSpec, options: Any) -> list[DriverError]:
        """What is wrong with this service, offline; empty when nothing is."""
        ...

    def unit_file(
        self,
        spec: ServiceSpec,
        options: Any,
        context: DriverContext,
        *,
        args: tuple[str, ...],
        env: Mapping[str, str],
    ) -> UnitFile:
        """The command line and environment; raises DriverError."""
        ...

    def probe(self, spec: ServiceSpec, options: Any) -> ProbeSpec | None:
        """The health probe, or None when ready means active."""
        ...

    def requires_file(self, spec: ServiceSpec, options: Any) -> str | None:
        """The absolute path that must be readable before a start, if any."""
        ...

    def device_env(self, uuids: tuple[str, ...]) -> Mapping[str, str]:
        """The environment that pins a service to these devices."""
        ...


@runtime_checkable
class Estimating(Protocol):
    """What a driver can do beside that: tell how much device memory a service takes, from its model's files.

    The shell reads their headers; the driver gets what they say, by path: a `gpumodd.estimate.gguf.Header` or a
    `gpumodd.estimate.checkpoint.Checkpoint`.
    """

    def model_files(
        self, spec: ServiceSpec, options: Any, *, args: tuple[str, ...], env: Mapping[str, str]
    ) -> tuple[str, ...]:
        """The absolute paths of the models an estimate needs; none when none can be made."""
        ...

    def estimate_mib(
        self,
        spec: ServiceSpec,
        options: Any,
        *,
        args: tuple[str, ...],
        env: Mapping[str, str],
        models: Mapping[str, Any],
        context: int | None = None,
    ) -> int:
        """What it takes on all its devices together; with `context`, as if that were its context length.

        Raises ValueError when these models allow no estimate.
        """
        ...
