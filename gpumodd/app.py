"""The composition root: the only module that names concrete adapters. It builds the daemon, runs it and ends it."""

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from gpumodd import __version__, offline
from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.event_files import EventFiles
from gpumodd.adapters.host import LinuxHost
from gpumodd.adapters.http import HttpProber
from gpumodd.adapters.lock import DaemonLock
from gpumodd.adapters.no_devices import NoDevices
from gpumodd.adapters.notify import SystemdNotifier
from gpumodd.adapters.nvml import NvmlDevices
from gpumodd.adapters.nvml import installed as nvml_installed
from gpumodd.adapters.page_cache import LinuxPageCache
from gpumodd.adapters.process import ProcessUnits, SeenProcesses
from gpumodd.adapters.simulated import SimulatedDevices
from gpumodd.adapters.sqlite import SqliteStore
from gpumodd.adapters.systemd import SystemdUnits
from gpumodd.api.dispatch import Identity
from gpumodd.api.handlers import Daemon, handlers
from gpumodd.api.listener import Listener, open_listener
from gpumodd.api.server import Server
from gpumodd.api.simulation import Simulator
from gpumodd.api.views import Views
from gpumodd.config.load import Loaded, load
from gpumodd.configuration import Configuration
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.problems import Problem
from gpumodd.core.state import Snapshot
from gpumodd.demo.table import Device, DeviceTable
from gpumodd.offline import Eyes
from gpumodd.ports import Devices, EventLog, PortError, Units
from gpumodd.runtime.bus import Bus
from gpumodd.runtime.dispatch import Dispatcher
from gpumodd.runtime.inspect import Inspector
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.memory import Memory
from gpumodd.runtime.read_ahead import ReadAhead
from gpumodd.runtime.record import Recorder
from gpumodd.runtime.supervise import feed_watchdog, keep_running
from gpumodd.runtime.tell import Teller
from gpumodd.runtime.watch_devices import DeviceWatcher
from gpumodd.runtime.watch_health import HealthWatcher
from gpumodd.runtime.watch_units import watch_units
from gpumodd.wire import methods as m
from gpumodd.wire import paths
from gpumodd.wire import types as t
from gpumodd.wire.errors import RpcError

log = structlog.get_logger("gpumodd")

OBSERVE_S = 4.0  # whoever has not answered by then is not waited for: the socket answers 5 s after the start
FIRST_SAMPLE_S = 3.5  # a driver that has to wake its GPUs takes its time
SIMULATED_MIB = 24564


class ConfigurationError(Exception):
    """The configuration cannot be used; `loaded` says why."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__("the configuration has errors")
        self.loaded = loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where this daemon reads and writes."""

    config: Path
    state: Path
    units: Path

    @classmethod
    def from_environment(cls) -> "Places":
        """The contract's places, under the process's environment; raises PathError."""
        return cls(config=Path(paths.config_dir()), state=Path(paths.state_dir()), units=Path(paths.units_dir()))


async def run(places: Places) -> None:
    """Run the daemon until a signal or a client ends it; raises PortError and ConfigurationError before it serves."""
    notifier = SystemdNotifier.from_environment()
    async with AsyncExitStack() as stack:
        stack.enter_context(DaemonLock.acquire(places.state / "lock"))
        loaded = await anyio.to_thread.run_sync(load, places.config)
        if loaded.errors:
            raise ConfigurationError(loaded)
        configuration = Configuration(places.config, loaded)
        listener = open_listener()
        stack.callback(listener.close)
        store = await SqliteStore.open(places.state / "state.db")
        stack.push_async_callback(store.close)
        clock = SystemClock()
        memory = Memory(store, clock)
        recovered = await memory.recall()
        units = _units(loaded, configuration, places, clock, memory)
        await memory.save(recovered.snapshot or Snapshot(), ())
        devices = _devices(loaded, _table(loaded, places))
        stack.callback(devices.close)
        await stack.enter_async_context(units)
        await units.apply(loaded.unit_files)
        events = EventFiles(places.state / "events")
        shell = _Shell(configuration, clock=clock, memory=memory, units=units, devices=devices, events=events)
        stack.callback(shell.close)
        await shell.run(recovered, listener, notifier)


async def simulate(places: Places, params: m.SimulateParams) -> tuple[t.Simulation, list[str]]:
    """What a daemon would answer to mode.simulate, and remarks on what could not be looked at. Starts, stops and
    writes nothing, whether a daemon runs or not; raises ConfigurationError and RpcError."""
    remarks: list[str] = []
    loaded = await anyio.to_thread.run_sync(load, places.config)
    if loaded.errors:
        raise ConfigurationError(loaded)
    if holder := DaemonLock.holder(places.state / "lock"):
        remarks.append(f"gpumodd runs ({holder}): `gpumodctl simulate` asks it, and knows more")
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        recovered, remembered = await _recalled(places, clock, remarks)
        table = _table(loaded, places)
        if not table.exists():
            table = Path(stack.enter_context(TemporaryDirectory(prefix="gpumodd-"))) / table.name
        devices = _devices(loaded, table)
        stack.callback(devices.close)
        units = await _units_seen(loaded, places, clock, remembered, stack, remarks)
        eyes = Eyes(clock=clock, units=units, devices=devices, host=LinuxHost(clock), prober=HttpProber(clock))
        definitions = Configuration(places.config, loaded).definitions
        return await offline.simulate(eyes, definitions, recovered, params), remarks


# -- choosing adapters ----------------------------------------------------------------------------------------


def _units(loaded: Loaded, configuration: Configuration, places: Places, clock: SystemClock, memory: Memory) -> Units:
    """The backend that runs services. `auto` is decided once and remembered: it must never flip by itself."""
    wanted: str = loaded.settings.units.backend
    environment = places.state / "environment"
    systemd = SystemdUnits(configuration, clock, unit_dir=places.units, environment_dir=environment)
    missing = systemd.needs()
    if wanted == "auto":
        wanted = memory.units_backend or ("process" if missing else "systemd")
    if wanted == "systemd" and missing:
        raise PortError(
            "units_unreachable",
            f"cannot use systemd: {missing}",
            hint="log in so that a user manager runs, or set `units: {backend: process}`",
        )
    memory.units_backend = wanted
    return systemd if wanted == "systemd" else ProcessUnits(clock, folder=places.state / "processes")


async def _units_seen(
    loaded: Loaded, places: Places, clock: SystemClock, remembered: str, stack: AsyncExitStack, remarks: list[str]
) -> Units:
    """The backend that runs services, entered by somebody who only looks; without it nothing is taken to run."""
    wanted: str = loaded.settings.units.backend
    renderer = Configuration(places.config, loaded)
    systemd = SystemdUnits(renderer, clock, unit_dir=places.units, environment_dir=places.state / "environment")
    missing = systemd.needs()
    if wanted == "auto":
        wanted = remembered or ("process" if missing else "systemd")
    if wanted == "systemd" and not missing:
        try:
            return await stack.enter_async_context(systemd)
        except PortError as error:
            missing = error.message
    if wanted == "systemd":
        remarks.append(f"no service is taken to run: {missing}")
    return await stack.enter_async_context(SeenProcesses(clock, folder=places.state / "processes"))


async def _recalled(places: Places, clock: SystemClock, remarks: list[str]) -> tuple[ev.Recovered, str]:
    """What the last daemon left behind and how it ran services. What it had begun is not gone on with."""
    nothing = ev.Recovered(at=clock.boottime(), snapshot=None)
    try:
        async with SqliteStore.copy(places.state / "state.db") as store:
            if store is None:
                return nothing, ""
            memory = Memory(store, clock)
            return replace(await memory.recall(), operations=()), memory.units_backend
    except PortError as error:
        remarks.append(f"nothing is taken to be desired: {error.message}")
        return nothing, ""


def _table(loaded: Loaded, places: Places) -> Path:
    """Where simulated devices are."""
    named = loaded.settings.devices.table
    return Path(named).expanduser() if named else places.state / "devices.table"


def _devices(loaded: Loaded, table: Path) -> Devices:
    """What reads device memory."""
    match loaded.settings.devices.backend:
        case "simulated":
            if not table.exists():
                DeviceTable(table).create(Device("GPU-simulated-0", 0, SIMULATED_MIB))
            return SimulatedDevices(table)
        case "auto" if not nvml_installed():
            return NoDevices("no GPU is watched: no NVIDIA driver was found")
        case "auto" | "nvml":
            # A driver that is there but in trouble is watched all the same: it may come back.
            return NvmlDevices(first_timeout_s=FIRST_SAMPLE_S)
        case "amdgpu":
            return NoDevices("no GPU is watched: the amdgpu backend is not built yet in this version")
        case _:
            return NoDevices()


# -- the running daemon ---------------------------------------------------------------------------------------


class _Shell:
    """One running daemon: the engine, its loop, its watchers and its server."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        clock: SystemClock,
        memory: Memory,
        units: Units,
        devices: Devices,
        events: EventLog,
    ) -> None:
        self._configuration = configuration
        self._units = units
        self._memory = memory
        self._stop = anyio.Event()
        engine = Engine()
        host = LinuxHost(clock)
        self._loop = Loop(engine, clock)
        self._recorder = Recorder(engine, events, clock)
        self._loop.recorded = self._recorder.observe
        self._bus = Bus()
        self._views = Views(engine, clock)
        self._devices = DeviceWatcher(devices, units, host, self._loop)
        self._health = HealthWatcher(HttpProber(clock), units, self._loop, lambda: configuration.definitions)
        self._reader = ReadAhead(LinuxPageCache(), self._loop)
        self._inspector = Inspector(
            units=units,
            devices=self._devices,
            host=host,
            loop=self._loop,
            definitions=lambda: configuration.definitions,
        )
        self._teller = Teller(self._bus, self._loop, event=self._views.event, problem=self._shown)
        self._dispatcher = Dispatcher(
            units=units,
            devices=self._devices,
            inspector=self._inspector,
            memory=memory,
            announce=self._teller.announce,
            loop=self._loop,
            definitions=lambda: configuration.definitions,
        )
        self._loop.submit = self._dispatcher.submit
        self._loop.after_batch += [self._devices.follow, self._health.follow, self._reader.follow, self._teller.follow]
        configuration.attach(self._loop, units, self._bus)

    async def run(self, recovered: ev.Recovered, listener: Listener, notifier: SystemdNotifier) -> None:
        """Observe, then serve, until told to stop."""
        catalog = self._configuration.definitions.catalog
        self._loop.handle_now(recovered, ev.CatalogLoaded(at=self._loop.now(), catalog=catalog))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._loop.run)
            tasks.start_soon(self._dispatcher.run)
            tasks.start_soon(self._signals)
            _keep(tasks, "units", partial(watch_units, self._units, self._loop))
            await self._observe()
            _keep(tasks, "devices", self._devices.run)
            _keep(tasks, "health", self._health.run)
            _keep(tasks, "reading ahead", self._reader.run)
            _keep(tasks, "problems", self._teller.run)
            _keep(tasks, "configuration", self._configuration.watch)
            server = Server(handlers(self._daemon()), identity=self._identity())
            await tasks.start(server.serve, listener)
            if notifier.watchdog_s is not None:
                tasks.start_soon(feed_watchdog, self._loop, notifier.watchdog_s, notifier.watchdog)
            notifier.ready()
            log.info("ready", socket=listener.path, units=self._units.backend, version=__version__)
            await self._stop.wait()
            notifier.stopping()
            log.info("stopping", services="end" if self._units.backend == "process" else "keep running")
            tasks.cancel_scope.cancel()

    def close(self) -> None:
        """End what outlives the loop."""
        self._recorder.close()

    async def _observe(self) -> None:
        """Wait until units and devices have been seen in full once; whoever does not answer is not waited for."""
        state = self._loop.engine.state
        seen = anyio.Event()

        def look() -> None:
            if self._loop.observed_units and state.devices is not None:
                seen.set()

        self._loop.after_batch.append(look)
        with anyio.move_on_after(OBSERVE_S):
            await self._devices.post_sample()
            await seen.wait()
        self._loop.after_batch.remove(look)
        await self._loop.handled(ev.ObservationCompleted(at=self._loop.now()))

    async def _signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    try:
                        await self._configuration.reload(False)
                    except RpcError as error:
                        log.error("cannot_reload", error=error.message)
                else:
                    self._stop.set()

    def _daemon(self) -> Daemon:
        return Daemon(
            loop=self._loop,
            views=self._views,
            bus=self._bus,
            units=self._units,
            simulator=Simulator(
                views=self._views,
                inspector=self._inspector,
                observe=self._loop.handled,
                definitions=lambda: self._configuration.definitions,
            ),
            memory=self._memory,
            reload=self._configuration.reload,
            check=self._configuration.check,
            write_mode=self._configuration.write_mode,
            remove_mode=self._configuration.remove_mode,
            shutdown=self._stop.set,
        )

    def _identity(self) -> Identity:
        return Identity(version=__version__, pid=os.getpid(), started_at=self._views.time(self._loop.now()))

    def _shown(self, problem: Problem) -> dict[str, Any]:
        shown: dict[str, Any] = msgspec.to_builtins(self._views.problem(problem))
        return shown


def _keep(tasks: anyio.abc.TaskGroup, name: str, work: Callable[[], Awaitable[None]]) -> None:
    tasks.start_soon(keep_running, name, work)
