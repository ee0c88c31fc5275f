"""Reading ahead: while a start waits for memory of others, its model's files are brought into the page cache.

Looks at what the engine's attention names and never acts on a service: who reads ahead in vain has lost nothing but
time that nobody was waiting for.
"""

from collections.abc import Mapping

import anyio
import structlog

from gpumodd.core import attention
from gpumodd.core.attention import Reading
from gpumodd.ports import PageCache
from gpumodd.runtime.loop import Loop

log = structlog.get_logger("gpumodd.read_ahead")


class ReadAhead:
    """Reads one model at a time, the one whose start comes first, and stops at once when it is not wanted any more."""

    def __init__(self, cache: PageCache, loop: Loop) -> None:
        self._cache = cache
        self._loop = loop
        self._wanted: Mapping[str, Reading] = {}
        self._done: set[Reading] = set()  # read, or left alone, since their start began to wait
        self._wake = anyio.Event()

    def follow(self) -> None:
        """Take over what is to be read now."""
        wanted = attention.reading(self._loop.engine.state)
        if wanted.keys() != self._wanted.keys():
            self._wake.set()
        self._wanted = wanted
        self._done = {reading for reading in self._done if reading.service in wanted}

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            reading = next((r for r in self._wanted.values() if r not in self._done), None)
            if reading is None:
                await self._wake.wait()
                self._wake = anyio.Event()
                continue
            self._done.add(reading)
            await self._read(reading)

    async def _read(self, reading: Reading) -> None:
        size_mib = await self._cache.size_mib(reading.model)
        if not size_mib or size_mib > reading.room_mib:
            return
        begun = self._loop.now()
        read_mib = await self._cache.read(reading.model, lambda: reading.service in self._wanted)
        seconds = round(self._loop.now() - begun, 3)
        log.info("read_ahead", service=reading.service, mib=read_mib, of_mib=size_mib, seconds=seconds)
