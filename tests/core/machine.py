"""A machine in virtual time: carries out the engine's effects and feeds back what a real one would.

Deterministic and instant. Units behave as `tests.core.manager` says; devices, the state file and the daemon's own
life are here. Delays, failures, late releases and lies are settings. What the engine is fed is recorded, so that a
run can be replayed; `tests.core.witness` watches from outside.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gpumodd.core import attention, conditions, requests, simulation
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.facts import (
    Answer,
    DeviceFact,
    DevicesFact,
    Ended,
    HealthFact,
    HostFact,
    InspectFact,
    ProbeFact,
    ProcessFact,
    UnitFact,
)
from gpumodd.core.operations import Operation
from gpumodd.core.phase import Health
from gpumodd.core.specs import BLANK, Catalog, ModeSpec, Policy, ServiceSpec
from tests.core.manager import Behaviour, Manager, Process
from tests.core.witness import Witness

__all__ = ["Behaviour", "Machine", "catalog", "service"]

STRANGER_PID = 9
PORTS = itertools.count(8000)
NOT_CONNECTED = "not connected to the user manager"

Handled = tuple[tuple[ev.Event, ...], tuple[fx.Effect, ...]]  # one batch, and what the engine made of it


@dataclass(frozen=True)
class Late:
    """Memory that its process has left behind: the driver counts it as used a while longer."""

    device: str
    service: str
    mib: int
    ended_at: float
    until: float
    seen: bool  # its process was, by a daemon that still lives

    def after(self, seconds: float) -> "Late":
        """The same, had it all happened so much later."""
        return replace(self, ended_at=self.ended_at + seconds, until=self.until + seconds)


@dataclass
class Machine:
    """Devices, units, a state file and a clock; `run` lets everything happen that is due to happen."""

    catalog: Catalog
    devices: dict[str, int] = field(default_factory=lambda: {"GPU-0": 24564})
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    foreign: dict[str, int] = field(default_factory=dict)  # unlisted memory that is nobody's
    strangers: dict[str, int] = field(default_factory=dict)  # memory of a listed process that is nobody's
    engine: Engine = field(default_factory=Engine)
    at: float = 1000.0
    save_fails: bool = False
    mem_available_mib: int = 64000  # were none of ours there
    silent: bool = False  # the driver does not say what a process holds
    hung: bool = False  # the driver does not answer: the last sample is all there is
    lost: set[str] = field(default_factory=set)  # devices that cannot be used
    missing: set[str] = field(default_factory=set)  # devices that the driver does not even list
    health: dict[str, HealthFact] = field(default_factory=dict)
    taken_ports: set[str] = field(default_factory=set)  # services whose port a stranger holds
    answered_by_strangers: set[str] = field(default_factory=set)  # services in whose place another program answers
    refused_units: set[str] = field(default_factory=set)  # services whose unit the manager does not let us touch
    unit_lag_s: float = 0.0
    job_lag_s: float = 0.0
    inspect_s: float = 0.001
    look_s: float = 1.0  # between looks at devices and health while something moves

    def __post_init__(self) -> None:
        self.manager = Manager(self)
        self.witness = Witness(self)
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.inbox: list[tuple[float, int, ev.Event]] = []
        self.order = itertools.count()
        self.requests = itertools.count(1)
        self.lingering: list[Late] = []
        self.connected = True
        self.selected: dict[str, tuple[str, ...]] = {}  # the environment files
        self.look_at: float | None = None
        self.sampled: DevicesFact | None = None
        self.saved = ev.Recovered(at=self.at, snapshot=None)
        self.dies_after_save = False
        self.past: list[tuple[Engine, list[Handled]]] = []  # the daemons that were killed
        self.dies_before_save = False
        self._fresh_daemon()

    def _fresh_daemon(self) -> None:
        self.replies: dict[int, fx.Reply] = {}
        self.asked: set[int] = set()
        self.log: list[str] = []  # commands in the order they were given
        self.history: list[Handled] = []
        self.life = object()  # of the daemon: what the last one waited for, nobody waits for
        self.inbox.clear()
        self.witness.new_daemon()

    # -- the daemon's life ------------------------------------------------------------------------------------

    def boot(self) -> "Machine":
        self.feed(
            replace(self.saved, at=self.at),
            ev.CatalogLoaded(at=self.at, catalog=self.catalog),
            self._units_event(),
            self.sample(),
            ev.ObservationCompleted(at=self.at),
        )
        self.touch()
        return self

    def restart_daemon(self, *, same_boot: bool = True) -> None:
        """`kill -9` and a new start; a reboot takes all services with it."""
        if not same_boot:
            self.manager = Manager(self)
            self.queue.clear()
            self.lingering.clear()
        self.past.append((self.engine, self.history))
        self.lingering = [replace(late, seen=False) for late in self.lingering]
        self.engine = Engine()
        self._fresh_daemon()
        self.saved = replace(self.saved, same_boot=same_boot)
        self.boot()

    def feed(self, *events: ev.Event) -> None:
        self.witness.hears(events)
        effects = self.engine.handle(*events)
        self.history.append((events, effects))
        life = self.life
        for i, effect in enumerate(effects):
            if isinstance(effect, fx.Save) and not self._save(effect):
                self._give_up(effects[i + 1 :])
                break
            if self.life is not life:
                return
            self._carry_out(effect)
            if self.life is not life:
                return
        self.witness.look()

    # -- time -------------------------------------------------------------------------------------------------

    def later(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.at + delay, next(self.order), what))

    def post(self, event: ev.Event, lag_s: float = 0.0) -> None:
        heapq.heappush(self.inbox, (self.at + lag_s, next(self.order), event))

    def touch(self) -> None:
        """Something has changed that devices or probes show: the watchers will see it in a moment."""
        soon = self.at + 0.01
        self.look_at = min(self.look_at or soon, soon)

    def sleep(self, seconds: float) -> None:
        """The lid is closed: nothing goes on but the clock."""
        if not seconds:
            return
        self.lingering = [x.after(seconds) if x.until > self.at else x for x in self.lingering]
        self.at += seconds
        self.queue = [(t + seconds, n, what) for t, n, what in self.queue]
        self.inbox = [(t + seconds, n, event) for t, n, event in self.inbox]
        self.look_at = self.look_at + seconds if self.look_at is not None else None
        for process in self.manager.processes():
            process.ready_at += seconds
        self.feed(ev.Resumed(at=self.at, slept_s=seconds))

    def step(self, horizon: float = 10_000_000.0) -> bool:
        """Let the next thing happen; False when nothing happens before the horizon."""
        times = [heap[0][0] for heap in (self.queue, self.inbox) if heap]
        times += [t for t in (self.engine.next_deadline(), self.look_at) if t is not None]
        if not times or min(times) > horizon:
            return False
        self.at = max(self.at, min(times))
        while self.queue and self.queue[0][0] <= self.at:
            heapq.heappop(self.queue)[2]()
        events: list[ev.Event] = []
        while self.inbox and self.inbox[0][0] <= self.at:
            events.append(heapq.heappop(self.inbox)[2])
        if self.look_at is not None and self.look_at <= self.at:
            events += [self.sample(), *self.probes()]
            self.look_at = None
        self.feed(*(events or [ev.Ticked(at=self.at)]))
        if self.look_at is None and self.busy():
            self.look_at = self.at + self.look_s
        return True

    def busy(self) -> bool:
        """Do the watchers have reason to look often?"""
        state = self.engine.state
        unwell = any((t.health is Health.DEGRADED) != self._sick(s) for s, t in state.tracks.items() if not t.gone)
        return attention.sampling_s(state) < attention.IDLE_S or bool(state.active_operations()) or unwell

    def run(self, seconds: float = 900.0, *, at_most: int = 20_000) -> None:
        end = self.at + seconds
        for _ in range(at_most):
            if not self.step(end):
                self.at = end
                return
        raise AssertionError("the machine never comes to rest")

    # -- asking -----------------------------------------------------------------------------------------------

    def ask(self, kind: str, target: str, **how: object) -> int:
        request = next(self.requests)
        self.asked.add(request)
        self.witness.lenient |= bool(how.get("force"))
        if kind == "switch":
            self.feed(ev.SwitchRequested(at=self.at, request=request, mode=target, **how))
        elif kind == "cancel":
            self.feed(ev.CancelRequested(at=self.at, request=request, operation=target))
        else:
            self.feed(ev.ServiceRequested(at=self.at, request=request, kind=kind, service=target, **how))
        return request

    def do(self, kind: str, target: str, **how: object) -> Operation:
        """Ask, let it run to its end, and return the operation; a refusal raises."""
        request = self.ask(kind, target, **how)
        for _ in range(20_000):
            reply = self.replies.get(request)
            if reply is not None:
                assert reply.operation is not None, reply.refusal
                if not self.engine.state.operations[reply.operation].state.open:
                    return self.engine.state.operations[reply.operation]
            assert self.step(), "nothing more happens, and the operation has not ended"
        raise AssertionError("the operation does not end")

    def simulate(self, mode: str) -> simulation.Simulated:
        """What a switch to this mode would do, on fresh facts."""
        state = self.engine.state
        intent = requests.for_services(state, mode, self.catalog.modes[mode].services)
        services = tuple(sorted(intent.wish(state.desired, state.catalog).services(state.catalog.services)))
        facts = self._inspected(fx.Inspect(id=0, services=services))
        self.feed(facts)
        return simulation.simulate(self.engine.state, intent, facts)  # the daemon may be another one by now

    def refused(self, kind: str, target: str, **how: object) -> fx.Refusal:
        request = self.ask(kind, target, **how)
        self.run(0.01)
        refusal = self.replies[request].refusal
        assert refusal is not None, "it was not refused"
        return refusal

    def operation(self, request: int) -> Operation:
        return self.engine.state.operations[self.replies[request].operation]

    def phase(self, service: str) -> str:
        return str(self.engine.state.track(service).phase)

    def running(self) -> set[str]:
        return {p.service for p in self.manager.processes()}

    def problems(self) -> set[str]:
        return {p.code for p in conditions.problems(self.engine.state)}

    def standing(self) -> str:
        return conditions.standing(self.engine.state)

    # -- what happens outside ---------------------------------------------------------------------------------

    def crash(self, service: str, *, ended: Ended = Ended.EXIT, code: int = 1) -> None:
        self.manager.exit(service, ended=ended, code=code)

    def begin_outside(self, service: str) -> None:
        """As `systemctl start` would: on the devices that were selected last."""
        spec = self.catalog.services[service]
        devices = self.selected.get(service) or tuple(sorted(self.devices))[: spec.device_count]
        self.manager.start(service, devices, lambda _: None)

    def disconnect(self) -> None:
        """The bus breaks: how jobs in flight end, nobody will say."""
        self.connected = False
        for unit in self.manager.units.values():
            for job in (unit.job, unit.queued):
                if job is not None:
                    told, job.done = job.done, []
                    for done in told:
                        done("lost")
        self.post(ev.UnitsLost(at=self.at, reason=NOT_CONNECTED))

    def connect(self) -> None:
        self.connected = True
        self.post(self._units_event())

    # -- facts ------------------------------------------------------------------------------------------------

    def changed(self, fact: UnitFact) -> None:
        if self.connected:
            self.post(ev.UnitsObserved(at=self.at, facts=(fact,)), self.unit_lag_s)
        self.touch()

    def freed(self, process: Process, linger_s: float) -> None:
        for uuid in process.devices:
            seen = self.connected and process.invocation in self.witness.listed
            mib, until = process.on(uuid), self.at + linger_s
            late = Late(uuid, process.service, mib, ended_at=self.at, until=until, seen=seen)
            self.lingering.append(late)
        if linger_s and process.mib:
            self.later(linger_s, self.touch)

    def _units_event(self) -> ev.Event:
        if not self.connected:
            return ev.UnitsLost(at=self.at, reason=NOT_CONNECTED)
        return ev.UnitsObserved(at=self.at, facts=self.manager.complete(), complete=True)

    def used(self, uuid: str) -> int:
        held = sum(p.on(uuid) for p in self.manager.processes())
        late = sum(late.mib for late in self.lingering if late.device == uuid and late.until > self.at)
        return held + late + self.foreign.get(uuid, 0) + self.strangers.get(uuid, 0)

    def sample(self) -> ev.DevicesSampled:
        self.lingering = [late for late in self.lingering if late.until > self.at]
        if self.hung and self.sampled is not None:
            fact = replace(self.sampled, at=self.at, error="the driver does not answer")
        else:
            listed = sorted(self.devices.keys() - self.missing)
            devices = tuple(self._device(i, uuid) for i, uuid in enumerate(listed))
            fact = DevicesFact(at=self.at, backend="simulated", devices=devices)
            self.sampled = fact
            self.witness.sampled()
        return ev.DevicesSampled(at=self.at, fact=fact, host=self.host())

    def _device(self, index: int, uuid: str) -> DeviceFact:
        known = {d.uuid: d for d in self.sampled.devices} if self.sampled is not None else {}
        if uuid in self.lost and uuid in known:
            return replace(known[uuid], lost="it has fallen off the bus")
        listed = [
            ProcessFact(pid=p.pid, used_mib=None if self.silent else p.on(uuid), service=p.service)
            for p in self.manager.processes()
            if p.on(uuid)
        ]
        if self.strangers.get(uuid):
            listed.append(ProcessFact(pid=STRANGER_PID, used_mib=self.strangers[uuid], name="game"))
        return DeviceFact(
            uuid=uuid,
            index=index,
            name=f"Sim {index}",
            total_mib=self.devices[uuid],
            used_mib=self.used(uuid),
            at=self.at,
            processes=tuple(listed),
            lost="it has fallen off the bus" if uuid in self.lost else "",
            health=self.health.get(uuid, HealthFact()),
        )

    def host(self) -> HostFact:
        held = {p.service: p.ram_mib for p in self.manager.processes()}
        self.witness.room_seen_mib = self.mem_available_mib
        return HostFact(
            at=self.at,
            mem_available_mib=max(0, self.mem_available_mib - sum(held.values())),
            mem_total_mib=96000,
            services=held,
        )

    def probes(self) -> list[ev.Probed]:
        found = []
        for service, probing in attention.probing(self.engine.state).items():
            process = self.manager.alive(service)
            if process is None:
                answer = Answer.REFUSED
            elif service in self.answered_by_strangers:
                answer = Answer.STRANGER
            elif self.at < process.ready_at:
                answer = Answer.LOADING
            else:
                answer = Answer.UNHEALTHY if process.sick else Answer.HEALTHY
            fact = ProbeFact(service=service, answer=answer, at=self.at, invocation=probing.invocation)
            found.append(ev.Probed(at=self.at, fact=fact))
        return found

    def _sick(self, service: str) -> bool:
        process = self.manager.alive(service)
        return process is not None and process.sick and self.at >= process.ready_at

    # -- what the manager asks --------------------------------------------------------------------------------

    def behaviour(self, service: str) -> Behaviour:
        return self.behaviours.get(service, Behaviour())

    def vram_mib(self, service: str) -> int:
        spec = self.catalog.services.get(service)
        return (spec.vram_mib or 0) if spec is not None else 0

    def ram_mib(self, service: str) -> int:
        spec = self.catalog.services.get(service)
        return spec.ram_mib if spec is not None else 0

    def stop_timeout_s(self, service: str) -> float:
        spec = self.catalog.services.get(service)
        return spec.stop_timeout_s if spec is not None else 30.0

    # -- effects ----------------------------------------------------------------------------------------------

    def _save(self, effect: fx.Save) -> bool:
        if self.dies_before_save:
            self.dies_before_save = False
            self.restart_daemon()
            return True
        if self.save_fails:
            self.post(ev.SaveFailed(at=self.at, message="disk full"))
            return False
        stored = {op.id: op for op in (*self.saved.operations, *effect.operations)}
        self.saved = ev.Recovered(at=self.at, snapshot=effect.snapshot, operations=tuple(stored.values())[-100:])
        if self.engine.state.unsaved:
            self.post(ev.SaveWorked(at=self.at))
        if self.dies_after_save:
            self.dies_after_save = False
            self.restart_daemon()
        return True

    def _give_up(self, effects: tuple[fx.Effect, ...]) -> None:
        """What follows a Save that failed is not carried out, and says so."""
        for effect in effects:
            match effect:
                case fx.StartUnit():
                    self.witness.ended(effect)
                    dropped = {"effect": effect.id, "service": effect.service, "result": "failed", "dropped": True}
                    self.post(ev.UnitStarted(at=self.at, **dropped))
                case fx.StopUnit():
                    dropped = {"effect": effect.id, "service": effect.service, "result": "failed", "dropped": True}
                    self.post(ev.UnitStopped(at=self.at, **dropped))
                case fx.KillUnit():
                    self.post(ev.UnitKilled(at=self.at, effect=effect.id, service=effect.service, dropped=True))
                case _:
                    self._carry_out(effect)

    def _carry_out(self, effect: fx.Effect) -> None:
        match effect:
            case fx.StartUnit():
                self.log.append(f"start {effect.service}")
                self.witness.started(effect)
                self._start(effect)
            case fx.StopUnit():
                self.log.append(f"stop {effect.service}")
                self._stop(effect)
            case fx.KillUnit():
                self.log.append(f"kill {effect.service}")
                error = self._refusal(effect.service)
                if not error:
                    self.manager.kill(effect.service)
                self.post(ev.UnitKilled(at=self.at, effect=effect.id, service=effect.service, error=error))
            case fx.Inspect():
                self._after(self.inspect_s, lambda: self._inspected(effect))
            case fx.ReadLogs():
                self._after(
                    0.001,
                    lambda: ev.LogsRead(at=self.at, effect=effect.id, service=effect.service, lines=("last words",)),
                )
            case fx.SampleDevices():
                self.touch()
            case fx.RefreshUnits():
                for service in effect.services:
                    self._refresh(service)
            case fx.Reply():
                assert effect.request not in self.replies, "two replies to one request"
                self.replies[effect.request] = effect
            case fx.Save() | fx.Announce():
                pass

    def _after(self, delay: float, make: Callable[[], ev.Event]) -> None:
        life = self.life
        self.later(delay, lambda: self.post(make()) if self.life is life else None)

    def _start(self, effect: fx.StartUnit) -> None:
        life = self.life

        def ended(result: str, error: str = "") -> None:
            if self.life is not life:
                return
            self.witness.ended(effect)
            done = ev.UnitStarted(at=self.at, effect=effect.id, service=effect.service, result=result, error=error)
            self.post(done, self.job_lag_s)
            self._refresh(effect.service)

        if not self.connected:
            ended("lost")
        elif refusal := self._refusal(effect.service):
            ended("failed", refusal)
        else:
            self.selected[effect.service] = effect.devices
            self.manager.start(effect.service, effect.devices, ended, self.life)

    def _stop(self, effect: fx.StopUnit) -> None:
        life = self.life

        def ended(result: str, error: str = "") -> None:
            if self.life is not life:
                return
            done = ev.UnitStopped(at=self.at, effect=effect.id, service=effect.service, result=result, error=error)
            self.post(done, self.job_lag_s)
            self._refresh(effect.service)
            self.touch()

        if not self.connected:
            ended("lost")
        elif refusal := self._refusal(effect.service):
            ended("failed", refusal)
        else:
            self.manager.stop(effect.service, ended)

    def _refusal(self, service: str) -> str:
        if not self.connected:
            return NOT_CONNECTED
        return "access denied" if service in self.refused_units else ""

    def _refresh(self, service: str) -> None:
        """After a job the unit is read anew, changed or not."""
        life = self.life

        def read() -> None:
            if self.connected and self.life is life:
                self.changed(self.manager.fact(service))

        self.later(self.job_lag_s + 0.001, read)

    def _inspected(self, effect: fx.Inspect) -> ev.Inspected:
        taken = self.taken_ports
        return ev.Inspected(
            at=self.at,
            effect=effect.id,
            devices=self.sample().fact,
            host=self.host(),
            services=tuple(InspectFact(service=s, port_holder="nginx" if s in taken else "") for s in effect.services),
        )


def catalog(*services: ServiceSpec, policy: Policy | None = None, **modes: tuple[str, ...]) -> Catalog:
    """A catalog with these services and modes, and `blank`."""
    specs = {s.id: s for s in services}
    named = {m: ModeSpec(id=m, name=m, services=members) for m, members in modes.items()}
    return Catalog(services=specs, modes={"blank": BLANK, **named}, policy=policy or Policy())


def service(id: str, vram_mib: int | None = 4000, **how: object) -> ServiceSpec:
    """A service with a port of its own, so that it has to become ready."""
    how.setdefault("port", next(PORTS))
    return ServiceSpec(id=id, vram_mib=vram_mib, **how)
