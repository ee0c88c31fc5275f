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
from gpumodd.runtime.bus import Bus
from gpumodd.runtime.loop import Loop

log = structlog.get_logger("gpumodd")

PACE_S = 0.25


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
                log.warning("problem", code=problem.code, service=problem.service, message=problem.message)
                self._publish(problem, raised=True)
        for key, problem in self._known.items():
            if key not in now:
                log.info("problem_over", code=problem.code, service=problem.service)
                self._publish(problem, raised=False)
        self._known = now

    def _publish(self, problem: Problem, *, raised: bool) -> None:
        self._bus.publish(self._loop.now(), "problem", {"raised": raised, "problem": self._problem(problem)})
