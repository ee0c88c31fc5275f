"""The dispatcher: carries out effects. Each effect with an id ends in exactly one event, whatever happens to it.

Batches are taken in order. What follows a Save in its batch waits until that is durable; if it cannot be, what
follows is not carried out and says so.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.abc
import structlog

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.ports import JobResult, PortError, Units
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.inspect import Inspector
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.memory import Memory
from gpumodd.runtime.watch_devices import DeviceWatcher

log = structlog.get_logger("gpumodd.dispatch")

LOG_LINES = 50


class Dispatcher:
    """Runs effects as tasks and posts how they ended."""

    def __init__(
        self,
        *,
        units: Units,
        devices: DeviceWatcher,
        inspector: Inspector,
        memory: Memory,
        announce: Callable[[fx.Announce], None],
        loop: Loop,
        definitions: Callable[[], Definitions],
    ) -> None:
        self._units = units
        self._devices = devices
        self._inspector = inspector
        self._memory = memory
        self._announce = announce
        self._loop = loop
        self._definitions = definitions
        self._batches: asyncio.Queue[tuple[fx.Effect, ...]] = asyncio.Queue()
        self._unsaved = False

    def submit(self, effects: tuple[fx.Effect, ...]) -> None:
        """Queue a batch."""
        self._batches.put_nowait(effects)

    async def run(self) -> None:
        """Carry out batches until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._batch(await self._batches.get(), tasks)

    async def _batch(self, batch: tuple[fx.Effect, ...], tasks: anyio.abc.TaskGroup) -> None:
        for i, effect in enumerate(batch):
            match effect:
                case fx.Save():
                    if not await self._save(effect):
                        await self._give_up(batch[i + 1 :])
                        return
                case fx.Reply():
                    self._loop.answer(effect)
                case fx.Announce():
                    self._tell(effect)
                case fx.SampleDevices():
                    self._devices.now()
                case fx.RefreshUnits():
                    tasks.start_soon(self._refresh_all, effect.services)
                case fx.StartUnit():
                    tasks.start_soon(self._start, effect)
                case fx.StopUnit():
                    tasks.start_soon(self._stop, effect)
                case fx.KillUnit():
                    tasks.start_soon(self._kill, effect)
                case fx.Inspect():
                    tasks.start_soon(self._inspect, effect)
                case fx.ReadLogs():
                    tasks.start_soon(self._logs, effect)

    def _tell(self, effect: fx.Announce) -> None:
        self._announce(effect)
        self._loop.told(effect.change)

    # -- state ------------------------------------------------------------------------------------------------

    async def _save(self, effect: fx.Save) -> bool:
        try:
            await self._memory.save(effect.snapshot, effect.operations)
        except PortError as error:
            log.error("state_unwritable", error=error.message)
            self._unsaved = True
            await self._loop.post(ev.SaveFailed(at=self._loop.now(), message=error.message))
            return False
        if self._unsaved:
            self._unsaved = False
            log.info("state_writable")
            await self._loop.post(ev.SaveWorked(at=self._loop.now()))
        return True

    async def _give_up(self, batch: tuple[fx.Effect, ...]) -> None:
        """End what must not be carried out without its Save; telling and looking are harmless."""
        now = self._loop.now()
        for effect in batch:
            match effect:
                case fx.StartUnit(id=id, service=service):
                    end: ev.Event = ev.UnitStarted(at=now, effect=id, service=service, result="failed", dropped=True)
                    await self._loop.post(end)
                case fx.StopUnit(id=id, service=service):
                    end = ev.UnitStopped(at=now, effect=id, service=service, result="failed", dropped=True)
                    await self._loop.post(end)
                case fx.KillUnit(id=id, service=service):
                    await self._loop.post(ev.UnitKilled(at=now, effect=id, service=service, dropped=True))
                case fx.Reply():
                    self._loop.answer(effect)
                case fx.Announce():
                    self._tell(effect)
                case fx.SampleDevices():
                    self._devices.now()
                case fx.RefreshUnits():
                    await self._refresh_all(effect.services)
                case fx.Inspect():
                    await self._inspect(effect)
                case fx.ReadLogs():
                    await self._logs(effect)
                case fx.Save():
                    pass

    # -- units ------------------------------------------------------------------------------------------------

    async def _start(self, effect: fx.StartUnit) -> None:
        service = effect.service
        log.info("start", service=service, devices=",".join(effect.devices) or None)

        async def start() -> JobResult:
            return await self._units.start(service, self._definitions().environment(service, effect.devices))

        result, error = await self._job(start)
        await self._loop.post(
            ev.UnitStarted(at=self._loop.now(), effect=effect.id, service=service, result=result, error=error)
        )
        await self._refresh(service)

    async def _stop(self, effect: fx.StopUnit) -> None:
        service = effect.service
        log.info("stop", service=service)
        result, error = await self._job(partial(self._units.stop, service))
        await self._loop.post(
            ev.UnitStopped(at=self._loop.now(), effect=effect.id, service=service, result=result, error=error)
        )
        await self._refresh(service)
        self._devices.now()

    async def _kill(self, effect: fx.KillUnit) -> None:
        log.warning("kill", service=effect.service)
        _, error = await self._job(partial(self._units.kill, effect.service))
        await self._loop.post(ev.UnitKilled(at=self._loop.now(), effect=effect.id, service=effect.service, error=error))
        await self._refresh(effect.service)

    async def _job(self, work: Callable[[], Awaitable[JobResult | None]]) -> tuple[str, str]:
        """Do it, and say in the core's words how it ended: the job's result, and the backend's refusal if any."""
        try:
            return (await work() or JobResult.DONE).value, ""
        except PortError as error:
            return JobResult.FAILED.value, error.message
        except Exception as error:  # a bug of ours must not leave an effect without an end
            log.error("effect_failed", exc_info=error)
            return JobResult.FAILED.value, f"the daemon made a mistake: {type(error).__name__}"

    async def _refresh_all(self, services: tuple[str, ...]) -> None:
        for service in services:
            await self._refresh(service)

    async def _refresh(self, service: str) -> None:
        """The state that goes with a finished job must be seen, changed or not."""
        _, error = await self._job(partial(self._units.refresh, service))
        if error:
            log.warning("cannot_refresh", service=service, error=error)

    # -- looking ----------------------------------------------------------------------------------------------

    async def _inspect(self, effect: fx.Inspect) -> None:
        await self._loop.post(await self._inspector.inspect(effect.id, effect.services))

    async def _logs(self, effect: fx.ReadLogs) -> None:
        lines: list[str] = []

        async def read() -> None:
            lines.extend(await self._units.logs(effect.service, lines=LOG_LINES, this_run=True))

        _, error = await self._job(read)
        if error:
            lines = [f"(cannot read its log: {error})"]
        await self._loop.post(
            ev.LogsRead(at=self._loop.now(), effect=effect.id, service=effect.service, lines=tuple(lines))
        )
