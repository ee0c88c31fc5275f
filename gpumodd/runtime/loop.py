"""The loop: the one task that feeds the engine. Everything else posts events and reads views.

Owns the engine, the event queue, the timer for the engine's next deadline, and the answers to requests. It does
no I/O of its own: effects go to `runtime.dispatch`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio
import structlog

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.operations import Operation
from gpumodd.ports import Clock

log = structlog.get_logger("gpumodd.loop")

QUEUE = 10_000
BATCH = 500
SLEPT_S = 0.5  # less sleep than that is none, or two clocks read one after the other


@dataclass(slots=True)
class Waiting:
    """Somebody waits for a request's answer."""

    done: anyio.Event = field(default_factory=anyio.Event)
    reply: fx.Reply | None = None


class Loop:
    """Feeds the engine. `submit` is where effects go; `recorded` is told of every batch, and that the engine broke on
    it if there are no effects; `after_batch` is called when all is done."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.submit: Callable[[tuple[fx.Effect, ...]], None] = lambda _: None
        self.recorded: Callable[[Sequence[ev.Event], Sequence[fx.Effect] | None], None] = lambda _batch, _effects: None
        self.after_batch: list[Callable[[], None]] = []
        self._queue: asyncio.Queue[ev.Event] = asyncio.Queue(QUEUE)
        self._waiting: dict[int, Waiting] = {}
        self._handled: dict[int, anyio.Event] = {}
        self._next_request = 1
        self._ended: dict[str, anyio.Event] = {}  # of operations whose end has not been told yet
        self.observed_units = False  # a complete list of units, or the word that there is none, has come in
        self._suspended = clock.suspended()
        self.progress = 0  # batches handled: the watchdog's proof of life

    # -- in ---------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """CLOCK_BOOTTIME seconds."""
        return self.clock.boottime()

    async def post(self, event: ev.Event) -> None:
        """Queue an event; waits while the queue is full."""
        await self._queue.put(event)

    async def handled(self, event: ev.Event) -> None:
        """Queue an event and wait until the engine has taken it."""
        done = self._handled[id(event)] = anyio.Event()
        await self.post(event)
        await done.wait()

    async def request(self, make: Callable[[int], ev.Request]) -> fx.Reply:
        """Post a request and wait for its one reply."""
        number = self._next_request
        self._next_request += 1
        waiting = self._waiting[number] = Waiting()
        try:
            await self.post(make(number))
            await waiting.done.wait()
        finally:
            del self._waiting[number]
        assert waiting.reply is not None
        return waiting.reply

    def answer(self, reply: fx.Reply) -> None:
        """Wake whoever asked; somebody who went away misses nothing but the answer."""
        waiting = self._waiting.get(reply.request)
        if waiting is not None:
            waiting.reply = reply
            waiting.done.set()

    async def ended(self, operation: str) -> Operation | None:
        """Wait until an operation has ended and its end was told; None when nobody knows it."""
        while (op := self.engine.state.operations.get(operation)) is not None:
            if not op.state.open and operation not in self._ended:
                break
            await self._ended.setdefault(operation, anyio.Event()).wait()
        return op

    def told(self, change: fx.Change) -> None:
        """This change is durable and has been announced: whoever waits for an operation's end may go on."""
        if isinstance(change, fx.OperationChanged) and not change.operation.state.open:
            self._ended.pop(change.operation.id, anyio.Event()).set()

    # -- the loop ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Handle events until cancelled."""
        while True:
            batch = await self._next_batch()
            self._handle(batch)

    def handle_now(self, *batch: ev.Event) -> None:
        """Handle these at once; only before `run` has begun."""
        self._handle(list(batch))

    def _notice_sleep(self, batch: list[ev.Event]) -> None:
        """The machine slept since the last batch: that goes before whatever happened afterwards, so that nothing is
        judged by a deadline that ran out in its sleep."""
        slept_s = self.clock.suspended() - self._suspended
        if slept_s < SLEPT_S:
            return
        self._suspended += slept_s
        now = self.now()
        before = next((i for i, event in enumerate(batch) if event.at > now - slept_s), len(batch))
        batch.insert(before, ev.Resumed(at=now, slept_s=slept_s))
        log.info("resumed", slept_s=round(slept_s, 1))

    async def _next_batch(self) -> list[ev.Event]:
        deadline = self.engine.next_deadline()
        batch: list[ev.Event] = []
        with anyio.move_on_after(None if deadline is None else max(0.0, deadline - self.now())):
            batch.append(await self._queue.get())
        while len(batch) < BATCH and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch or [ev.Ticked(at=self.now())]

    def _handle(self, batch: list[ev.Event]) -> None:
        self.progress += 1
        self._notice_sleep(batch)
        self.observed_units |= any(
            isinstance(e, ev.UnitsLost) or (isinstance(e, ev.UnitsObserved) and e.complete) for e in batch
        )
        try:
            effects = self.engine.handle(*batch)
        except Exception:
            self.recorded(batch, None)  # whoever looks for the bug can replay what led to it
            raise
        for effect in effects:
            if isinstance(effect, fx.Announce) and isinstance(change := effect.change, fx.OperationChanged):
                self._ended.setdefault(change.operation.id, anyio.Event())
        if effects:
            self.submit(effects)
        self.recorded(batch, effects)
        for done in [self._handled.pop(id(e)) for e in batch if id(e) in self._handled]:
            done.set()
        for react in self.after_batch:
            react()
