"""Telling: changes become log lines for people and happenings for subscribers.

One INFO line per change a person would want to read. Problems are compared at a gentle pace, so that a flapping
fact does not flood anyone.
"""

from collections.abc import Callable

import anyio
import structlog

from gpumodd.core import conditions
from gpumodd.core import effects as fx
from gpumodd.core.problems import Problem
from gpumodd.core.state import State
from gpumodd.runtime.bus import Bus
from gpumodd.runtime.loop import Loop

log = structlog.get_logger("gpumodd")

PACE_S = 0.25
OF_ALL_DEVICES = ("devices_unreadable", "no_devices")
LOST, UNWELL = ("lost", "back"), ("problem", "over")


class Teller:
    """Publishes announcements and the coming and going of problems."""

    def __init__(
        self,
        bus: Bus,
        loop: Loop,
        *,
        event: Callable[[fx.Announce], tuple[str, dict[str, object]]],
        problem: Callable[[Problem], dict[str, object]],
    ) -> None:
        self._bus = bus
        self._loop = loop
        self._event = event
        self._problem = problem
        self._known: dict[tuple[str, str | None, str | None], Problem] = {}
        self._changed = anyio.Event()

    def announce(self, announced: fx.Announce) -> None:
        """Log and publish one change."""
        match announced.change:
            case fx.PhaseChanged() as change:
                log.info("phase", service=change.service, was=change.before, now=change.now)
            case fx.OperationChanged(operation=op):
                failure = op.failure.reason.message if op.failure is not None else None
                log.info("operation", id=op.id, kind=op.kind.value, target=op.target, state=op.state.value, why=failure)
            case fx.ModeChanged() as change:
                log.info("mode", reached=change.reached, wanted=change.wanted)
            case fx.StepChanged():
                pass
        topic, data = self._event(announced)
        self._bus.publish(self._loop.now(), topic, data)

    def follow(self) -> None:
        """The state changed."""
        self._changed.set()

    async def run(self) -> None:
        """Tell which problems came and went, until cancelled."""
        generation = -1
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            if generation != self._loop.engine.generation:
                generation = self._loop.engine.generation
                self._compare()
            await anyio.sleep(PACE_S)

    def _compare(self) -> None:
        now = {(p.code, p.service, p.device): p for p in conditions.problems(self._loop.engine.state)}
        for key, problem in now.items():
            if key not in self._known:
                where = {"service": problem.service} if problem.device is None else {"device": problem.device}
                log.warning("problem", code=problem.code, message=problem.message, **where)
                self._publish(problem, raised=True)
        for key, problem in self._known.items():
            if key not in now:
                log.info("problem_over", code=problem.code, service=problem.service)
                self._publish(problem, raised=False)
        self._known = now

    def _publish(self, problem: Problem, *, raised: bool) -> None:
        shown = self._problem(problem)
        self._bus.publish(self._loop.now(), "problem", {"raised": raised, "problem": shown})
        if problem.device is not None or problem.code in OF_ALL_DEVICES:
            told = _of_device(self._loop.engine.state, problem, raised=raised)
            self._bus.publish(self._loop.now(), "device", told)


def _of_device(state: State, problem: Problem, *, raised: bool) -> dict[str, object]:
    """What became of a device, coarsely: its samples are no events."""
    devices = state.devices.devices if state.devices is not None else ()
    device = next((d for d in devices if d.uuid == problem.device), None)
    words = LOST if problem.code == "device_lost" else UNWELL
    return {
        "device": problem.device,
        "index": device.index if device is not None else None,
        "name": device.name if device is not None else "",
        "state": words[0] if raised else words[1],
        "code": problem.code,
        "message": problem.message,
    }
