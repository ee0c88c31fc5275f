"""The bus: what happened, numbered, for subscribers. Bounded on both sides.

A subscriber that does not keep up is dropped with a final `None` and can resume behind its last cursor, as long
as the backlog reaches back that far.
"""

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

BACKLOG = 2000
QUEUE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event for subscribers: `data` is JSON-ready, `at` is CLOCK_BOOTTIME seconds."""

    cursor: int
    at: float
    topic: str
    data: dict[str, object]


class Subscription:
    """One subscriber's queue; it ends when the subscriber was too slow."""

    def __init__(self, bus: "Bus", topics: Collection[str] | None) -> None:
        self._bus = bus
        self._topics = frozenset(topics) if topics is not None else None
        self._room = QUEUE
        self._queue: asyncio.Queue[Happening | None] = asyncio.Queue()

    def wants(self, happening: Happening) -> bool:
        """Is this its topic?"""
        return self._topics is None or happening.topic in self._topics

    def replay(self, happening: Happening) -> None:
        """Queue what happened before it came; that takes no room from what comes."""
        self._room += 1
        self._queue.put_nowait(happening)

    def offer(self, happening: Happening) -> bool:
        """Queue it; False when the queue is full."""
        if self._queue.qsize() >= self._room:
            return False
        self._queue.put_nowait(happening)
        return True

    async def get(self) -> Happening | None:
        """The next event, or None when there will be no more."""
        return await self._queue.get()

    def end(self) -> None:
        """No more events come; what is queued can still be read."""
        self._queue.put_nowait(None)

    def close(self) -> None:
        """The subscriber is gone."""
        self._bus.forget(self)


class Bus:
    """Publishes happenings to every subscription and keeps the newest for those who come back."""

    def __init__(self) -> None:
        self.cursor = 0
        self._backlog: deque[Happening] = deque(maxlen=BACKLOG)
        self._subscriptions: set[Subscription] = set()

    def publish(self, at: float, topic: str, data: dict[str, object]) -> None:
        """Number an event and hand it to everyone who wants it."""
        self.cursor += 1
        happening = Happening(cursor=self.cursor, at=at, topic=topic, data=data)
        self._backlog.append(happening)
        for subscription in list(self._subscriptions):
            if subscription.wants(happening) and not subscription.offer(happening):
                self.forget(subscription)
                subscription.end()

    def subscribe(self, topics: Collection[str] | None = None, *, after: int | None = None) -> Subscription:
        """From now on, or from behind `after` as far as the backlog reaches."""
        subscription = Subscription(self, topics)
        if after is not None:
            for happening in self._backlog:
                if happening.cursor > after and subscription.wants(happening):
                    subscription.replay(happening)
        self._subscriptions.add(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """It gets nothing more."""
        self._subscriptions.discard(subscription)
