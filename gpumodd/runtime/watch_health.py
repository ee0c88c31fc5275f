"""The health watcher: asks services how they are, as densely as the engine's attention asks for. It never acts.

A loading service has a task of its own that asks every few milliseconds. Everything else shares ticks: probes
with the same interval are due at the same moments, so an idle machine wakes up seldom.
"""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import anyio
import anyio.abc

from gpumodd.core import attention
from gpumodd.core import events as ev
from gpumodd.core.attention import Probing
from gpumodd.core.facts import Answer, ProbeFact
from gpumodd.ports import PortError, Prober, Units
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.loop import Loop

FIRST_S = 0.003  # between the first probes of a loading service …
GROWTH = 1.15  # … then a little less often each time …
DENSE_CAP_S = 0.006  # … up to this …
LONG_LOAD_S = 30.0  # … and for a load that takes longer than this
LONG_CAP_S = 0.020
SHARED_S = 0.004  # the more services load, the less often each is asked
SPREAD = 0.2  # of the backed-off interval: degraded services must not be asked in lockstep

ANSWERED = frozenset({Answer.HEALTHY, Answer.LOADING, Answer.UNHEALTHY})


class HealthWatcher:
    """Probes what the state says has to be probed, and posts the answers."""

    def __init__(self, prober: Prober, units: Units, loop: Loop, definitions: Callable[[], Definitions]) -> None:
        self._prober = prober
        self._units = units
        self._loop = loop
        self._definitions = definitions
        self._wanted: dict[str, Probing] = {}
        self._dense: dict[str, tuple[str, anyio.CancelScope]] = {}
        self._due: dict[str, float] = {}
        self._wake = anyio.Event()
        self._random = random.Random()

    def follow(self) -> None:
        """Take over what has to be probed now."""
        wanted = dict(attention.probing(self._loop.engine.state))
        if wanted == self._wanted:
            return
        for service, (invocation, scope) in list(self._dense.items()):
            probing = wanted.get(service)
            if probing is None or not probing.dense or probing.invocation != invocation:
                scope.cancel()
                del self._dense[service]
        for service, probing in wanted.items():
            before = self._wanted.get(service)
            if before is None or before.interval_s != probing.interval_s or before.dense != probing.dense:
                self._due[service] = self._next_due(probing)
        self._wanted = wanted
        self._due = {s: due for s, due in self._due.items() if s in wanted}
        self._wake.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._start_dense(tasks)
                self._wake = anyio.Event()
                steady = {s: due for s, due in self._due.items() if not self._wanted[s].dense}
                pause = min(steady.values()) - self._loop.now() if steady else None
                with anyio.move_on_after(None if pause is None else max(0.0, pause)):
                    await self._wake.wait()
                now = self._loop.now()
                for service, due in steady.items():
                    if due <= now and service in self._wanted:
                        self._due[service] = self._next_due(self._wanted[service])
                        tasks.start_soon(self._ask, service, self._wanted[service].invocation)

    async def ask_once(self) -> None:
        """Ask everything that is to be probed one time, and return once all answers are posted."""
        self.follow()
        async with anyio.create_task_group() as tasks:
            for service, probing in self._wanted.items():
                tasks.start_soon(self._ask, service, probing.invocation)

    def _next_due(self, probing: Probing) -> float:
        """The next multiple of the interval, so that equal intervals share their ticks."""
        now = self._loop.now()
        due = (math.floor(now / probing.interval_s) + 1) * probing.interval_s
        return due + self._random.uniform(0, SPREAD) * probing.interval_s * (probing.interval_s > 60)

    def _start_dense(self, tasks: anyio.abc.TaskGroup) -> None:
        for service, probing in self._wanted.items():
            if probing.dense and service not in self._dense:
                scope = anyio.CancelScope()
                self._dense[service] = (probing.invocation, scope)
                tasks.start_soon(self._load, service, probing.invocation, scope)

    async def _load(self, service: str, invocation: str, scope: anyio.CancelScope) -> None:
        """Ask a loading service until the attention turns away from it."""
        began = self._loop.now()
        pause = FIRST_S
        with scope:
            while True:
                await self._ask(service, invocation)
                await anyio.sleep(pause)
                cap = DENSE_CAP_S if self._loop.now() - began < LONG_LOAD_S else LONG_CAP_S
                pause = min(max(cap, SHARED_S * len(self._dense)), pause * GROWTH)

    async def _ask(self, service: str, invocation: str) -> None:
        spec = self._definitions().probes.get(service)
        if spec is None:
            return
        probing = self._wanted.get(service)
        if probing is None or probing.invocation != invocation:
            return
        host, port = probing.address
        spec = replace(spec, host=host, port=port)
        fact = await self._prober.probe(service, spec)
        if fact.answer in ANSWERED and not await self._answers_itself(service, spec.host, spec.port):
            fact = replace(fact, answer=Answer.STRANGER, detail="the listener is not one of the unit's processes")
        await self._loop.post(ev.Probed(at=self._loop.now(), fact=self._of_run(fact, invocation)))

    async def _answers_itself(self, service: str, host: str, port: int) -> bool:
        try:
            # None: nobody listens any more. The answer was given a moment ago; the next probe will tell.
            return await self._units.owns_listener(service, host, port) is not False
        except PortError:
            return False

    @staticmethod
    def _of_run(fact: ProbeFact, invocation: str) -> ProbeFact:
        return replace(fact, invocation=invocation)
