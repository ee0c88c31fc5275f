"""Both implementations of the port `Units`, opened the same way, and what tests ask of them."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.process import ProcessUnits
from gpumodd.adapters.systemd import SystemdUnits
from gpumodd.config.render import Renderer
from gpumodd.core.facts import UnitFact
from gpumodd.drivers.api import UnitFile
from gpumodd.ports import Units, UnitsChanged, UnitsEvent
from tests.support.sandbox import Sandbox

PATIENCE_S = 15.0


def unit(service: str, *argv: str, env: tuple[tuple[str, str], ...] = (), stop_timeout_s: float = 5.0) -> UnitFile:
    return UnitFile(service=service, description=f"test {service}", argv=argv, env=env, stop_timeout_s=stop_timeout_s)


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def python(script: str, *args: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", script, *args)


def files(*units: UnitFile) -> dict[str, UnitFile]:
    return {one.service: one for one in units}


class ProcessBackend:
    name = "process"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, **options: Any) -> Units:
        return ProcessUnits(SystemClock(), folder=self.folder, **options)

    @asynccontextmanager
    async def open(self, *units: UnitFile, **options: Any) -> AsyncIterator[Units]:
        """These units exist, and nothing runs afterwards."""
        async with self.make(**options) as opened:
            await opened.apply(files(*units))
            yield opened


class SystemdBackend:
    """On the manager of a sandbox. The test's own environment must lead to its bus."""

    name = "systemd"

    def __init__(self, box: Sandbox, environment_dir: Path) -> None:
        self.box = box
        self.environment_dir = environment_dir

    def make(self, **options: Any) -> SystemdUnits:
        return SystemdUnits(
            Renderer(),
            SystemClock(),
            unit_dir=self.box.unit_dir,
            environment_dir=self.environment_dir,
            journalctl=self.box.inside("journalctl"),
            **options,
        )

    @asynccontextmanager
    async def open(self, *units: UnitFile, **options: Any) -> AsyncIterator[Units]:
        """These units exist, and nothing runs afterwards."""
        async with AsyncExitStack() as stack:
            stack.callback(self.clear)
            opened = await stack.enter_async_context(self.make(**options))
            await opened.apply(files(*units))
            yield opened

    def clear(self) -> None:
        """By the manager's own tools, so that a broken adapter does not spoil the next test."""
        self.box.systemctl("kill", "--signal=KILL", "gpumod-*.service", check=False)
        self.box.systemctl("stop", "gpumod-*.service", check=False)
        self.box.systemctl("reset-failed", check=False)
        for path in self.box.unit_dir.glob("*"):
            if path.is_file() or path.is_symlink():
                path.unlink()
        self.box.systemctl("daemon-reload")


class Watch:
    """Everything that a Units has reported since the watch began."""

    def __init__(self, events: AsyncIterator[UnitsEvent]) -> None:
        self.events: list[UnitsEvent] = []
        self._source = events

    async def next(self) -> UnitsEvent:
        async with asyncio.timeout(PATIENCE_S):
            event = await anext(self._source)
        self.events.append(event)
        return event

    def facts(self, service: str) -> list[UnitFact]:
        return [
            fact
            for event in self.events
            if isinstance(event, UnitsChanged)
            for fact in event.facts
            if fact.service == service
        ]

    async def until(self, service: str, check: Callable[[UnitFact], bool]) -> UnitFact:
        """The first report about this service, after those already taken, that passes."""
        taken = len(self.facts(service))
        while True:
            try:
                await self.next()
            except TimeoutError:
                raise AssertionError(f"{service} never got there: {self.facts(service)}") from None
            for fact in self.facts(service)[taken:]:
                if check(fact):
                    return fact
            taken = len(self.facts(service))

    async def until_gone(self, service: str) -> UnitFact:
        return await self.until(service, lambda fact: fact.gone)


@asynccontextmanager
async def watching(units: Units) -> AsyncIterator[Watch]:
    async with units.events() as events:
        watch = Watch(events)
        await watch.next()
        yield watch


async def eventually(check: Callable[[], Any], what: str) -> Any:
    """Poll until it is true; for what no event tells of."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not (found := check()):
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.01)
    return found
