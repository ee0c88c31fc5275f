"""A leaf that the implementations of `Units` share: hands unit events to those who listen.

Owns the queues. A listener that falls behind loses the single changes and gets the complete list instead, which
says everything that still matters; nothing here waits for a listener.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from gpumodd.ports import UnitsChanged, UnitsEvent

LIMIT = 1024


class Feed:
    """One source, any number of listeners. `snapshot` gives the complete list at any time."""

    def __init__(self, snapshot: Callable[[], UnitsChanged], *, limit: int = LIMIT) -> None:
        self._snapshot = snapshot
        self._limit = limit
        self._queues: list[_Queue] = []

    def send(self, event: UnitsEvent) -> None:
        for queue in self._queues:
            if len(queue.items) < self._limit:
                queue.items.append(event)
            else:
                queue.items.clear()
                queue.items.append(self._snapshot())
            queue.filled.set()

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[UnitsEvent]]:
        """Events from now on; the first is the complete list."""
        queue = _Queue()
        queue.items.append(self._snapshot())
        queue.filled.set()
        self._queues.append(queue)
        try:
            yield queue.drain()
        finally:
            self._queues.remove(queue)


class _Queue:
    def __init__(self) -> None:
        self.items: deque[UnitsEvent] = deque()
        self.filled = anyio.Event()

    async def drain(self) -> AsyncIterator[UnitsEvent]:
        while True:
            await self.filled.wait()
            while self.items:
                yield self.items.popleft()
            self.filled = anyio.Event()
