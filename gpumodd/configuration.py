"""The configuration in force: read anew, compared, taken over, and its mode files changed on a client's behalf.

Owns which configuration the daemon works with. A configuration with errors is never taken over: the last good one
stays, and the errors say where they are.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from gpumodd.config import modes as mode_files
from gpumodd.config.errors import ConfigProblem
from gpumodd.config.load import Loaded, load
from gpumodd.config.stamp import stamp
from gpumodd.core import events as ev
from gpumodd.core import world
from gpumodd.core.specs import Catalog
from gpumodd.drivers.api import UnitFile
from gpumodd.ports import PortError, Units
from gpumodd.runtime.bus import Bus
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.loop import Loop
from gpumodd.wire import methods as m
from gpumodd.wire import types as t
from gpumodd.wire.errors import RpcError

LOOK_S = 0.5  # between looks at the directory
QUIET_S = 0.2  # without a change before it is read
AGAIN_S = 10.0  # after units could not be written
TOLD = 20  # mistakes that a status shows

log = structlog.get_logger("gpumodd.configuration")


class Configuration:
    """One directory's configuration. It is also the renderer of units: a reload brings its own templates."""

    def __init__(self, directory: Path, loaded: Loaded) -> None:
        self._directory = directory
        self._loaded = loaded
        self._stamp = loaded.stamp  # of the files as they were last read
        self._reloading = anyio.Lock()
        self._reloaded = anyio.Event()
        self.definitions = definitions_of(loaded)
        self._loop: Loop
        self._units: Units
        self._bus: Bus

    def attach(self, loop: Loop, units: Units, bus: Bus) -> None:
        """From now on changes reach these."""
        self._loop, self._units, self._bus = loop, units, bus

    # -- the port UnitFiles -----------------------------------------------------------------------------------

    def render(self, unit: UnitFile, *, environment_file: str) -> str:
        """As the configuration's templates say."""
        return self._loaded.renderer.render(unit, environment_file=environment_file)

    def render_environment(self, env: Mapping[str, str]) -> str:
        """As systemd's EnvironmentFile has it."""
        return self._loaded.renderer.render_environment(env)

    # -- reading anew -----------------------------------------------------------------------------------------

    async def check(self) -> t.ConfigCheck:
        """What is wrong with what is on disk now."""
        loaded = await anyio.to_thread.run_sync(load, self._directory)
        return t.ConfigCheck(problems=[_problem(p) for p in loaded.problems])

    async def reload(self, restart_changed: bool) -> t.Reload:
        """Take over what is on disk; with errors everything stays as it was. Raises RpcError when units cannot be
        written: what they run is then not changed either."""
        async with self._reloading:
            return await self._reload(restart_changed)

    async def _reload(self, restart_changed: bool) -> t.Reload:
        loaded = await anyio.to_thread.run_sync(load, self._directory)
        before = self.definitions.catalog
        if loaded.errors:
            self._stamp = loaded.stamp
            log.warning("reload_refused", errors=len(loaded.errors), first=loaded.errors[0].text())
            errors = tuple(problem.text() for problem in loaded.errors[:TOLD])
            await self._loop.handled(ev.CatalogRejected(at=self._loop.now(), errors=errors))
            unchanged = sorted({*before.services, *before.modes})
            return t.Reload(unchanged=unchanged, errors=[_problem(p) for p in loaded.errors])
        before_that, self._loaded = self._loaded, loaded
        try:
            await self._units.apply(loaded.unit_files)
        except PortError as error:
            self._loaded = before_that
            raise RpcError("failed", error.message, hint=error.hint, details={"code": error.code}) from None
        self._stamp = loaded.stamp
        self.definitions = definitions_of(loaded)
        self._reloaded.set()
        await self._loop.handled(ev.CatalogLoaded(at=self._loop.now(), catalog=loaded.catalog))
        result = _difference(before, loaded.catalog)
        log.info("reloaded", added=len(result.added), changed=len(result.changed), removed=len(result.removed))
        result.stale = self._stale()
        if restart_changed:
            result.restarted = await self._restart(result.stale)
        self._bus.publish(self._loop.now(), "config", msgspec.to_builtins(result))
        return result

    async def watch(self) -> None:
        """Take over what changes on disk, as long as the configuration in force wants that; until cancelled."""
        while True:
            with anyio.move_on_after(LOOK_S if self._loaded.settings.config.watch else None):
                await self._reloaded.wait()  # it may say otherwise now
            self._reloaded = anyio.Event()
            if self._loaded.settings.config.watch:
                await self._follow_disk()

    async def _follow_disk(self) -> None:
        seen = await anyio.to_thread.run_sync(stamp, self._directory)
        if seen == self._stamp:
            return
        # Somebody is writing: wait until nothing has changed for a moment. A file that is half there all the same
        # is a mistake like any other, and gone when the other half comes.
        while True:
            await anyio.sleep(QUIET_S)
            before, seen = seen, await anyio.to_thread.run_sync(stamp, self._directory)
            if seen == before:
                break
        try:
            await self.reload(False)
        except RpcError as error:  # the units cannot be written now: they may be when the manager is back
            log.error("cannot_reload", error=error.message)
            await anyio.sleep(AGAIN_S)

    def _stale(self) -> list[str]:
        """What runs with an old definition, of this reload or of one before."""
        state = self._loop.engine.state
        return [s for s in sorted(state.catalog.services) if world.stale(state, s)]

    async def _restart(self, stale: list[str]) -> list[str]:
        """Ask for a restart of each, and say which are under way; the engine judges and orders them as anybody's. What
        is refused goes on as it is, and stale."""
        restarted: list[str] = []
        for service in stale:
            reply = await self._loop.request(partial(self._restart_request, service))
            if reply.refusal is None:
                restarted.append(service)
            else:
                log.warning("restart_refused", service=service, why=reply.refusal.message)
        return restarted

    def _restart_request(self, service: str, number: int) -> ev.Request:
        now = self._loop.now()
        return ev.ServiceRequested(at=now, request=number, actor="reload", kind="restart", service=service)

    # -- mode files -------------------------------------------------------------------------------------------

    async def write_mode(self, params: m.ModeCreateParams) -> None:
        """Write a new mode's file and take it over; a mode that does not check leaves no file."""
        if params.id in self.definitions.catalog.modes:
            raise RpcError("conflict", f"cannot create mode {params.id!r}: it exists", hint="delete it first")
        write = partial(
            mode_files.write,
            self._directory,
            id=params.id,
            name=params.name,
            description=params.description,
            services=params.services,
        )
        await self._change(write, undo=partial(mode_files.remove, self._directory, params.id))

    async def remove_mode(self, id: str) -> None:
        """Remove a mode's file."""
        if id == "blank":
            raise RpcError("conflict", "cannot delete mode 'blank': it always exists")
        await self._change(partial(mode_files.remove, self._directory, id))

    async def _change(self, work: Callable[[], object], *, undo: Callable[[], object] | None = None) -> None:
        loaded = await anyio.to_thread.run_sync(load, self._directory)
        if loaded.errors:  # whatever is done to the file, it could not be taken over
            raise _unusable([_problem(p) for p in loaded.errors])
        try:
            await anyio.to_thread.run_sync(work)
        except OSError as error:
            raise RpcError("invalid_config", f"cannot change the configuration: {error.strerror}") from None
        try:
            result = await self.reload(False)
            if result.errors:
                raise _unusable(result.errors)
        except RpcError:
            if undo is not None:
                await anyio.to_thread.run_sync(undo)
                with contextlib.suppress(RpcError):  # what was wrong is gone again
                    await self.reload(False)
            raise


def _unusable(errors: Sequence[t.ConfigProblem]) -> RpcError:
    return RpcError(
        "invalid_config",
        f"cannot use the configuration: {errors[0].file}: {errors[0].message}",
        hint=errors[0].hint,
        details={"errors": msgspec.to_builtins(errors)},
    )


def definitions_of(loaded: Loaded) -> Definitions:
    """A loaded configuration as the shell uses it."""
    return Definitions(
        catalog=loaded.catalog,
        unit_files=loaded.unit_files,
        probes=loaded.probes,
        device_env={s: partial(loaded.device_env, s) for s in loaded.catalog.services},
        vram_at=loaded.vram_at,
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
