"""The shapes that travel over the socket, field by field as published in `docs/rpc.md`.

Owns results and notifications; parameters are beside their methods in `methods`. Clients decode leniently
(unknown fields are ignored), so fields may be added and never change their meaning.
Units: `_mib` is MiB as the driver reports it, `_s` seconds, `_at` and `since` RFC 3339 in UTC.
"""

from typing import Any

from msgspec import Struct, field

from gpumodd.wire import administration, models, operations, words

ConfigCheck = administration.ConfigCheck
ConfigProblem = administration.ConfigProblem
Hello = administration.Hello
Reload = administration.Reload
Shutdown = administration.Shutdown
LayerMemory = models.LayerMemory
ModelInspection = models.ModelInspection
Reason = operations.Reason
OperationError = operations.OperationError
Step = operations.Step
WayBack = operations.WayBack
Operation = operations.Operation
Phase = words.Phase
DaemonState = words.DaemonState
OperationKind = words.OperationKind
OperationState = words.OperationState
StepVerb = words.StepVerb
StepState = words.StepState
VramSource = words.VramSource
Topic = words.Topic
ENDED = words.ENDED


class Problem(Struct, kw_only=True):
    """A named condition a person should know about, with what would fix it."""

    code: str
    message: str
    hint: str = ""
    service: str | None = None
    device: str | None = None
    since: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class DeviceProcess(Struct, kw_only=True):
    """One process the driver lists on a device; `service` is null for a foreign one."""

    pid: int
    used_mib: int | None = None  # null: the driver does not say
    service: str | None = None
    name: str = ""


class Holding(Struct, kw_only=True):
    """What a service holds of a device: `used_mib` by its processes, `releasing_mib` that has not come back since they
    ended, and `committed_mib` that the ledger counts for it, which is more while it loads. `service` is null for what
    was on its way back when the daemon started.
    """

    service: str | None
    used_mib: int
    committed_mib: int
    releasing_mib: int = 0


class Device(Struct, kw_only=True):
    """One GPU: what is used, by whom, and what the ledger has promised.

    `holdings` tells what services hold, `processes` what the driver lists, and `unlisted_mib` is the part of
    `foreign_mib` that no listed process holds. `available_mib` is what may still be started into.

    `foreign_mib` is what is used, less what belongs to services and what is still being released, whoever holds
    it. `free_mib` is total less used. `committed_mib` is what services that run, load or release count for.
    `reserve_mib` is never given to services, `limit_mib` is what they may hold together, if the policy says so.
    `stale` means that the device does not answer at the moment, `unhealthy` says why nothing is started on it.
    """

    uuid: str
    index: int
    name: str
    total_mib: int
    used_mib: int
    foreign_mib: int
    committed_mib: int
    free_mib: int
    sampled_at: str | None
    reserve_mib: int = 0
    limit_mib: int | None = None
    stale: bool = False
    temperature_c: int | None = None
    unhealthy: str | None = None
    available_mib: int = 0
    unlisted_mib: int = 0
    holdings: list[Holding] = field(default_factory=list)
    processes: list[DeviceProcess] = field(default_factory=list)


class Host(Struct, kw_only=True):
    """The host's memory. `available_mib` is the kernel's MemAvailable, `committed_mib` what services hold or are
    expected to hold, and `reserve_mib` what must remain available."""

    total_mib: int
    available_mib: int
    committed_mib: int
    reserve_mib: int


class Service(Struct, kw_only=True):
    """One managed model server and how it is.

    `phase` is derived from what was observed: `loading` is a unit that is active and not healthy yet,
    `releasing` one that is gone while its memory is not back. `vram_mib` is what is reserved for it and
    `vram_source` where that figure comes from; `vram_observed_mib` is what its processes hold now.
    `mode_member` tells whether the mode last asked for names it. `devices` are the UUIDs it is placed on. `stale`
    means that it still runs an older definition than the one in force. `load_s` (start command to ready), `stop_s`
    (stop command to gone) and `release_s` (gone to memory back) are what its last few runs took, null before the
    first.
    """

    id: str
    name: str
    driver: str
    model: str | None
    phase: Phase
    aliases: list[str] = field(default_factory=list)
    depends_on: list[str] = field(default_factory=list)
    mode_member: bool = False
    unit: str | None = None
    pid: int | None = None
    port: int | None = None
    devices: list[str] = field(default_factory=list)
    vram_mib: int | None = None
    vram_source: VramSource | None = None
    vram_observed_mib: int | None = None
    load_s: float | None = None
    stop_s: float | None = None
    release_s: float | None = None
    sleep_level: str | None = None
    since: str | None = None
    problem: Problem | None = None
    stale: bool = False


class Mode(Struct, kw_only=True):
    """A named set of services. `vram_mib` is the members' sum, as far as it is known."""

    id: str
    name: str
    description: str
    services: list[str]
    vram_mib: int | None
    active: bool


class SimulationDevice(Struct, kw_only=True):
    """The forecast for one device.

    `needed_mib` is the sum of the services on it, `used_by_others_mib` the part of it that belongs to services outside
    the simulated set which stay. `headroom_mib` is total less reserve, foreign and needed, or what `policy.vram_limit`
    leaves, if that is less.
    """

    uuid: str
    total_mib: int
    needed_mib: int
    headroom_mib: int
    index: int = 0
    name: str = ""
    reserve_mib: int = 0
    foreign_mib: int = 0
    limit_mib: int | None = None
    used_by_others_mib: int = 0


class SimulationService(Struct, kw_only=True):
    """One service of the simulated set."""

    id: str
    name: str = ""
    driver: str = ""
    vram_mib: int | None = None
    vram_source: VramSource | None = None
    context: int | None = None
    devices: list[str] = field(default_factory=list)
    phase: Phase = "unknown"


class Alternative(Struct, kw_only=True):
    """Changes that together make it fit, planned and found to fit, none of them without need.

    `remove` leaves services out and `context` gives them less, as the parameters of `mode.simulate` do; `stop` ends
    services outside the set, `devices` puts services on other ones, `end` names foreign processes by pid. `cost_s` is
    the measured time to load again what is stopped, left out or restarted; null when that was never measured.
    """

    message: str
    remove: list[str] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    devices: dict[str, list[str]] = field(default_factory=dict)
    context: dict[str, int] = field(default_factory=dict)
    end: list[int] = field(default_factory=list)
    cost_s: float | None = None


class Simulation(Struct, kw_only=True):
    """What a switch would do: the same planner, not dispatched.

    It `fits` when no headroom is below 0 and nothing is `blocked`. `alternatives` would fit, the best first: they keep
    the services of higher priority, then they cost less. `notes` say what the figures do not take into account.
    """

    fits: bool
    devices: list[SimulationDevice] = field(default_factory=list)
    services: list[SimulationService] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    blocked: list[Reason] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mode: str | None = None


class Status(Struct, kw_only=True):
    """The whole truth in one answer.

    `operation` is the running one, else null. `desired_mode` is what was last asked for and not given up. `mode`
    is the last mode reached in full: the old one while a switch runs, `blank` before the first, the previous one
    after a rollback, null after a failed switch with `keep` or `stop`. `state` is `switching` while an operation
    runs; else `converged` when every desired service is ready (or asleep where asked), nothing else managed runs
    and no release is outstanding; `blocked` when only something outside can unblock it; else `degraded`. Past
    failures, problems and foreign memory alone do not prevent `converged`.
    """

    mode: str | None
    desired_mode: str | None
    state: DaemonState
    devices: list[Device] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)
    operation: Operation | None = None
    problems: list[Problem] = field(default_factory=list)
    host: Host | None = None


class Logs(Struct, kw_only=True):
    """The last lines a service wrote, oldest first."""

    lines: list[str]


class StoryEntry(Struct, kw_only=True):
    """One thing that happened to a service."""

    at: str
    text: str
    cause: str = ""


class Explanation(Struct, kw_only=True):
    """Why a service is as it is.

    `why` says what the phase means here, with its numbers, and `because` what it rests on: what went wrong, who wants
    it, what is under way, what it needs and holds. `story` has what happened, oldest first, each with its cause.
    """

    id: str
    phase: Phase
    why: str
    because: list[str] = field(default_factory=list)
    would_change: list[str] = field(default_factory=list)
    story: list[StoryEntry] = field(default_factory=list)


class Subscription(Struct, kw_only=True):
    """Events after `cursor` follow as notifications; `status` is the state at the cursor."""

    cursor: int
    status: Status


class Event(Struct, kw_only=True):
    """The notification `event`."""

    cursor: int
    at: str
    topic: Topic
    data: dict[str, Any] = field(default_factory=dict)


class Progress(Struct, kw_only=True):
    """The notification `progress`: one step of an operation changed its state."""

    operation: str
    state: OperationState
    step: Step
