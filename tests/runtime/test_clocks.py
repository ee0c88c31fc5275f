"""The loop notices that the machine slept before anything is judged; the wall clock may do what it likes."""

import anyio

from gpumodd.api.views import Views
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.facts import Active, UnitFact
from gpumodd.core.specs import Catalog, ServiceSpec
from gpumodd.ports import StoredOperation
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.memory import Memory
from tests.runtime.fakes import ManualClock, OneDevice


class Recording(Engine):
    """An engine that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[ev.Event] = []

    def handle(self, *batch: ev.Event):
        self.told += batch
        return super().handle(*batch)


class Shelf:
    """A Store in memory."""

    def __init__(self) -> None:
        self.snapshot: bytes | None = None
        self.rows: list[StoredOperation] = []

    async def load(self) -> bytes | None:
        return self.snapshot

    async def save(self, snapshot: bytes, operations) -> None:
        self.snapshot = snapshot
        self.rows += operations

    async def operations(self, limit: int) -> list[StoredOperation]:
        return self.rows[-limit:]

    async def close(self) -> None:
        pass


def looking() -> tuple[Loop, Recording, ManualClock]:
    clock, engine = ManualClock(), Recording()
    return Loop(engine, clock), engine, clock


def names(engine: Recording) -> list[str]:
    return [type(event).__name__ for event in engine.told]


def test_a_sleep_is_told_between_what_was_before_and_what_came_after():
    loop, engine, clock = looking()
    before = ev.Ticked(at=clock.at)
    clock.sleep(3600.0)
    after = ev.UnitsLost(at=clock.at, reason="x")
    clock.at += 0.01
    loop.handle_now(before, after)
    assert names(engine) == ["Ticked", "Resumed", "UnitsLost"]
    resumed = engine.told[1]
    assert isinstance(resumed, ev.Resumed)
    assert (resumed.slept_s, resumed.at) == (3600.0, clock.at)
    loop.handle_now(ev.Ticked(at=clock.at))
    assert names(engine).count("Resumed") == 1


def test_short_naps_add_up_and_waking_is_no_sleep():
    loop, engine, clock = looking()
    clock.at += 3600.0  # awake all the time
    loop.handle_now(ev.Ticked(at=clock.at))
    for _ in range(3):
        clock.sleep(0.2)
        loop.handle_now(ev.Ticked(at=clock.at))
    found = [event for event in engine.told if isinstance(event, ev.Resumed)]
    assert [round(event.slept_s, 3) for event in found] == [0.6]


async def test_a_deadline_that_ran_out_in_its_sleep_is_not_judged():
    loop, engine, clock = looking()
    spec = ServiceSpec(id="a", port=1, vram_mib=0, startup_timeout_s=30.0)
    unit = UnitFact(service="a", active=Active.ACTIVE, at=clock.at, invocation="run", since=clock.at)
    loop.handle_now(
        ev.CatalogLoaded(at=clock.at, catalog=Catalog(services={"a": spec})),
        ev.UnitsObserved(at=clock.at, facts=(unit,), complete=True),
        ev.ObservationCompleted(at=clock.at),
    )
    assert engine.next_deadline() == clock.at + 30.0
    clock.at += 10.0
    clock.sleep(3600.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop.run)  # it wakes up for a deadline that has long passed
        with anyio.fail_after(20):
            while "Resumed" not in names(engine):
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert engine.state.track("a").phase == "loading"
    assert engine.next_deadline() == clock.at + 20.0


def test_a_wall_clock_that_jumps_changes_only_what_is_shown():
    def run(jumps: tuple[float, ...]) -> tuple[Recording, list[str]]:
        loop, engine, clock = looking()
        views = Views(engine, clock)
        shown = []
        for jump in jumps:
            clock.epoch += jump
            clock.at += 10.0
            loop.handle_now(ev.UnitsLost(at=clock.at, reason="x"))
            shown.append(views.time(clock.at))
        return engine, shown

    steady, shown = run((0.0, 0.0, 0.0))
    jumping, shown_jumping = run((0.0, 7200.0, -86400.0 * 400))
    assert (steady.told, steady.state) == (jumping.told, jumping.state)
    assert shown[0] == shown_jumping[0]
    assert shown_jumping[1] > shown[1] > shown_jumping[2]


async def test_what_was_saved_before_the_wall_clock_jumped_keeps_its_place_in_this_boot():
    clock, engine = ManualClock(), Engine()
    shelf = Shelf()
    memory = Memory(shelf, clock)
    loop = Loop(engine, clock)
    loop.handle_now(
        ev.CatalogLoaded(at=clock.at, catalog=Catalog()),
        ev.UnitsObserved(at=clock.at, facts=(), complete=True),
        ev.ObservationCompleted(at=clock.at),
        ev.SwitchRequested(at=clock.at, request=1, mode="blank"),
    )
    (intent,) = engine.state.intents
    devices = await OneDevice(clock).sample()
    loop.handle_now(ev.Inspected(at=clock.at, effect=intent.inquiry, devices=devices, host=None, services=()))
    saved = list(engine.state.operations.values())
    assert saved
    await memory.save(engine.state.snapshot(), saved)
    clock.epoch -= 86400.0 * 400
    clock.at += 5.0
    assert list((await memory.recall()).operations) == saved
