"""The unit watcher: turns the backend's state changes into events. It never acts."""

import structlog

from gpumodd.core import events as ev
from gpumodd.ports import Units, UnitsChanged, UnitsLost
from gpumodd.runtime.loop import Loop

log = structlog.get_logger("gpumodd.units")


async def watch_units(units: Units, loop: Loop) -> None:
    """Post every change until cancelled; the first post is the complete list."""
    async with units.events() as changes:
        async for change in changes:
            match change:
                case UnitsChanged():
                    await loop.post(ev.UnitsObserved(at=loop.now(), facts=change.facts, complete=change.complete))
                case UnitsLost():
                    log.warning("units_lost", reason=change.reason)
                    await loop.post(ev.UnitsLost(at=loop.now(), reason=change.reason))
