"""A machine in virtual time: carries out the engine's effects and feeds back what a real one would.

Deterministic and instant. Delays, failures, late releases and lies are set per service; an independent witness
checks after every step that no device ever held more than it has.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.facts import (
    Active,
    Answer,
    DeviceFact,
    DevicesFact,
    Ended,
    HostFact,
    InspectFact,
    ProbeFact,
    ProcessFact,
    UnitFact,
)
from gpumodd.core.operations import Operation
from gpumodd.core.phase import Phase
from gpumodd.core.specs import BLANK, Catalog, ModeSpec, Policy, ServiceSpec


@dataclass
class Behaviour:
    """How one model server behaves."""

    load_s: float = 1.0
    term_s: float = 0.1
    linger_s: float = 0.0  # memory stays used and unlisted this long after the process is gone
    takes_mib: int | None = None  # None: what its spec says
    start_result: str = "done"
    exit_after_s: float | None = None  # ends by itself this long after its start
    never_ready: bool = False


@dataclass
class Process:
    pid: int
    service: str
    devices: tuple[str, ...]
    mib: int
    invocation: str
    ready_at: float


@dataclass
class Machine:
    """Devices, units and a clock; `run_until_idle` lets everything happen that is due to happen."""

    catalog: Catalog
    devices: dict[str, int] = field(default_factory=lambda: {"GPU-0": 24564})
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    foreign: dict[str, int] = field(default_factory=dict)  # unlisted memory that is nobody's
    engine: Engine = field(default_factory=Engine)
    at: float = 1000.0
    save_fails: bool = False
    mem_available_mib: int = 64000

    def __post_init__(self) -> None:
        self.queue: list[tuple[float, int, Callable[[], Iterable[ev.Event]]]] = []
        self.order = itertools.count()
        self.pids = itertools.count(100)
        self.alive: dict[str, Process] = {}
        self.units: dict[str, UnitFact] = {}
        self.lingering: list[tuple[float, str, int]] = []
        self.replies: dict[int, fx.Reply] = {}
        self.log: list[str] = []  # commands in the order they were given
        self.saved: list[fx.Save] = []
        self.overcommits: list[str] = []
        self.requests = itertools.count(1)

    # -- driving ----------------------------------------------------------------------------------------------

    def boot(self, recovered: ev.Recovered | None = None) -> "Machine":
        self.feed(
            recovered or ev.Recovered(at=self.at, snapshot=None),
            ev.CatalogLoaded(at=self.at, catalog=self.catalog),
            ev.UnitsObserved(at=self.at, facts=tuple(self.units.values()), complete=True),
            self.sample(),
            ev.ObservationCompleted(at=self.at),
        )
        return self

    def feed(self, *events: ev.Event) -> None:
        for effect in self.engine.handle(*events):
            self._carry_out(effect)
        self._witness()

    def later(self, delay: float, what: Callable[[], Iterable[ev.Event]]) -> None:
        heapq.heappush(self.queue, (self.at + delay, next(self.order), what))

    def step(self, horizon: float = 10_000.0) -> bool:
        """Let the next thing happen; False when nothing is left to happen."""
        deadline = self.engine.next_deadline()
        due = self.queue[0][0] if self.queue else None
        watched = self.busy()
        times = [t for t in (deadline, due, self.at + 0.02 if watched else None) if t is not None]
        if not times or min(times) > horizon:
            return False
        self.at = max(self.at, min(times))
        events: list[ev.Event] = []
        while self.queue and self.queue[0][0] <= self.at:
            events += heapq.heappop(self.queue)[2]()
        if watched:
            events += [self.sample(), *self.probes()]
        self.feed(*events, ev.Ticked(at=self.at))
        return True

    def busy(self) -> bool:
        phases = {t.phase for t in self.engine.state.tracks.values()}
        moving = {Phase.STARTING, Phase.LOADING, Phase.STOPPING, Phase.RELEASING}
        return bool(phases & moving) or bool(self.engine.state.windows) or bool(self.engine.state.active_operations())

    def run(self, seconds: float = 900.0) -> None:
        end = self.at + seconds
        for _ in range(200_000):
            if not self.step(end):
                return
        raise AssertionError("the machine never comes to rest")

    # -- asking -----------------------------------------------------------------------------------------------

    def ask(self, kind: str, target: str, **how: object) -> int:
        request = next(self.requests)
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
        for _ in range(100_000):
            reply = self.replies.get(request)
            if reply is not None:
                assert reply.operation is not None, reply.refusal
                if not self.engine.state.operations[reply.operation].state.open:
                    return self.engine.state.operations[reply.operation]
            assert self.step(), "nothing more happens, and the operation has not ended"
        raise AssertionError("the operation does not end")

    def refused(self, kind: str, target: str, **how: object) -> fx.Refusal:
        request = self.ask(kind, target, **how)
        self.run(0.01)
        refusal = self.replies[request].refusal
        assert refusal is not None, "it was not refused"
        return refusal

    def phase(self, service: str) -> str:
        return str(self.engine.state.track(service).phase)

    def running(self) -> set[str]:
        return set(self.alive)

    # -- what happens outside ---------------------------------------------------------------------------------

    def crash(self, service: str, *, ended: Ended = Ended.EXIT, code: int = 1) -> None:
        self._end(service, ended=ended, result="exit-code" if ended is Ended.EXIT else "success", code=code)
        self.feed(ev.UnitsObserved(at=self.at, facts=(self.units[service],)))

    def begin_outside(self, service: str) -> None:
        self._begin(service, ("GPU-0",), self.behaviours.get(service, Behaviour()))
        self.feed(ev.UnitsObserved(at=self.at, facts=(self.units[service],)))

    # -- facts ------------------------------------------------------------------------------------------------

    def sample(self) -> ev.DevicesSampled:
        self.lingering = [item for item in self.lingering if item[0] > self.at]
        devices = []
        for index, (uuid, total) in enumerate(sorted(self.devices.items())):
            processes = tuple(
                ProcessFact(pid=p.pid, used_mib=p.mib // len(p.devices), service=p.service)
                for p in self.alive.values()
                if uuid in p.devices and p.mib
            )
            used = self.used(uuid)
            devices.append(
                DeviceFact(
                    uuid=uuid,
                    index=index,
                    name=f"Sim {index}",
                    total_mib=total,
                    used_mib=used,
                    at=self.at,
                    processes=processes,
                )
            )
        fact = DevicesFact(at=self.at, backend="simulated", devices=tuple(devices))
        return ev.DevicesSampled(at=self.at, fact=fact, host=self.host())

    def used(self, uuid: str) -> int:
        held = sum(p.mib // len(p.devices) for p in self.alive.values() if uuid in p.devices)
        late = sum(mib for until, where, mib in self.lingering if where == uuid and until > self.at)
        return held + late + self.foreign.get(uuid, 0)

    def host(self) -> HostFact:
        return HostFact(at=self.at, mem_available_mib=self.mem_available_mib)

    def probes(self) -> list[ev.Probed]:
        found = []
        for service, process in sorted(self.alive.items()):
            spec = self.catalog.services.get(service)
            if spec is None or spec.port is None:
                continue
            answer = Answer.HEALTHY if self.at >= process.ready_at else Answer.LOADING
            fact = ProbeFact(service=service, answer=answer, at=self.at, invocation=process.invocation)
            found.append(ev.Probed(at=self.at, fact=fact))
        return found

    # -- effects ----------------------------------------------------------------------------------------------

    def _carry_out(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Save():
                self.saved.append(effect)
                if self.save_fails:
                    self.later(0.0, lambda: [ev.SaveFailed(at=self.at, message="disk full")])
            case fx.StartUnit():
                self.log.append(f"start {effect.service}")
                self.later(0.005, lambda: self._started(effect))
            case fx.StopUnit():
                self.log.append(f"stop {effect.service}")
                behaviour = self.behaviours.get(effect.service, Behaviour())
                self.later(behaviour.term_s, lambda: self._stopped(effect))
            case fx.KillUnit():
                self.log.append(f"kill {effect.service}")
                self.later(0.001, lambda: [ev.UnitKilled(at=self.at, effect=effect.id, service=effect.service)])
            case fx.Inspect():
                self.later(0.001, lambda: [self._inspected(effect)])
            case fx.ReadLogs():
                done = ev.LogsRead(at=self.at, effect=effect.id, service=effect.service, lines=("last words",))
                self.later(0.001, lambda: [replace(done, at=self.at)])
            case fx.SampleDevices():
                self.later(0.001, lambda: [self.sample()])
            case fx.Reply():
                assert effect.request not in self.replies, "two replies to one request"
                self.replies[effect.request] = effect
            case fx.Announce():
                pass

    def _inspected(self, effect: fx.Inspect) -> ev.Inspected:
        return ev.Inspected(
            at=self.at,
            effect=effect.id,
            devices=self.sample().fact,
            host=self.host(),
            services=tuple(InspectFact(service=s) for s in effect.services),
        )

    def _started(self, effect: fx.StartUnit) -> list[ev.Event]:
        behaviour = self.behaviours.get(effect.service, Behaviour())
        done = ev.UnitStarted(at=self.at, effect=effect.id, service=effect.service, result=behaviour.start_result)
        if behaviour.start_result != "done":
            return [done]
        assert effect.service not in self.alive, f"{effect.service} was started twice"
        self._begin(effect.service, effect.devices, behaviour)
        return [done, ev.UnitsObserved(at=self.at, facts=(self.units[effect.service],))]

    def _begin(self, service: str, devices: tuple[str, ...], behaviour: Behaviour) -> None:
        pid = next(self.pids)
        spec = self.catalog.services[service]
        mib = behaviour.takes_mib if behaviour.takes_mib is not None else spec.vram_mib or 0
        ready = self.at + behaviour.load_s if not behaviour.never_ready else float("inf")
        self.alive[service] = Process(
            pid=pid, service=service, devices=devices, mib=mib if devices else 0, invocation=f"run{pid}", ready_at=ready
        )
        self.units[service] = UnitFact(
            service=service, active=Active.ACTIVE, at=self.at, main_pid=pid, invocation=f"run{pid}"
        )
        if behaviour.exit_after_s is not None:
            self.later(behaviour.exit_after_s, lambda: self._exit(service, f"run{pid}"))

    def _exit(self, service: str, invocation: str) -> list[ev.Event]:
        process = self.alive.get(service)
        if process is None or process.invocation != invocation:
            return []
        self._end(service, ended=Ended.EXIT, result="exit-code", code=3)
        return [ev.UnitsObserved(at=self.at, facts=(self.units[service],))]

    def _stopped(self, effect: fx.StopUnit) -> list[ev.Event]:
        done = ev.UnitStopped(at=self.at, effect=effect.id, service=effect.service, result="done")
        if effect.service not in self.alive:
            return [done]
        self._end(effect.service, ended=Ended.JOB, result="success", code=0)
        return [ev.UnitsObserved(at=self.at, facts=(self.units[effect.service],)), done]

    def _end(self, service: str, *, ended: Ended, result: str, code: int) -> None:
        process = self.alive.pop(service)
        behaviour = self.behaviours.get(service, Behaviour())
        for uuid in process.devices:
            self.lingering.append((self.at + behaviour.linger_s, uuid, process.mib // len(process.devices)))
        self.units[service] = UnitFact(
            service=service,
            active=Active.INACTIVE if result == "success" else Active.FAILED,
            at=self.at,
            invocation=process.invocation,
            result=result,
            exit_code=code,
            ended=ended,
        )

    def _witness(self) -> None:
        for uuid, total in self.devices.items():
            if self.used(uuid) > total:
                self.overcommits.append(f"{uuid}: {self.used(uuid)} of {total} MiB at {self.at}")


def catalog(*services: ServiceSpec, policy: Policy | None = None, **modes: tuple[str, ...]) -> Catalog:
    """A catalog with these services and modes, and `blank`."""
    specs = {s.id: s for s in services}
    named = {m: ModeSpec(id=m, name=m, services=members) for m, members in modes.items()}
    return Catalog(services=specs, modes={"blank": BLANK, **named}, policy=policy or Policy())


def service(id: str, vram_mib: int | None = 4000, **how: object) -> ServiceSpec:
    """A service with a port, so that it has to become ready."""
    how.setdefault("port", 8000)
    return ServiceSpec(id=id, vram_mib=vram_mib, **how)
