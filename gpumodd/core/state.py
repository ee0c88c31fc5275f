"""The engine's state: specs, world, desired, and what is remembered per service.

Owns the shapes and the split into what is durable (Snapshot) and what is observed again after a start.
Only `core.engine` and the modules it calls change it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpumodd.core.costs import UNKNOWN, Costs
from gpumodd.core.desired import Desired
from gpumodd.core.facts import DevicesFact, HostFact, ProbeFact, UnitFact
from gpumodd.core.intents import Intent
from gpumodd.core.ledger import Attribution, ReleaseWindow
from gpumodd.core.operations import Operation
from gpumodd.core.ops import Command
from gpumodd.core.phase import Health, Phase
from gpumodd.core.problems import Reason
from gpumodd.core.specs import Catalog

STORY = 40  # lines of a service's story that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What must survive the daemon: wishes, and what cannot be observed again."""

    desired: Desired = field(default_factory=Desired)
    reached_mode: str | None = "blank"
    next_operation: int = 1
    placements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(
        default_factory=dict
    )  # of the definition a running service was started with
    addresses: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # where a running service listens
    gave_up: tuple[str, ...] = ()
    stopped_outside: tuple[str, ...] = ()
    baselines: Mapping[str, int] = field(default_factory=dict)  # unlisted MiB per device that is not ours
    releasing: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # device -> service -> MiB
    costs: Mapping[str, Costs] = field(default_factory=dict)  # what loads, stops and releases took, by service


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One line of a service's story."""

    at: float
    text: str
    cause: str = ""


@dataclass(slots=True, kw_only=True)
class Track:
    """What is remembered of one service between events."""

    unit: UnitFact | None = None
    probe: ProbeFact | None = None
    command: Command = Command.IDLE
    start_effect: int | None = None
    stop_effect: int | None = None
    kill_effect: int | None = None
    killed_at: float | None = None
    quarantined: bool = False  # it has survived SIGKILL: left as it is, its bytes counted, until it is gone
    unseen_since: float | None = None  # a job ended then, and the state it led to has not been seen yet
    devices: tuple[str, ...] = ()  # placement, pinned while it runs
    fingerprint: str = ""
    address: tuple[str, int] | None = None  # where this run listens, whatever its definition says by now
    health: Health = Health.LOADING
    invocation: str = ""  # the run that `health` speaks of
    run_expected: bool = False  # a start was asked for, and the run it leads to has not been seen yet
    started_at: float | None = None  # when this run was asked for or first seen
    loading_from: float | None = None  # when we gave its start command, until what it takes to load is measured
    stop_asked_at: float | None = None
    deactivating_since: float | None = None  # its unit is on the way down, or over but for processes that survived
    active_at: float | None = None  # when this run was first seen active
    ready_at: float | None = None
    judged: bool = False  # its newest run has been counted as a failure, and counts once
    failures: int = 0  # ends and failed starts in a row
    backoff_until: float | None = None
    gave_up: bool = False
    stopped_outside: bool = False
    failure: Reason | None = None  # how its newest run or start went wrong; cleared by the next start
    failed_at: float | None = None
    peak_mib: int = 0
    phase: Phase = Phase.STOPPED
    since: float = 0.0
    story: tuple[Moment, ...] = ()  # its newest lines, oldest first

    @property
    def left_alone(self) -> bool:
        """Nothing starts it before somebody asks anew, or before what is left of it has ended."""
        return self.gave_up or self.stopped_outside or self.quarantined

    @property
    def gone(self) -> bool:
        """No process of its unit is left, as far as is known."""
        return self.unit is None or self.unit.gone

    def tell(self, at: float, text: str, cause: str = "") -> None:
        """Add a line to its story."""
        self.story = (*self.story, Moment(at=at, text=text, cause=cause))[-STORY:]

    def tell_once(self, at: float, text: str) -> None:
        """The same for what is found again and again: not if it was told last."""
        if not self.story or self.story[-1].text != text:
            self.tell(at, text)


@dataclass(slots=True, kw_only=True)
class State:
    """Everything the engine knows: plain data, so that a copy of it decides as it would."""

    at: float = 0.0
    due: float | None = None  # when time alone will change something
    started_at: float = 0.0
    observing: bool = True  # until units and devices have been seen in full once
    catalog: Catalog = field(default_factory=Catalog)
    rejected: tuple[str, ...] = ()  # why the configuration on disk is not the one in force
    desired: Desired = field(default_factory=Desired)
    reached_mode: str | None = "blank"
    tracks: dict[str, Track] = field(default_factory=dict)
    units_lost: str = ""
    devices: DevicesFact | None = None
    attribution: dict[str, Attribution] = field(default_factory=dict)
    windows: dict[str, ReleaseWindow] = field(default_factory=dict)
    baselines: dict[str, int] = field(default_factory=dict)  # of the last daemon, until the first sample
    host: HostFact | None = None
    costs: dict[str, Costs] = field(default_factory=dict)
    intents: tuple[Intent, ...] = ()  # on trial, oldest first
    operations: dict[str, Operation] = field(default_factory=dict)  # newest last, bounded
    awaits_sample: bool = False  # an operation is over but for figures that are as new as its end
    next_operation: int = 1
    next_effect: int = 1
    resumed_at: float = 0.0  # when the machine last woke up: what was seen before is out of date
    quiesce_from: float | None = None  # when the newest release was verified
    saved: Snapshot | None = None  # what was made durable last, less what only rides along
    to_save: set[str] = field(default_factory=set)  # operations that have changed since they were saved
    told_modes: tuple[str | None, str | None] | None = None  # wanted and reached, as subscribers know them
    to_tell: dict[str, Operation | None] = field(default_factory=dict)  # changed in this batch; what they were before
    unsaved: str = ""  # why the state file cannot be written
    retry_save_at: float | None = None  # no attempt to write it before
    onsets: dict[str, float] = field(default_factory=dict)  # problem and device -> since when

    def track(self, service: str) -> Track:
        """The service's track, made when first asked for."""
        if service not in self.tracks:
            self.tracks[service] = Track(since=self.at)
        return self.tracks[service]

    def costs_of(self, service: str) -> Costs:
        """What loading, stopping and releasing it took so far."""
        return self.costs.get(service, UNKNOWN)

    def measured(self, service: str, costs: Costs) -> None:
        """Keep what was measured; what nothing configures will not come again."""
        if service in self.catalog.services:
            self.costs[service] = costs

    def quarantined(self) -> frozenset[str]:
        """The services that have survived SIGKILL and are still there."""
        return frozenset(s for s, track in self.tracks.items() if track.quarantined)

    def active_operations(self) -> list[Operation]:
        """Operations that have not ended, oldest first."""
        return [op for op in self.operations.values() if op.state.open]

    def exchange(self, old: Intent, new: Intent) -> None:
        """Put an intent in the place of another one."""
        self.intents = tuple(new if intent is old else intent for intent in self.intents)

    def put(self, op: Operation) -> None:
        """Replace the operation's record; if it is another one, the journal will save it and tell of it."""
        if self.operations.get(op.id) is op:
            return
        self.to_tell.setdefault(op.id, self.operations.get(op.id))
        self.to_save.add(op.id)
        self.operations[op.id] = op

    def restore(self, kept: Snapshot, *, same_boot: bool) -> None:
        """Take over what survived the last daemon; what it says of memory holds on the same boot only."""
        self.desired, self.reached_mode = kept.desired, kept.reached_mode
        self.next_operation = max(self.next_operation, kept.next_operation)
        self.costs = dict(kept.costs)
        for service in sorted({*kept.gave_up, *kept.stopped_outside, *kept.placements, *kept.fingerprints}):
            track = self.track(service)
            track.gave_up = service in kept.gave_up
            track.stopped_outside = service in kept.stopped_outside
            track.devices = tuple(kept.placements.get(service, ()))
            track.fingerprint = kept.fingerprints.get(service, "")
            track.address = kept.addresses.get(service)
        if same_boot:
            self.baselines = dict(kept.baselines)

    def snapshot(self) -> Snapshot:
        """The durable part, now."""
        running = {s: t for s, t in sorted(self.tracks.items()) if not t.gone or t.command.coming}
        return Snapshot(
            desired=self.desired,
            reached_mode=self.reached_mode,
            next_operation=self.next_operation,
            placements={s: t.devices for s, t in running.items() if t.devices},
            fingerprints={s: t.fingerprint for s, t in running.items() if t.fingerprint},
            addresses={s: t.address for s, t in running.items() if t.address is not None},
            gave_up=tuple(s for s, t in sorted(self.tracks.items()) if t.gave_up),
            stopped_outside=tuple(s for s, t in sorted(self.tracks.items()) if t.stopped_outside),
            baselines={  # of devices that are not there at the moment, the last known
                **self.baselines,
                **{
                    uuid: self.windows[uuid].baseline_mib if uuid in self.windows else seen.unlisted_mib
                    for uuid, seen in sorted(self.attribution.items())
                },
            },
            releasing={
                uuid: {s: e.held_mib for s, e in sorted(window.leaving.items())}
                for uuid, window in sorted(self.windows.items())
                if window.leaving
            },
            costs=dict(sorted(self.costs.items())),
        )
