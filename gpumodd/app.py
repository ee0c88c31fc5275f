"""The composition root: the only module that names concrete adapters. It builds the daemon, runs it and ends it."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from gpumodd import __version__
from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.host import LinuxHost
from gpumodd.adapters.http import HttpProber
from gpumodd.adapters.lock import DaemonLock
from gpumodd.adapters.no_devices import NoDevices
from gpumodd.adapters.notify import SystemdNotifier
from gpumodd.adapters.nvml import NvmlDevices
from gpumodd.adapters.nvml import installed as nvml_installed
from gpumodd.adapters.process import ProcessUnits
from gpumodd.adapters.simulated import SimulatedDevices
from gpumodd.adapters.sqlite import SqliteStore
from gpumodd.adapters.systemd import SystemdUnits
from gpumodd.api.dispatch import Identity
from gpumodd.api.handlers import Daemon, handlers
from gpumodd.api.listener import Listener, open_listener
from gpumodd.api.server import Server
from gpumodd.api.views import Views
from gpumodd.config import modes as mode_files
from gpumodd.config.errors import ConfigProblem
from gpumodd.config.load import Loaded, load
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.specs import Catalog
from gpumodd.core.state import Snapshot
from gpumodd.demo.table import Device, DeviceTable
from gpumodd.drivers.api import UnitFile
from gpumodd.ports import Devices, PortError, Units
from gpumodd.runtime.bus import Bus
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.dispatch import Dispatcher
from gpumodd.runtime.inspect import Inspector
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.memory import Memory
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

OBSERVE_S = 5.0  # the socket answers after the first full observation, or after this long
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
        """The contract's places, under the process's environment."""
        return cls(config=Path(paths.config_dir()), state=Path(paths.state_dir()), units=Path(paths.units_dir()))


async def run(places: Places) -> None:
    """Run the daemon until a signal or a client ends it; raises PortError and ConfigurationError before it serves."""
    notifier = SystemdNotifier.from_environment()
    async with AsyncExitStack() as stack:
        lock = stack.enter_context(DaemonLock.acquire(places.state / "lock"))
        assert lock is not None
        loaded = await anyio.to_thread.run_sync(load, places.config)
        if loaded.errors:
            raise ConfigurationError(loaded)
        listener = open_listener()
        stack.callback(listener.close)
        store = await SqliteStore.open(places.state / "state.db")
        stack.push_async_callback(store.close)
        clock = SystemClock()
        memory = Memory(store, clock)
        recovered = await memory.recall()
        renderer = CurrentRenderer(loaded)
        units = await _units(loaded, renderer, places, clock, memory, recovered.snapshot)
        devices = await _devices(loaded, places)
        stack.callback(devices.close)
        await stack.enter_async_context(units)
        await units.apply(loaded.unit_files)
        shell = _Shell(places, loaded, renderer, clock=clock, memory=memory, units=units, devices=devices)
        await shell.run(recovered, listener, notifier)


# -- choosing adapters ----------------------------------------------------------------------------------------


async def _units(
    loaded: Loaded,
    renderer: "CurrentRenderer",
    places: Places,
    clock: SystemClock,
    memory: Memory,
    snapshot: Snapshot | None,
) -> Units:
    """The backend that runs services. `auto` is decided once and remembered: it must never flip by itself."""
    wanted = loaded.settings.units.backend
    systemd = SystemdUnits(renderer, clock, unit_dir=places.units, environment_dir=places.state / "environment")
    process = ProcessUnits(clock, folder=places.state / "processes")
    if wanted == "auto":
        wanted = memory.units_backend or ("process" if systemd.needs() else "systemd")  # type: ignore[assignment]
    if wanted == "systemd" and systemd.needs() and memory.units_backend != "systemd":
        raise PortError(
            "units_unreachable",
            f"cannot use systemd: {systemd.needs()}",
            hint="log in so that a user manager runs, or set `units: {backend: process}`",
        )
    memory.units_backend = wanted
    await memory.save(snapshot or Snapshot(), ())
    return systemd if wanted == "systemd" else process


async def _devices(loaded: Loaded, places: Places) -> Devices:
    """What reads device memory."""
    section = loaded.settings.devices
    match section.backend:
        case "simulated":
            table = Path(section.table).expanduser() if section.table else places.state / "devices.table"
            if not await anyio.Path(table).exists():
                DeviceTable(table).create(Device("GPU-simulated-0", 0, SIMULATED_MIB))
            return SimulatedDevices(table)
        case "nvml":
            return NvmlDevices()
        case "auto":
            # A driver that is there but in trouble is watched all the same: it may come back.
            return NvmlDevices() if nvml_installed() else NoDevices("no GPU is watched: no NVIDIA driver was found")
        case "amdgpu":
            return NoDevices("no GPU is watched: the amdgpu backend is not built yet in this version")
        case _:
            return NoDevices()


class CurrentRenderer:
    """The port UnitFiles over the configuration in force; a reload brings its own templates."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    def render(self, unit: UnitFile, *, environment_file: str) -> str:
        """As the configuration's renderer says."""
        return self.loaded.renderer.render(unit, environment_file=environment_file)

    def render_environment(self, env: Mapping[str, str]) -> str:
        """As the configuration's renderer says."""
        return self.loaded.renderer.render_environment(env)


# -- the running daemon ---------------------------------------------------------------------------------------


class _Shell:
    """One running daemon: the engine, its loop, its watchers and its server."""

    def __init__(
        self,
        places: Places,
        loaded: Loaded,
        renderer: CurrentRenderer,
        *,
        clock: SystemClock,
        memory: Memory,
        units: Units,
        devices: Devices,
    ) -> None:
        self._places = places
        self._renderer = renderer
        self._definitions = definitions_of(loaded)
        self._units = units
        self._memory = memory
        self._clock = clock
        self._stop = anyio.Event()
        engine = Engine()
        host = LinuxHost(clock)
        self.loop = Loop(engine, clock)
        self._bus = Bus()
        self._views = Views(engine, clock)
        self._devices = DeviceWatcher(devices, units, host, self.loop)
        self._health = HealthWatcher(HttpProber(clock), units, self.loop, lambda: self._definitions)
        self._inspector = Inspector(units, self._devices, host, lambda: self._definitions)
        self._teller = Teller(
            self._bus,
            self.loop,
            event=self._views.event,
            problem=lambda problem: msgspec.to_builtins(self._views.problem(problem)),  # type: ignore[no-any-return]
        )
        self._dispatcher = Dispatcher(
            units=units,
            devices=self._devices,
            inspector=self._inspector,
            memory=memory,
            announce=self._teller.announce,
            loop=self.loop,
            definitions=lambda: self._definitions,
        )
        self.loop.submit = self._dispatcher.submit
        self.loop.after_batch += [self._devices.follow, self._health.follow, self._teller.follow]

    async def run(self, recovered: ev.Recovered, listener: Listener, notifier: SystemdNotifier) -> None:
        """Observe, then serve, until told to stop."""
        self.loop.handle_now(recovered, ev.CatalogLoaded(at=self.loop.now(), catalog=self._definitions.catalog))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.loop.run)
            tasks.start_soon(self._dispatcher.run)
            tasks.start_soon(self._signals)
            self._keep(tasks, "units", partial(watch_units, self._units, self.loop))
            await self._observe()
            self._keep(tasks, "devices", self._devices.run)
            self._keep(tasks, "health", self._health.run)
            self._keep(tasks, "problems", self._teller.run)
            server = Server(handlers(self._daemon()), identity=self._identity())
            await tasks.start(server.serve, listener)
            if notifier.watchdog_s is not None:
                tasks.start_soon(feed_watchdog, self.loop, notifier.watchdog_s, notifier.watchdog)
            notifier.ready()
            log.info("ready", socket=listener.path, units=self._units.backend, version=__version__)
            await self._stop.wait()
            notifier.stopping()
            log.info("stopping", services="end" if self._units.backend == "process" else "keep running")
            tasks.cancel_scope.cancel()

    @staticmethod
    def _keep(tasks: anyio.abc.TaskGroup, name: str, work: Callable[[], object]) -> None:
        tasks.start_soon(keep_running, name, work)  # type: ignore[arg-type]

    def _identity(self) -> Identity:
        return Identity(version=__version__, pid=os.getpid(), started_at=self._views.time(self.loop.now()))

    async def _observe(self) -> None:
        """Wait until units and devices have been seen in full once; a backend that does not answer is no reason
        not to say so."""
        state = self.loop.engine.state
        seen = anyio.Event()

        def look() -> None:
            if self.loop.observed_units and state.devices is not None:
                seen.set()

        self.loop.after_batch.append(look)
        with anyio.move_on_after(OBSERVE_S):
            await self._devices.post_sample()
            await seen.wait()
        self.loop.after_batch.remove(look)
        await self.loop.handled(ev.ObservationCompleted(at=self.loop.now()))

    async def _signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    result = await self.reload(False)
                    log.info("reloaded", errors=len(result.errors), changed=len(result.changed))
                else:
                    self._stop.set()

    # -- what the handlers ask of the daemon ------------------------------------------------------------------

    def _daemon(self) -> Daemon:
        return Daemon(
            loop=self.loop,
            views=self._views,
            bus=self._bus,
            units=self._units,
            inspector=self._inspector,
            memory=self._memory,
            reload=self.reload,
            check=self._check,
            write_mode=self._write_mode,
            remove_mode=self._remove_mode,
            shutdown=self._stop.set,
        )

    async def reload(self, restart_changed: bool) -> t.Reload:
        """Read the configuration again; with errors everything stays as it was."""
        loaded = await anyio.to_thread.run_sync(load, self._places.config)
        before = self._definitions.catalog
        if loaded.errors:
            log.warning("reload_refused", errors=len(loaded.errors))
            ids = sorted([*before.services, *before.modes])
            return t.Reload(unchanged=ids, errors=[_problem(p) for p in loaded.errors])
        self._renderer.loaded = loaded
        await self._units.apply(loaded.unit_files)
        self._definitions = definitions_of(loaded)
        await self.loop.handled(ev.CatalogLoaded(at=self.loop.now(), catalog=loaded.catalog))
        result = _difference(before, loaded.catalog)
        self._bus.publish(self.loop.now(), "config", msgspec.to_builtins(result))
        if restart_changed:
            result.restarted = await self._restart(result.changed)
        return result

    async def _restart(self, changed: list[str]) -> list[str]:
        """Restart what runs with an old definition."""
        running = [s for s in changed if s in self._definitions.catalog.services and self._runs(s)]
        for service in running:
            await self.loop.request(
                lambda number, s=service: ev.ServiceRequested(  # type: ignore[misc]
                    at=self.loop.now(), request=number, actor="reload", kind="restart", service=s
                )
            )
        return running

    def _runs(self, service: str) -> bool:
        track = self.loop.engine.state.tracks.get(service)
        return track is not None and not track.gone

    async def _check(self) -> t.ConfigCheck:
        loaded = await anyio.to_thread.run_sync(load, self._places.config)
        return t.ConfigCheck(problems=[_problem(p) for p in loaded.problems])

    async def _write_mode(self, params: m.ModeCreateParams) -> None:
        if params.id in self._definitions.catalog.modes:
            raise RpcError("conflict", f"cannot create mode {params.id!r}: it exists", hint="delete it first")
        write = partial(
            mode_files.write,
            self._places.config,
            id=params.id,
            name=params.name,
            description=params.description,
            services=params.services,
        )
        await self._changing(write, undo=partial(mode_files.remove, self._places.config, params.id))

    async def _remove_mode(self, id: str) -> None:
        if id == "blank":
            raise RpcError("conflict", "cannot delete mode 'blank': it always exists")
        await self._changing(partial(mode_files.remove, self._places.config, id))

    async def _changing(self, work: Callable[[], object], *, undo: Callable[[], object] | None = None) -> None:
        """Change a file and take the configuration over; what does not check is undone."""
        try:
            await anyio.to_thread.run_sync(work)
        except OSError as error:
            raise RpcError("invalid_config", f"cannot change the configuration: {error.strerror}") from None
        result = await self.reload(False)
        if result.errors:
            if undo is not None:
                await anyio.to_thread.run_sync(undo)
            first = result.errors[0]
            raise RpcError(
                "invalid_config",
                f"cannot use it: {first.message}",
                hint=first.hint,
                details={"errors": msgspec.to_builtins(result.errors)},
            )


def definitions_of(loaded: Loaded) -> Definitions:
    """A loaded configuration as the shell uses it."""
    return Definitions(
        catalog=loaded.catalog,
        unit_files=loaded.unit_files,
        probes=loaded.probes,
        device_env={s: partial(loaded.device_env, s) for s in loaded.catalog.services},
    )


def _problem(problem: ConfigProblem) -> t.ConfigProblem:
    return t.ConfigProblem(
        message=problem.message,
        code=problem.code,
        file=problem.file,
        line=problem.line,
        column=problem.column,
        path=problem.path,
        hint=problem.hint,
    )


def _difference(before: Catalog, after: Catalog) -> t.Reload:
    """What changed, by service and mode id; a service counts as changed when anything it is started with differs."""
    old: dict[str, object] = {**before.modes, **before.services}
    new: dict[str, object] = {**after.modes, **after.services}
    same = {i for i in old.keys() & new.keys() if old[i] == new[i]}
    return t.Reload(
        added=sorted(new.keys() - old.keys()),
        changed=sorted((old.keys() & new.keys()) - same),
        removed=sorted(old.keys() - new.keys()),
        unchanged=sorted(same),
    )
