"""What a person configured, as the core sees it: services, modes, policy.

Owns the frozen shapes only. Reading and validating YAML is `config`'s business; by the time a spec
exists here it is complete, defaulted and consistent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class OnLeave(StrEnum):
    """What a switch does with a service that leaves."""

    STOP = "stop"
    SLEEP = "sleep"


class OnFailure(StrEnum):
    """What an operation does when an incoming service fails."""

    ROLLBACK = "rollback"
    KEEP = "keep"
    STOP = "stop"


class VramSource(StrEnum):
    """Where a service's memory figure comes from."""

    DECLARED = "declared"
    ESTIMATED = "estimated"
    LEARNED = "learned"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSpec:
    """How a ready service is watched: `failures` bad answers in a row degrade it, `recoveries` good ones mend it."""

    path: str = "/health"
    interval_s: float = 15.0
    timeout_s: float = 5.0
    failures: int = 3
    recoveries: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """One managed model server."""

    id: str
    name: str = ""
    driver: str = "exec"
    model: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None  # without one, ready = the unit is active
    vram_mib: int | None = None  # None: nobody knows, and a start is refused
    vram_source: VramSource = VramSource.DECLARED
    ram_mib: int = 0
    context: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()  # smaller contexts and the vram_mib with each; empty: it does not follow
    depends_on: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = None  # UUIDs or decimal indexes as text; None = auto
    device_count: int = 1
    sleep: str = "none"
    on_leave: OnLeave = OnLeave.STOP
    health: HealthSpec = field(default_factory=HealthSpec)
    startup_timeout_s: float = 300.0
    stop_timeout_s: float = 30.0
    priority: int = 50
    pinned: bool = False
    aliases: tuple[str, ...] = ()
    requires_file: str | None = None  # absolute path that must be readable before a start
    fingerprint: str = ""  # changes when anything that reaches the unit changes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSpec:
    """A named set of services."""

    id: str
    name: str = ""
    description: str = ""
    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimit:
    """What services may hold together on one device, named by UUID or by its index as text; one figure is set."""

    device: str
    mib: int | None = None
    percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The `policy:` section of gpumodd.yaml."""

    vram_reserve_mib: int = 512
    vram_limit_mib: int | None = None  # what services may hold together on one device
    vram_limit_percent: float | None = None  # the same as a share of the device; at most one is set
    vram_limits: tuple[DeviceLimit, ...] = ()  # or device by device
    ram_reserve_mib: int = 2048
    overcommit: str = "refuse"  # refuse | warn
    on_failure: OnFailure = OnFailure.ROLLBACK
    drift: str = "heal"  # heal | report
    quiesce_s: float = 0.0
    release_timeout_s: float = 60.0
    restore_mode_at_start: bool = True
    placement: str = "vram_based"


BLANK = ModeSpec(id="blank", name="Blank", description="everything stopped, all memory released")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Everything configured, immutable; a reload makes a new one."""

    services: Mapping[str, ServiceSpec] = field(default_factory=lambda: MappingProxyType({}))
    modes: Mapping[str, ModeSpec] = field(default_factory=lambda: MappingProxyType({"blank": BLANK}))
    policy: Policy = field(default_factory=Policy)
