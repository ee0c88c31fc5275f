"""The world: what was observed, each fact with the time it was observed (`at`, CLOCK_BOOTTIME seconds).

Owns the shapes only; `core.engine` folds events into them. Nothing here was asked for or assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Active(StrEnum):
    """systemd's ActiveState; a supervised subprocess reports the same words."""

    ACTIVE = "active"
    ACTIVATING = "activating"
    DEACTIVATING = "deactivating"
    INACTIVE = "inactive"
    FAILED = "failed"
    UNKNOWN = "unknown"  # the backend cannot say at the moment


class Ended(StrEnum):
    """How a unit's last run came to its end."""

    EXIT = "exit"  # by itself: a crash, or an exit 0 nobody asked for
    JOB = "job"  # a stop (or restart) job, ours or a person's


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFact:
    """One unit `gpumod-<service>.service`, or one supervised subprocess."""

    service: str
    active: Active
    at: float
    sub: str = ""
    main_pid: int | None = None
    invocation: str = ""  # new for every start
    result: str = ""  # systemd's Result: success, exit-code, signal, oom-kill, timeout, …
    exit_code: int | None = None  # exit status, or the signal's number when result is signal
    ended: Ended | None = None
    since: float | None = None  # when it reached this state, if the backend knows
    pids: tuple[int, ...] = ()  # members of its cgroup or process group, when the backend was asked

    @property
    def gone(self) -> bool:
        """No process of this unit is left. A manager gives up on a unit at last, whoever survived in it."""
        return self.active in (Active.INACTIVE, Active.FAILED) and not self.pids


class Answer(StrEnum):
    """What a health probe met."""

    HEALTHY = "healthy"  # 2xx from our own listener
    LOADING = "loading"  # 503
    UNHEALTHY = "unhealthy"  # any other status, a redirect included
    REFUSED = "refused"  # nobody listens (yet)
    TIMEOUT = "timeout"
    INVALID = "invalid"  # not HTTP, or it never ends
    STRANGER = "stranger"  # the listener is not in the unit's cgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFact:
    """The newest probe of a service, with streaks folded in by the engine."""

    service: str
    answer: Answer
    at: float  # when the answer was complete
    invocation: str = ""  # the unit's run that was probed; another run's answer says nothing
    status: int | None = None
    detail: str = ""
    good: int = 0  # consecutive healthy answers
    bad: int = 0  # consecutive others

    @property
    def told(self) -> str:
        """What it met, in words."""
        detail = self.detail or (str(self.status) if self.status is not None else "")
        return str(self.answer) + (f" ({detail})" if detail else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFact:
    """One process the driver lists on a device."""

    pid: int
    used_mib: int | None  # None: the driver does not say (WSL, some containers)
    service: str | None = None  # whose unit it belongs to
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthFact:
    """What the driver says of a device's health; None and False also where it says nothing."""

    temperature_c: int | None = None
    slowdown_c: int | None = None  # from here on the hardware slows itself down
    shutdown_c: int | None = None  # here it switches itself off
    thermal_slowdown: bool = False  # the hardware slows itself down now, for its heat
    ecc_volatile: int | None = None  # uncorrected memory errors since the driver was loaded
    ecc_aggregate: int | None = None  # … in the device's life
    reset_needed: bool = False  # damaged memory is taken out of use at the next reset
    remap_failed: bool = False  # … and cannot be: no spare row was left


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFact:
    """One sample of one device."""

    uuid: str
    index: int
    name: str
    total_mib: int
    used_mib: int
    at: float  # when the sample was taken
    processes: tuple[ProcessFact, ...] = ()
    lost: str = ""  # why it cannot be used, empty when it can
    health: HealthFact = HealthFact()  # looked at less often than the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesFact:
    """One sample of all devices."""

    at: float
    backend: str  # nvml | simulated | none
    devices: tuple[DeviceFact, ...] = ()
    error: str = ""  # why there is no (fresh) sample; devices then holds the last good one


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectFact:
    """What must be known about one service before it may be started."""

    service: str
    port_holder: str = ""  # who listens on its port although it should be free; empty = nobody or the unit itself
    error: str = ""  # why it could not be looked at
    host_unknown: str = ""  # why its host name stands for no address
    file_missing: str = ""  # the required file (or program) that is absent or unreadable, with the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFact:
    """The host's memory: what could be taken without swapping, what there is, and what services were seen to hold of it
    (memory that only their end gives back). A service that is not named was not looked at."""

    at: float
    mem_available_mib: int
    mem_total_mib: int = 0
    services: Mapping[str, int] = field(default_factory=dict)  # MiB
