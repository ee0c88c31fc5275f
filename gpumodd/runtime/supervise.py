"""Supervision: watchers that die of a bug are started again, and the service manager is told that the loop lives."""

from collections.abc import Awaitable, Callable

import anyio
import structlog

from gpumodd.core import events as ev
from gpumodd.runtime.loop import Loop

log = structlog.get_logger("gpumodd.supervise")

FIRST_S = 0.5
CAP_S = 30.0
CALM_S = 60.0  # a run this long wipes the slate


async def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` for ever; when it raises, say so and start it again, later each time."""
    pause = FIRST_S
    while True:
        began = anyio.current_time()
        try:
            await work()
        except Exception as error:
            log.error("watcher_died", watcher=name, again_in_s=pause, exc_info=error)
        if anyio.current_time() - began > CALM_S:
            pause = FIRST_S
        await anyio.sleep(pause)
        pause = min(CAP_S, pause * 2)


async def feed_watchdog(loop: Loop, patience_s: float, feed: Callable[[], None]) -> None:
    """Feed the manager's watchdog as long as the loop goes on handling events."""
    while True:
        before = loop.progress
        await loop.post(ev.Ticked(at=loop.now()))
        await anyio.sleep(patience_s / 3)
        if loop.progress != before:
            feed()
