"""Plain subprocesses as an implementation of the port `Units`, for machines without systemd and for the demo.

Owns the table of units and the rules of jobs, which are systemd's: one job per unit, a new one of the other kind
cancels it, one of the same kind joins it. Its services end with the daemon; what a killed daemon has left is ended
when the next one starts.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from gpumodd.adapters import procfs
from gpumodd.adapters.feed import Feed
from gpumodd.adapters.listeners import listening, unanswered
from gpumodd.adapters.process import leftovers
from gpumodd.adapters.process.forkserver import ForkServer
from gpumodd.adapters.process.log import LogFile
from gpumodd.adapters.process.run import Run
from gpumodd.core.facts import Active, UnitFact
from gpumodd.drivers.api import UnitFile
from gpumodd.ports import Applied, Clock, JobResult, PortError, UnitsChanged, UnitsEvent

LAST_PATIENCE_S = 10.0
NOT_FOR_SERVICES = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "GPUMODD_")


class Job:
    """A start or a stop under way."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.result: JobResult | None = None
        self._error: PortError | None = None
        self._settled = anyio.Event()

    def end(self, result: JobResult, error: PortError | None = None) -> None:
        if self.result is None:
            self.result, self._error = result, error
            self._settled.set()

    async def wait(self) -> JobResult:
        await self._settled.wait()
        if self._error is not None:
            raise self._error
        assert self.result is not None
        return self.result


@dataclass(slots=True)
class Unit:
    service: str
    fact: UnitFact
    file: UnitFile | None = None  # none: removed while it ran
    run: Run | None = None
    job: Job | None = None

    @property
    def alive(self) -> bool:
        return self.run is not None and not self.run.gone.is_set()

    def begin(self, verb: str) -> Job:
        if self.job is not None:
            self.job.end(JobResult.CANCELED)
        self.job = Job(verb)
        return self.job

    def running_job(self, verb: str) -> Job | None:
        return self.job if self.job is not None and self.job.verb == verb and self.job.result is None else None


class ProcessUnits:
    """`Units` on subprocesses. `folder` takes logs and records; it belongs to one daemon at a time."""

    backend = "process"

    def __init__(
        self,
        clock: Clock,
        *,
        folder: Path,
        environ: Mapping[str, str] = os.environ,
        log_kib: int = 512,
    ) -> None:
        self._clock = clock
        self._folder = folder
        self._environ = {name: value for name, value in environ.items() if not name.startswith(NOT_FOR_SERVICES)}
        self._log_size = log_kib * 1024
        self._units: dict[str, Unit] = {}
        self._forks = ForkServer()
        self._shims: dict[int, str] = {}
        self._feed = Feed(self._snapshot)
        self._ending = False
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup

    async def __aenter__(self) -> "ProcessUnits":
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise PortError("unit_unwritable", f"cannot make {self._folder}: {error.strerror}") from error
        await anyio.to_thread.run_sync(leftovers.end_all, self._folder)
        async with AsyncExitStack() as stack:
            stack.callback(self._forks.close)
            self._forks.start()
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.push_async_callback(self._end)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        """All services stop, also when the daemon is being cancelled."""
        self._ending = True
        runs = [(unit, unit.run) for unit in self._units.values() if unit.run is not None and unit.alive]
        for unit in self._units.values():
            if unit.job is not None:
                unit.job.end(JobResult.CANCELED)
        patience_s = LAST_PATIENCE_S + max((unit.file.stop_timeout_s for unit, _ in runs if unit.file), default=0)
        # A process that not even SIGKILL ends (its driver hangs) must not hold up the daemon: the next one meets it.
        with anyio.move_on_after(patience_s, shield=True):
            for _, run in runs:
                run.stop()
            for _, run in runs:
                await run.gone.wait()
        self._tasks.cancel_scope.cancel()

    # -- states ---------------------------------------------------------------------------------------------------

    def _unit(self, service: str, what: str) -> Unit:
        try:
            return self._units[service]
        except KeyError:
            raise PortError("unit_missing", f"cannot {what} {service!r}: there is no such unit") from None

    def _snapshot(self) -> UnitsChanged:
        return UnitsChanged(facts=tuple(self._units[service].fact for service in sorted(self._units)), complete=True)

    def _changed(self, unit: Unit) -> None:
        """Report the unit, if its state differs from what was last said."""
        if unit.run is not None and unit.run.shim_pid is not None and unit.alive:
            self._shims[unit.run.shim_pid] = unit.service
        now = self._clock.boottime()
        fact = replace(observed(unit), at=now, since=unit.fact.since)
        if fact != replace(unit.fact, at=now):
            if (fact.active, fact.sub) != (unit.fact.active, unit.fact.sub):
                fact = replace(fact, since=now)
            unit.fact = fact
            self._feed.send(UnitsChanged(facts=(fact,)))

    # -- the port -------------------------------------------------------------------------------------------------

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[UnitsEvent]]:
        return self._feed.listen()

    async def apply(self, files: Mapping[str, UnitFile]) -> Applied:
        written = [service for service, file in files.items() if self._file(service) != file]
        removed = [service for service, unit in self._units.items() if unit.file is not None and service not in files]
        for service in written:
            fact = UnitFact(service=service, active=Active.INACTIVE, sub="dead", at=self._clock.boottime())
            self._units.setdefault(service, Unit(service, fact)).file = files[service]
        for service in removed:
            self._units[service].file = None
            self._forget(self._units[service])
        if written or removed:
            self._feed.send(self._snapshot())
        unchanged = files.keys() - set(written)
        return Applied(
            written=tuple(sorted(written)), removed=tuple(sorted(removed)), unchanged=tuple(sorted(unchanged))
        )

    def _file(self, service: str) -> UnitFile | None:
        unit = self._units.get(service)
        return unit.file if unit else None

    def _forget(self, unit: Unit) -> None:
        """A unit without a file exists as long as it runs."""
        if unit.file is None and not unit.alive and self._units.get(unit.service) is unit:
            del self._units[unit.service]

    async def start(self, service: str, env: Mapping[str, str]) -> JobResult:
        unit = self._unit(service, "start")
        if (same := unit.running_job("start")) is not None:
            return await same.wait()
        stopping = unit.running_job("stop") is not None or (unit.alive and unit.run is not None and unit.run.exited)
        if unit.alive and not stopping:
            return JobResult.DONE
        job = unit.begin("start")
        self._tasks.start_soon(self._start, unit, job, env)
        return await job.wait()

    async def _start(self, unit: Unit, job: Job, env: Mapping[str, str]) -> None:
        if unit.run is not None:
            await unit.run.gone.wait()
        if job.result is not None or self._ending:
            return job.end(JobResult.CANCELED)
        if unit.file is None:
            return job.end(
                JobResult.FAILED, PortError("unit_missing", f"cannot start {unit.service!r}: it was removed")
            )
        whole = {**self._environ, **env, **dict(unit.file.env)}
        log, record = self._log(unit.service), self._record(unit.service)
        try:
            run = Run(self._forks, unit.file, whole, log, record, lambda: self._changed(unit))
        except (OSError, ValueError, KeyError) as error:
            return job.end(JobResult.FAILED, PortError("driver_error", f"cannot start {unit.service!r}: {error}"))
        unit.run = run
        self._tasks.start_soon(self._follow, unit, run)
        await run.start_settled.wait()
        return job.end(run.started or JobResult.FAILED)

    async def _follow(self, unit: Unit, run: Run) -> None:
        self._changed(unit)
        try:
            await run.follow()
        finally:
            self._shims.pop(run.shim_pid or 0, None)
        self._forget(unit)

    async def stop(self, service: str) -> JobResult:
        unit = self._units.get(service)
        if unit is None:
            return JobResult.DONE
        if (same := unit.running_job("stop")) is not None:
            return await same.wait()
        if not unit.alive:
            if unit.running_job("start"):
                unit.begin("stop").end(JobResult.DONE)
            return JobResult.DONE
        job = unit.begin("stop")
        self._tasks.start_soon(self._stop, unit, job)
        return await job.wait()

    async def _stop(self, unit: Unit, job: Job) -> None:
        assert unit.run is not None
        run = unit.run
        run.stop()
        await run.gone.wait()
        job.end(JobResult.DONE)

    async def kill(self, service: str) -> None:
        unit = self._units.get(service)
        if unit is not None and unit.run is not None:
            unit.run.kill()

    async def reset_failed(self, service: str) -> None:
        unit = self._units.get(service)
        if unit is not None and unit.fact.active is Active.FAILED and not unit.alive:
            now = self._clock.boottime()
            unit.fact = replace(
                unit.fact, active=Active.INACTIVE, sub="dead", result="success", exit_code=None, at=now, since=now
            )
            self._feed.send(UnitsChanged(facts=(unit.fact,)))

    async def refresh(self, service: str) -> None:
        now = self._clock.boottime()
        unit = self._units.get(service)
        if unit is None:
            fact = UnitFact(service=service, active=Active.INACTIVE, sub="dead", at=now)
        else:
            fact = unit.fact = replace(unit.fact, at=now)
        self._feed.send(UnitsChanged(facts=(replace(fact, pids=await self.pids(service)),)))

    async def pids(self, service: str) -> tuple[int, ...]:
        unit = self._units.get(service)
        if unit is None or unit.run is None or unit.run.shim_pid is None or not unit.alive:
            return ()
        return tuple(sorted(procfs.descendants(unit.run.shim_pid)))

    def owner(self, pid: int) -> str | None:
        me = os.getpid()
        above: int | None = pid
        while above and above not in (1, me):
            if (service := self._shims.get(above)) is not None:
                return service
            above = procfs.parent(above)
        return None

    async def owns_listener(self, service: str, host: str, port: int) -> bool | None:
        try:
            return await anyio.to_thread.run_sync(self._owns, await self.pids(service), host, port)
        except OSError as error:
            raise unanswered(host, port, error) from error

    @staticmethod
    def _owns(pids: tuple[int, ...], host: str, port: int) -> bool | None:
        listeners = listening(host, port)
        if not listeners:
            return None
        inodes = set().union(*(procfs.socket_inodes(pid) for pid in pids))
        return all(listener.inode in inodes for listener in listeners)

    async def logs(self, service: str, *, lines: int, this_run: bool = False) -> list[str]:
        log = self._log(service)
        return await anyio.to_thread.run_sync(lambda: log.tail(lines, this_run=this_run))

    def needs(self) -> str:
        if not procfs.stat(os.getpid()):
            return "/proc is not mounted"
        if not procfs.lists_children():
            return "the kernel does not list a process's children (CONFIG_PROC_CHILDREN)"
        return ""

    def _log(self, service: str) -> LogFile:
        return LogFile(self._folder / f"{service}.log", self._log_size)

    def _record(self, service: str) -> Path:
        return self._folder / f"{service}{leftovers.SUFFIX}"


def observed(unit: Unit) -> UnitFact:
    """The unit's state in systemd's words."""
    run = unit.run
    if run is None:
        return unit.fact
    if run.gone.is_set():
        ok = run.result == "success" and run.started is JobResult.DONE
        active, sub = (Active.INACTIVE, "dead") if ok else (Active.FAILED, "failed")
    elif run.ended is not None:
        active, sub = Active.DEACTIVATING, "stop-sigterm"
    elif run.started is not JobResult.DONE:
        active, sub = Active.ACTIVATING, "start"
    else:
        active, sub = Active.ACTIVE, "running"
    return UnitFact(
        service=unit.service,
        active=active,
        sub=sub,
        at=unit.fact.at,
        main_pid=run.main_pid,
        invocation=run.invocation,
        result=run.result,
        exit_code=run.exit_code,
        ended=run.ended,
    )
