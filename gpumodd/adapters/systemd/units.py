"""systemd's user manager as an implementation of the port `Units`.

Owns the connection's life (open, watch, lose, open again) and the table of unit states. It decides nothing: a unit
is started or stopped when the port is told to, and what the manager reports is passed on.
"""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from sdbus import decode_object_path

from gpumodd.adapters import procfs
from gpumodd.adapters.feed import Feed
from gpumodd.adapters.listeners import listening, named, unanswered
from gpumodd.adapters.systemd.bus import PROPERTIES, SYSTEMD, SYSTEMD_PATH, Connection
from gpumodd.adapters.systemd.facts import Times, UnitState, plain
from gpumodd.adapters.systemd.jobs import Jobs
from gpumodd.adapters.systemd.journal import LATE_S, Journal
from gpumodd.adapters.systemd.names import PATTERN, service_of, unit_name
from gpumodd.adapters.systemd.survivors import Survivors
from gpumodd.adapters.systemd.unit_files import UnitDirectory
from gpumodd.core.facts import UnitFact
from gpumodd.drivers.api import UnitFile
from gpumodd.ports import (
    Applied,
    Clock,
    JobResult,
    PortError,
    UnitFiles,
    UnitsChanged,
    UnitsEvent,
    UnitsLost,
)

MANAGER = f"{SYSTEMD}.Manager"
UNIT_INTERFACE, SERVICE_INTERFACE = f"{SYSTEMD}.Unit", f"{SYSTEMD}.Service"
UNIT_PREFIX = f"{SYSTEMD_PATH}/unit"
OUR_UNITS = f"{UNIT_PREFIX}/gpumod_2d"
SIGKILL = 9
RECONNECT_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # and so on with the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to look whether the manager is there, and how long it may take to answer."""

    ping_every_s: float = 2.0
    answer_within_s: float = 5.0


class SystemdUnits:
    """`Units` on a user manager. Its environment (DBUS_SESSION_BUS_ADDRESS, XDG_RUNTIME_DIR) says which."""

    backend = "systemd"

    def __init__(
        self,
        renderer: UnitFiles,
        clock: Clock,
        *,
        unit_dir: Path,
        environment_dir: Path,
        journalctl: Sequence[str] = ("journalctl",),
        pace: Pace | None = None,
    ) -> None:
        self._files = UnitDirectory(renderer, unit_dir, environment_dir)
        self._clock = clock
        self._journal = Journal(journalctl)
        self._pace = pace or Pace()
        self._feed = Feed(self._snapshot)
        self._jobs = Jobs()
        self._states: dict[str, UnitState] = {}
        self._connection: Connection | None = None
        self._manager_cgroup = ""
        self._cgroup_mount = procfs.cgroup_mount()
        self._cgroups: dict[str, tuple[str, Path]] = {}  # by service: the run, and where its processes are
        self._survivors = Survivors(self.refresh)
        self._reloaded = False
        self._stack = AsyncExitStack()

    # -- the connection's life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> "SystemdUnits":
        await self._connect()
        async with AsyncExitStack() as stack:
            stack.callback(self._disconnect)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._stay_connected)
            tasks.start_soon(self._survivors.watch)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _stay_connected(self) -> None:
        while True:
            assert self._connection is not None
            connection = self._connection
            await connection.ping(every_s=self._pace.ping_every_s, answer_s=self._pace.answer_within_s)
            self._disconnect()
            self._feed.send(UnitsLost(reason=connection.lost))
            await self._reconnect()
            self._feed.send(self._snapshot())

    async def _reconnect(self) -> None:
        for attempt in range(1 << 30):
            await anyio.sleep(RECONNECT_S[min(attempt, len(RECONNECT_S) - 1)])
            try:
                with anyio.fail_after(self._pace.answer_within_s):
                    await self._connect()
            except (PortError, TimeoutError):
                continue
            return

    async def _connect(self) -> None:
        """Listen first, then look: a change between the two is seen twice rather than never."""
        connection = Connection()
        self._connection, self._jobs = connection, Jobs()
        try:
            await connection.on_signal(SYSTEMD, f"{MANAGER}.JobRemoved", self._job_removed)
            await connection.on_signal(SYSTEMD, f"{PROPERTIES}.PropertiesChanged", self._properties_changed)
            await connection.on_signal(
                "org.freedesktop.DBus", "org.freedesktop.DBus.NameOwnerChanged", self._name_changed
            )
            await self._manager("watch the user manager", "Subscribe")
            self._manager_cgroup = str(await self._property(SYSTEMD_PATH, MANAGER, "ControlGroup"))
            if self._cgroup_mount is not None:
                self._survivors.manager = self._cgroup_mount / self._manager_cgroup.lstrip("/")
            await self._resync()
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._jobs.lost()

    # -- what the manager says ------------------------------------------------------------------------------------

    def _job_removed(self, _path: str, contents: Any) -> None:
        _, job, _, result = contents
        self._jobs.removed(job, result)

    def _name_changed(self, _path: str, contents: Any) -> None:
        name, before, _ = contents
        if name == SYSTEMD and before and self._connection is not None:
            self._connection.lose("the user manager has left the bus")

    def _properties_changed(self, path: str, contents: Any) -> None:
        service = service_of_path(path)
        if service is None:
            return
        interface, changed, _ = contents
        state = self._state(service)
        if interface == SERVICE_INTERFACE:
            state.pending = plain(changed)
        elif interface == UNIT_INTERFACE:
            before = state.fact
            fact = self._fold(service, {**state.pending, **plain(changed)})
            if before is None or _differs(before, fact):
                self._feed.send(UnitsChanged(facts=(fact,)))

    async def _resync(self) -> None:
        """Read every unit of ours; forget those that neither run nor have a file."""
        loaded = await self._manager("list units", "ListUnitsByPatterns", "asas", [], [PATTERN])
        running = {service: str(row[6]) for row in loaded if (service := service_of(str(row[0])))}
        known = running.keys() | await anyio.to_thread.run_sync(self._files.present)
        for service in sorted(known):
            if service in running:
                self._fold(service, await self._properties(running[service]), continuous=False)
            else:
                self._state(service).unloaded(self._clock.boottime(), survivors=self._survivors.of(service))
        for service in self._states.keys() - known:
            del self._states[service]

    def _fold(self, service: str, properties: Mapping[str, Any], *, continuous: bool = True) -> UnitFact:
        gone = properties.get("ActiveState") in ("inactive", "failed")
        survivors = self._survivors.of(service) if gone else self._survivors.none(service)
        return self._state(service).fold(properties, self._times(), continuous=continuous, survivors=survivors)

    def _snapshot(self) -> UnitsChanged:
        facts = (self._states[service].fact for service in sorted(self._states))
        return UnitsChanged(facts=tuple(fact for fact in facts if fact is not None), complete=True)

    def _state(self, service: str) -> UnitState:
        return self._states.setdefault(service, UnitState(service))

    def _times(self) -> Times:
        return Times(boottime=self._clock.boottime(), monotonic=anyio.current_time())

    # -- calls ----------------------------------------------------------------------------------------------------

    async def _manager(self, what: str, member: str, signature: str = "", *args: Any) -> Any:
        return await self._open(what).call(what, SYSTEMD_PATH, f"{MANAGER}.{member}", signature, *args)

    def _open(self, what: str) -> Connection:
        if self._connection is None:
            raise PortError("bus_lost", f"cannot {what}: not connected to the user manager", hint="it is tried again")
        return self._connection

    async def _property(self, path: str, interface: str, name: str) -> Any:
        what = f"read {name}"
        _, value = await self._open(what).call(what, path, f"{PROPERTIES}.Get", "ss", interface, name)
        return value

    async def _properties(self, path: str) -> dict[str, Any]:
        """All properties at one moment: the empty interface stands for every one."""
        what = f"read {path}"
        return plain(await self._open(what).call(what, path, f"{PROPERTIES}.GetAll", "s", ""))

    async def _loaded(self, service: str) -> str | None:
        """The unit's object path, or None when the manager has not loaded it: then nothing of it runs."""
        unit = unit_name(service)
        try:
            return str(await self._manager(f"find {unit}", "GetUnit", "s", unit))
        except PortError as error:
            if error.code == "unit_missing":
                return None
            raise

    async def _job(self, what: str, member: str, service: str) -> JobResult:
        jobs = self._jobs
        try:
            with jobs.expecting():
                ended = jobs.wait_for(await self._manager(what, member, "ss", unit_name(service), "replace"))
        except PortError as error:
            if error.code == "bus_lost":
                return JobResult.LOST  # whether the manager has got it, nobody knows
            raise
        return await ended

    # -- the port -------------------------------------------------------------------------------------------------

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[UnitsEvent]]:
        return self._feed.listen()

    async def apply(self, files: Mapping[str, UnitFile]) -> Applied:
        for service in files:
            unit_name(service)
        applied = await anyio.to_thread.run_sync(self._files.apply, files)
        # Files of a daemon that was killed before its reload look unchanged: the first time counts as a change.
        if applied.written or applied.removed or not self._reloaded:
            self._reloaded = False  # until it has: the files are there already when it is tried again
            await self._manager("reload the user manager", "Reload")
            self._reloaded = True
            for service in applied.removed:
                await self.reset_failed(service)  # or the manager would remember it for ever
            await self._resync()
            self._feed.send(self._snapshot())
        return applied

    async def start(self, service: str, env: Mapping[str, str]) -> JobResult:
        await anyio.to_thread.run_sync(self._files.select, service, env)
        if (state := self._states.get(service)) is not None:
            state.asked_us = int(self._clock.wall() * 1_000_000)
        return await self._job(f"start {service}", "StartUnit", service)

    async def stop(self, service: str) -> JobResult:
        try:
            return await self._job(f"stop {service}", "StopUnit", service)
        except PortError as error:
            if error.code == "unit_missing":
                return JobResult.DONE
            raise

    async def kill(self, service: str) -> None:
        await self._if_loaded(f"kill {service}", "KillUnit", "ssi", unit_name(service), "all", SIGKILL)

    async def reset_failed(self, service: str) -> None:
        await self._if_loaded(f"reset {service}", "ResetFailedUnit", "s", unit_name(service))

    async def _if_loaded(self, what: str, member: str, signature: str, *args: Any) -> None:
        try:
            await self._manager(what, member, signature, *args)
        except PortError as error:
            if error.code != "unit_missing":
                raise

    async def refresh(self, service: str) -> None:
        path = await self._loaded(service)
        state = self._states.get(service) or UnitState(service)
        if path is None:
            fact = state.unloaded(self._clock.boottime(), survivors=self._survivors.of(service))
        else:
            fact = self._fold(service, await self._properties(path))
        self._feed.send(UnitsChanged(facts=(replace(fact, pids=await self.pids(service) or fact.pids),)))

    async def pids(self, service: str) -> tuple[int, ...]:
        folder = await self._cgroup(service)
        return procfs.cgroup_members(folder) if folder else ()

    async def _cgroup(self, service: str) -> Path | None:
        """The directory of the unit's cgroup, if it has one at the moment. It is the same for the whole of a run."""
        if self._cgroup_mount is None:
            return None
        state = self._states.get(service)
        run = state.fact.invocation if state and state.fact and not state.fact.gone else ""
        known_run, folder = self._cgroups.get(service, ("", None))
        if run and run == known_run:
            return folder
        path = await self._loaded(service)
        cgroup = str(await self._property(path, SERVICE_INTERFACE, "ControlGroup")) if path is not None else ""
        if not cgroup:
            return None
        folder = self._cgroup_mount / cgroup.lstrip("/")
        self._cgroups[service] = run, folder
        return folder

    def owner(self, pid: int) -> str | None:
        cgroup = procfs.cgroup(pid)
        if cgroup is None or not self._manager_cgroup or not cgroup.startswith(f"{self._manager_cgroup}/"):
            return None
        return next((found for part in cgroup.split("/") if (found := service_of(part))), None)

    async def owns_listener(self, service: str, host: str, port: int) -> bool | None:
        try:
            # The kernel answers sooner than a thread could be woken, and each probe of a loading service asks this.
            thread = anyio.to_thread.run_sync
            listeners = await thread(listening, host, port) if named(host) else listening(host, port)
        except OSError as error:
            raise unanswered(host, port, error) from error
        if not listeners:
            return None
        folder = await self._cgroup(service)
        if folder is None:
            return False
        ids = procfs.cgroup_ids(folder)
        return all(listener.cgroup_id in ids for listener in listeners)

    async def logs(self, service: str, *, lines: int, this_run: bool = False) -> list[str]:
        identifier = unit_name(service).removesuffix(".service")
        state = self._states.get(service)
        since_us = 0
        if state is not None and this_run:
            since_us = state.output_since_us(int(self._clock.wall() * 1e6), int(anyio.current_time() * 1e6))
        fact = state.fact if state else None
        if fact and fact.gone and self._clock.boottime() - (fact.since or 0) < 5 * LATE_S:
            await anyio.sleep(LATE_S)  # its last words may be on their way
        try:
            return await self._journal.tail(identifier, lines=lines, since_us=since_us)
        except PortError:
            await anyio.sleep(LATE_S)  # a user's first line ever makes the user's journal
            return await self._journal.tail(identifier, lines=lines, since_us=since_us)

    def needs(self) -> str:
        if not os.environ.get("DBUS_SESSION_BUS_ADDRESS") and not os.environ.get("XDG_RUNTIME_DIR"):
            return "no user session: XDG_RUNTIME_DIR is not set"
        runtime_dir = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
        if not (runtime_dir / "systemd/private").exists():
            return f"no systemd user manager runs: {runtime_dir}/systemd/private does not exist"
        if "DBUS_SESSION_BUS_ADDRESS" not in os.environ and not (runtime_dir / "bus").exists():
            return f"no D-Bus of the user: {runtime_dir}/bus does not exist (Debian: the package dbus-user-session)"
        if self._cgroup_mount is None:
            return "no unified cgroup hierarchy (cgroup2) is mounted"
        return ""


def service_of_path(path: str) -> str | None:
    """The service of a unit's object path; None for everything that is not ours, quickly."""
    if not path.startswith(OUR_UNITS):
        return None
    name = decode_object_path(UNIT_PREFIX, path)
    return service_of(name) if name else None


def _differs(before: UnitFact, after: UnitFact) -> bool:
    """A job that comes or goes changes nothing that a fact says."""
    return any(
        getattr(before, name) != getattr(after, name)
        for name in ("active", "sub", "main_pid", "invocation", "result", "exit_code", "ended", "gone")
    )
