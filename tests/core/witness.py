"""An independent witness of what the engine does to a machine.

Knows the machine itself, not the engine's books. Checked at every start command: with everything that then runs,
starts or lingers, no device is promised more than it may hold. Checked after every batch: commands, replies,
operations and their steps behave.
"""

from typing import TYPE_CHECKING

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core import world
from gpumodd.core.facts import DeviceFact
from gpumodd.core.ledger import limit_of, share
from gpumodd.core.operations import Operation, Step, StepState, Verb
from gpumodd.core.operations import State as OperationState

if TYPE_CHECKING:
    from tests.core.machine import Late, Machine
    from tests.core.manager import Process


FRESH_S = 5.0 + 1.0  # what the engine allows, and a second for a command to be carried out


class Witness:
    """Raises at once what must not be; `overcommits` collects what a forced operation is allowed to do."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.overcommits: list[str] = []
        self.lenient = False  # something forced, or lied about, is under way
        self.seen: dict[str, dict[str, int]] = {}  # what the last sample showed, by device and process
        self.foreign: dict[str, int] = {}
        self.others: dict[float, dict[str, int]] = {}  # by the time of a sample: what the engine may call foreign in it
        self.written_off: set[Late] = set()  # what ours have left behind, but unseen or for too long
        self.room_seen_mib = machine.mem_available_mib  # of the host's memory, at the last look
        self.in_flight: dict[str, fx.StartUnit] = {}
        self.heard: set[str] = set()  # runs that the engine was told of
        self.listed: set[str] = set()  # runs that a sample has shown with their memory
        self.operations: dict[str, Operation] = {}

    def new_daemon(self) -> None:
        """It knows what was saved, and what it is told."""
        self.in_flight.clear()
        self.heard.clear()
        self.operations.clear()
        self.written_off.clear()

    # -- memory -----------------------------------------------------------------------------------------------

    def sampled(self) -> None:
        """The engine is about to be shown this."""
        m = self.machine
        self.foreign = {u: m.foreign.get(u, 0) + m.strangers.get(u, 0) for u in m.devices}
        self.seen = {u: {p.service: p.on(u) for p in m.manager.processes()} for u in m.devices}
        self.listed |= {p.invocation for p in m.manager.processes()}
        timeout_s = m.engine.state.catalog.policy.release_timeout_s
        again = {p.service for p in m.manager.processes()}  # whoever runs again gives nothing back any more
        off = (x for x in m.lingering if not x.seen or x.service in again or m.at - x.ended_at >= timeout_s)
        self.written_off.update(off)
        # The driver tells sums only: when something written off goes and something new lingers, nobody sees a change.
        sums = {u: sum(x.mib for x in self.written_off if x.device == u) for u in m.devices}
        self.others[m.at] = {u: self.foreign[u] + sums[u] for u in m.devices}

    def hears(self, events: tuple[ev.Event, ...]) -> None:
        """The engine is told this: from now on it has to reckon with these runs."""
        seen = [f for e in events if isinstance(e, ev.UnitsObserved) for f in e.facts]
        self.heard |= {f.invocation for f in seen if not f.gone}

    def started(self, effect: fx.StartUnit) -> None:
        """A start command was given: is there room, whatever else may still happen?"""
        assert effect.service not in self.in_flight, f"two starts of {effect.service} are in flight"
        self.in_flight[effect.service] = effect
        self._durable(effect.service)
        self._fresh(effect)
        for uuid in effect.devices:
            held, late = self._held(uuid)
            total = self.machine.devices[uuid]
            policy = self.machine.engine.state.catalog.policy
            room = total - policy.vram_reserve_mib - self.foreign.get(uuid, 0) - late
            limit = limit_of(
                total,
                policy,
                uuid,
                str(sorted(self.machine.devices.keys() - self.machine.missing | {uuid}).index(uuid)),
            )
            room = room if limit is None else min(room, limit)
            if sum(held.values()) > room:
                self.overcommits.append(f"{uuid}: {held} into {room} MiB at {self.machine.at}, {late} MiB late")

        policy = self.machine.engine.state.catalog.policy
        if self.machine.ram_mib(effect.service):
            ram = {s: self.machine.ram_mib(s) for s in self.in_flight}
            ram |= {p.service: p.ram_mib for p in self.machine.manager.processes() if self._known(p)}
            if sum(ram.values()) > self.room_seen_mib - policy.ram_reserve_mib:
                self.overcommits.append(f"host: {ram} into {self.room_seen_mib} MiB at {self.machine.at}")

    def _durable(self, service: str) -> None:
        """Were the daemon killed now, the next one would know why this was started."""
        m = self.machine
        snapshot = m.saved.snapshot
        assert snapshot is not None and service in snapshot.desired.services(m.catalog.services), "it was not saved"
        operations = [op for op in m.saved.operations if op.state.open and op.concerns(Verb.START, service)]
        assert operations, f"no operation that was saved starts {service}"

    def _fresh(self, effect: fx.StartUnit) -> None:
        """Nothing is started on figures that may have changed long ago."""
        fact = self.machine.engine.state.devices
        for device in fact.devices if fact is not None else ():
            if device.uuid in effect.devices:
                assert not fact.error and not device.lost, "it starts on a device that cannot be read"
                assert self.machine.at - device.at <= FRESH_S, "it starts on stale figures"

    def _known(self, process: "Process") -> bool:
        return process.invocation in self.heard or process.owner is self.machine.life

    def _held(self, uuid: str) -> tuple[dict[str, int], int]:
        m = self.machine
        held: dict[str, int] = {}
        for process in m.manager.processes():
            if uuid in process.devices and self._known(process):
                held[process.service] = max(
                    share(m.vram_mib(process.service), len(process.devices)),
                    min(process.on(uuid), self.seen.get(uuid, {}).get(process.service, 0)),
                )
        for service, effect in self.in_flight.items():
            if uuid in effect.devices:
                held[service] = max(held.get(service, 0), share(m.vram_mib(service), len(effect.devices)))
        return held, sum(late.mib for late in m.lingering if late.device == uuid and late.until > m.at)

    def ended(self, effect: fx.StartUnit) -> None:
        """The start's job is over."""
        if self.in_flight.get(effect.service) is effect:
            del self.in_flight[effect.service]

    # -- after every batch ------------------------------------------------------------------------------------

    def look(self) -> None:
        assert self.lenient or not self.overcommits, self.overcommits
        self._books()
        for op in self.machine.engine.state.operations.values():
            before = self.operations.get(op.id)
            if before is not op:
                self._operation(before, op)
                self.operations[op.id] = op

    def _books(self) -> None:
        state = self.machine.engine.state
        for uuid, budget in world.budgets(state).items():
            device = next(d for d in state.devices.devices if d.uuid == uuid)
            seen, window = state.attribution[uuid], state.windows.get(uuid)
            late = sum(window.lingering(seen.unlisted_mib).values()) if window is not None else 0
            self._foreign(device, budget.foreign_mib)
            assert budget.foreign_mib + sum(seen.services.values()) + late == device.used_mib
            assert budget.committed_mib >= sum(seen.services.values()) + late
            assert all(mib > 0 for mib in budget.held.values())

    def _foreign(self, device: DeviceFact, told_mib: int) -> None:
        """What one of ours has just left behind is on its way back and nobody else's."""
        m = self.machine
        others = self.others.get(device.at) if not m.engine.state.devices.error else None
        if m.silent or device.lost or others is None or m.engine.state.observing:
            return  # what there is to see is old, or a guess
        most = others.get(device.uuid, 0)
        assert told_mib <= most, f"memory of ours counts as foreign at {m.at}: {told_mib} > {most}, {m.lingering}"

    def _operation(self, before: Operation | None, op: Operation) -> None:
        if before is not None and not before.state.open:
            assert op.state is before.state, f"it has ended twice: {told(before)}, {told(op)}"
        ids = [step.id for step in op.steps]
        assert len(ids) == len(set(ids))
        earlier: set[str] = set()
        for step in op.steps:
            assert earlier.issuperset(step.after), f"a step stands before what it waits for: {told(op)}"
            earlier.add(step.id)
        for old in before.steps if before is not None else ():
            self._step(old, next(s for s in op.steps if s.id == old.id))
        if not op.state.open:
            assert not [s.id for s in op.steps if s.state.open], "an ended operation has open steps"
            assert op.finished_at is not None
            assert (op.failure is None) == (op.state is OperationState.SUCCEEDED)

    @staticmethod
    def _step(before: Step, now: Step) -> None:
        if not before.state.open and now.state is not before.state:  # why it came to an end may be known later
            assert (before.state, now.state) == (StepState.CANCELLED, StepState.FAILED), f"{now.id} has ended twice"
        if now.started_at is not None and now.finished_at is not None:
            assert now.started_at <= now.finished_at


def told(op: Operation) -> str:
    """An operation in one line."""
    steps = ", ".join(f"{s.id} {s.verb} {s.service} {s.state} after {' '.join(s.after)}" for s in op.steps)
    return f"{op.id} {op.kind} {op.target} {op.state} ({steps})"
