"""What a plan is made from and what it is made of. Shapes only; `planner` fills them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpumodd.core.costs import UNKNOWN, Costs
from gpumodd.core.ledger import Budget
from gpumodd.core.operations import PlannedStep
from gpumodd.core.phase import Phase
from gpumodd.core.problems import Reason
from gpumodd.core.specs import ServiceSpec

# Reasons that force, and `overcommit: warn`, let pass.
PASSABLE = frozenset({"vram_insufficient", "vram_unknown", "ram_insufficient"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """One service as the planner sees it."""

    id: str
    phase: Phase
    gone: bool  # no process of it is left
    spec: ServiceSpec | None = None  # None: a managed unit that nothing configures any more
    starting: bool = False  # a start's job is in flight
    stopping: bool = False  # a stop's job is in flight, or the unit is on its way down
    releasing: bool = False  # its memory has not come back yet
    quarantined: bool = False  # nothing ends it and nothing is asked of it; it holds what it holds
    restart: bool = False  # it must go before it may come
    devices: tuple[str, ...] = ()  # where it runs
    costs: Costs = UNKNOWN  # what loading and ending it took so far

    @property
    def ready(self) -> bool:
        """It serves, or at least it runs and has served."""
        return self.phase in (Phase.READY, Phase.DEGRADED)

    @property
    def needed_mib(self) -> int:
        """The device memory it takes in all, as far as is known."""
        return (self.spec.vram_mib or 0) if self.spec is not None else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """Everything a plan depends on."""

    services: Mapping[str, ServiceView]
    wanted: frozenset[str]
    budgets: Mapping[str, Budget]
    unread: str = ""  # why no device was ever seen, although there is something that should tell
    counted: bool = True  # False: nobody watches device memory (backend none), so it is not planned either
    host: Budget | None = None  # the host's memory, kept like a device's; None: not known, not judged
    lenient: frozenset[str] = frozenset()  # who may come with too little memory: forced, or `overcommit: warn`
    able: bool = True  # commands can be given: the service manager answers, the state file can be written
    paused: bool = False  # quiesce: no start yet


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceForecast:
    """One device once the plan is through."""

    uuid: str
    total_mib: int
    needed_mib: int
    headroom_mib: int
    services: Mapping[str, int] = field(default_factory=dict)  # what each needs of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is still to be done, and what it leads to."""

    steps: tuple[PlannedStep, ...] = ()
    blocked: tuple[Reason, ...] = ()
    passed: tuple[Reason, ...] = ()  # what speaks against a start that may come all the same
    placements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forecast: tuple[DeviceForecast, ...] = ()
    kept: tuple[str, ...] = ()

    def ready(self) -> tuple[PlannedStep, ...]:
        """The steps that may begin now: they wait for nothing and nothing blocks them."""
        return tuple(s for s in self.steps if not s.after and not s.in_flight and not s.blocked)
