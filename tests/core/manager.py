"""A service manager in virtual time: units, their jobs and processes, with systemd's rules.

One job per unit at a time: a start that comes while a stop is in flight ends the stop's job as `canceled` and waits
for the unit to be gone; a stop cancels a start. It goes on without a daemon, like the real one.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gpumodd.core.facts import Active, Ended, UnitFact

START_S = 0.005
FULL_S = 5.0  # it has taken all its memory when it is ready, or then


@dataclass(frozen=True)
class Behaviour:
    """How one model server behaves."""

    load_s: float = 1.0
    term_s: float = 0.1  # after SIGTERM; SIGKILL follows at the unit's stop timeout
    linger_s: float = 0.0  # memory stays used and unlisted this long after the process is gone
    takes_mib: int | None = None  # None: what its spec says
    takes_ram_mib: int | None = None  # likewise
    start_result: str = "done"
    exit_after_s: float | None = None  # ends by itself this long after its start
    never_ready: bool = False
    unkillable_s: float = 0.0  # sits in the kernel this long, whatever signal it gets


@dataclass
class Process:
    pid: int
    service: str
    devices: tuple[str, ...]
    mib: int
    ready_at: float
    invocation: str
    owner: object = None  # whoever asked for the start
    ram_mib: int = 0
    sick: bool = False

    def on(self, uuid: str) -> int:
        """What it holds there: an even split, rounded up."""
        return -(-self.mib // len(self.devices)) if uuid in self.devices else 0


Done = Callable[[str], None]  # told once how a job ended: systemd's word


@dataclass
class Job:
    kind: str
    done: list[Done] = field(default_factory=list)
    devices: tuple[str, ...] = ()
    owner: object = None


@dataclass
class Unit:
    service: str
    active: Active = Active.INACTIVE
    invocation: str = ""
    process: Process | None = None
    job: Job | None = None
    result: str = ""
    exit_code: int | None = None
    ended: Ended | None = None
    since: float = 0.0
    queued: Job | None = None  # a start that waits for the stop it has replaced


class World(Protocol):
    """What the manager needs of the machine."""

    at: float

    def later(self, delay: float, what: Callable[[], None]) -> None: ...

    def touch(self) -> None: ...

    def behaviour(self, service: str) -> Behaviour: ...

    def vram_mib(self, service: str) -> int: ...

    def ram_mib(self, service: str) -> int: ...

    def stop_timeout_s(self, service: str) -> float: ...

    def changed(self, fact: UnitFact) -> None: ...

    def freed(self, process: Process, linger_s: float) -> None: ...


class Manager:
    """All units. What happens to one is told to `world.changed`, how a job ended to whoever asked for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.units: dict[str, Unit] = {}
        self.pids = itertools.count(100)
        self.runs = itertools.count(1)

    # -- queries ----------------------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        return [u.process for _, u in sorted(self.units.items()) if u.process is not None]

    def alive(self, service: str) -> Process | None:
        unit = self.units.get(service)
        return unit.process if unit else None

    def fact(self, service: str) -> UnitFact:
        unit = self.unit(service)
        return UnitFact(
            service=service,
            active=unit.active,
            at=self.world.at,
            main_pid=unit.process.pid if unit.process else None,
            invocation=unit.invocation,
            result=unit.result,
            exit_code=unit.exit_code,
            ended=unit.ended,
            since=unit.since,
            # Whoever reads the cgroup of a unit that is over finds who has survived it.
            pids=(unit.process.pid,) if unit.process and unit.active in (Active.INACTIVE, Active.FAILED) else (),
        )

    def complete(self) -> tuple[UnitFact, ...]:
        return tuple(self.fact(s) for s in sorted(self.units))

    def unit(self, service: str) -> Unit:
        return self.units.setdefault(service, Unit(service))

    # -- commands ---------------------------------------------------------------------------------------------

    def start(self, service: str, devices: tuple[str, ...], done: Done, owner: object = None) -> None:
        unit = self.unit(service)
        job = Job("start", [done], devices, owner)
        if unit.queued is not None:
            unit.queued.done.append(done)
        elif unit.job is not None and unit.job.kind == "start":
            unit.job.done.append(done)
        elif unit.active is Active.DEACTIVATING:
            self._job_ended(unit, "canceled")
            unit.queued = job
        elif unit.process is not None:
            done("done")
        else:
            self._begin_start(unit, job)

    def stop(self, service: str, done: Done) -> None:
        unit = self.unit(service)
        if unit.queued is not None:
            queued, unit.queued = unit.queued, None
            for tell in queued.done:
                tell("canceled")
        if unit.job is not None and unit.job.kind == "stop":
            unit.job.done.append(done)
            return
        if unit.job is not None:
            self._job_ended(unit, "canceled")
        if unit.process is None:
            if unit.active is Active.ACTIVATING:
                self._to(unit, Active.INACTIVE, ended=Ended.JOB)
            done("done")
        elif unit.active is Active.DEACTIVATING:  # the stop whose job was replaced and then given up
            unit.job = Job("stop", [done])
        else:
            unit.job = Job("stop", [done])
            self._to(unit, Active.DEACTIVATING, ended=Ended.JOB)
            behaviour = self.world.behaviour(service)
            term_s = min(behaviour.term_s, self.world.stop_timeout_s(service))
            self._die_later(unit, max(term_s, behaviour.unkillable_s), "success")

    def kill(self, service: str) -> None:
        unit = self.unit(service)
        if unit.process is not None:
            self._die_later(unit, max(0.001, self.world.behaviour(service).unkillable_s), "signal")

    def exit(self, service: str, *, ended: Ended = Ended.EXIT, code: int = 1) -> None:
        """It ends by itself, or (`JOB`) by somebody else's stop, at once."""
        unit = self.unit(service)
        assert unit.process is not None
        self._gone(unit, "exit-code" if ended is Ended.EXIT else "success", code, ended)

    # -- what follows -----------------------------------------------------------------------------------------

    def _begin_start(self, unit: Unit, job: Job) -> None:
        unit.job, unit.invocation, unit.result, unit.exit_code = job, f"run{next(self.runs)}", "", None
        self._to(unit, Active.ACTIVATING, ended=None)
        self.world.later(START_S, lambda: self._started(unit, job))

    def _started(self, unit: Unit, job: Job) -> None:
        if unit.job is not job:
            return
        service = unit.service
        behaviour = self.world.behaviour(service)
        if behaviour.start_result != "done":
            unit.result, unit.exit_code = "exit-code", 203
            self._to(unit, Active.FAILED, ended=Ended.EXIT)
            self._job_ended(unit, behaviour.start_result)
            return
        mib = behaviour.takes_mib if behaviour.takes_mib is not None else self.world.vram_mib(service)
        ready_at = float("inf") if behaviour.never_ready else self.world.at + behaviour.load_s
        mib = mib if job.devices else 0
        ram_mib = behaviour.takes_ram_mib if behaviour.takes_ram_mib is not None else self.world.ram_mib(service)
        process = Process(
            next(self.pids), service, job.devices, mib // 4, ready_at, unit.invocation, job.owner, ram_mib
        )
        unit.process = process
        self.world.later(min(behaviour.load_s, FULL_S), lambda: self._takes_the_rest(process, mib))
        self._to(unit, Active.ACTIVE, ended=None)
        self._job_ended(unit, "done")
        if not behaviour.never_ready:
            self.world.later(behaviour.load_s, self.world.touch)
        if behaviour.exit_after_s is not None:
            self.world.later(behaviour.exit_after_s, lambda: self._exits(unit, process))

    def _takes_the_rest(self, process: Process, mib: int) -> None:
        process.mib = mib
        self.world.touch()

    def _exits(self, unit: Unit, process: Process) -> None:
        if unit.process is process and unit.active is Active.ACTIVE:
            self._gone(unit, "exit-code", 3, Ended.EXIT)

    def _die_later(self, unit: Unit, delay: float, result: str) -> None:
        process = unit.process

        def die() -> None:
            if unit.process is process and process is not None:
                by_job = unit.active is Active.DEACTIVATING
                self._gone(unit, result, 9 if result == "signal" else 0, Ended.JOB if by_job else Ended.EXIT)

        self.world.later(delay, die)

    def _gone(self, unit: Unit, result: str, code: int, ended: Ended) -> None:
        process, unit.process = unit.process, None
        assert process is not None
        unit.result, unit.exit_code = result, code
        self.world.freed(process, self.world.behaviour(unit.service).linger_s)
        self._to(unit, Active.INACTIVE if result == "success" else Active.FAILED, ended=ended)
        self._job_ended(unit, "done")
        if unit.queued is not None:
            job, unit.queued = unit.queued, None
            self._begin_start(unit, job)

    def _to(self, unit: Unit, active: Active, *, ended: Ended | None) -> None:
        self.world.at += 1e-6  # no two changes share a moment
        unit.active, unit.ended, unit.since = active, ended, self.world.at
        self.world.changed(self.fact(unit.service))

    def _job_ended(self, unit: Unit, result: str) -> None:
        job, unit.job = unit.job, None
        for done in job.done if job is not None else ():
            done(result)
