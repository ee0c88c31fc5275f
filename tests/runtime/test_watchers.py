"""The watchers look as closely as the state asks for, and leave alone what is to be left alone."""

import anyio

from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.facts import Active, Answer, ProcessFact, UnitFact
from gpumodd.core.specs import Catalog, ServiceSpec
from gpumodd.drivers.api import ProbeSpec
from gpumodd.ports import PortError
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.watch_devices import DeviceWatcher
from gpumodd.runtime.watch_health import HealthWatcher
from tests.runtime.fakes import CountingProber, ManualClock, OneDevice, QuietHost, ScriptedUnits

SPEC = ProbeSpec(host="127.0.0.1", port=1, path="/health", timeout_s=1.0)


def observed(*facts: UnitFact) -> tuple[Loop, ManualClock]:
    clock = ManualClock()
    loop = Loop(Engine(), clock)
    services = {f.service: ServiceSpec(id=f.service, port=1, vram_mib=0) for f in facts}
    loop.handle_now(
        ev.CatalogLoaded(at=clock.at, catalog=Catalog(services=services)),
        ev.UnitsObserved(at=clock.at, facts=facts, complete=True),
        ev.ObservationCompleted(at=clock.at),
    )
    return loop, clock


def unit(service: str, active: Active = Active.ACTIVE) -> UnitFact:
    return UnitFact(service=service, active=active, at=100.0, invocation="run1")


async def posted(loop: Loop, count: int) -> list[ev.Event]:
    found: list[ev.Event] = []
    with anyio.fail_after(20):
        while len(found) < count:
            found.append(await loop._queue.get())
    return found


def health(loop: Loop, prober: CountingProber, units: ScriptedUnits, *services: str) -> HealthWatcher:
    definitions = Definitions(catalog=loop.engine.state.catalog, probes=dict.fromkeys(services, SPEC))
    watcher = HealthWatcher(prober, units, loop, lambda: definitions)
    watcher.follow()
    return watcher


async def test_a_loading_service_is_asked_until_it_is_ready():
    loop, _ = observed(unit("one"))
    prober, units = CountingProber(Answer.REFUSED), ScriptedUnits()
    watcher = health(loop, prober, units, "one")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        probes = await posted(loop, 5)
        assert {p.fact.invocation for p in probes if isinstance(p, ev.Probed)} == {"run1"}
        prober.answer = Answer.HEALTHY
        units.listens["one"] = True
        while True:
            (event,) = await posted(loop, 1)
            loop.handle_now(event)
            watcher.follow()
            if loop.engine.state.track("one").phase == "ready":
                break
        asked = len(prober.asked)
        await anyio.wait_all_tasks_blocked()
        assert len(prober.asked) - asked <= 1  # one may have been under way
        tasks.cancel_scope.cancel()


async def test_a_stranger_on_the_port_is_called_one():
    loop, _ = observed(unit("one"))
    units = ScriptedUnits()
    units.listens["one"] = False
    watcher = health(loop, CountingProber(), units, "one")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        (probe,) = await posted(loop, 1)
        assert isinstance(probe, ev.Probed)
        assert probe.fact.answer is Answer.STRANGER
        tasks.cancel_scope.cancel()


async def test_nothing_is_asked_of_a_service_that_does_not_run():
    loop, _ = observed(unit("one", Active.INACTIVE))
    prober = CountingProber()
    watcher = health(loop, prober, ScriptedUnits(), "one")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        await anyio.wait_all_tasks_blocked()
        assert prober.asked == []
        tasks.cancel_scope.cancel()


async def test_equal_intervals_share_their_ticks():
    facts = [unit(f"s{n}") for n in range(5)]
    loop, clock = observed(*facts)
    for fact in facts:
        loop.engine.handle(ev.Probed(at=100.0, fact=_healthy(fact.service)))
    watcher = health(loop, CountingProber(), ScriptedUnits(), *(f.service for f in facts))
    assert len(set(watcher._due.values())) == 1
    clock.at += 3.0
    watcher._wanted = {}
    watcher.follow()
    assert len(set(watcher._due.values())) == 1


def _healthy(service: str):
    from gpumodd.core.facts import ProbeFact

    return ProbeFact(service=service, answer=Answer.HEALTHY, at=100.0, invocation="run1")


async def test_a_sample_says_whose_processes_those_are():
    loop, clock = observed()
    devices = OneDevice(clock)
    devices.processes = (ProcessFact(pid=7, used_mib=10), ProcessFact(pid=8, used_mib=20))
    watcher = DeviceWatcher(devices, ScriptedUnits(), QuietHost(clock), loop)
    fact = await watcher.sample()
    assert [p.service for p in fact.devices[0].processes] == ["mine", None]


async def test_a_gpu_that_sleeps_is_left_alone_while_nothing_of_ours_runs():
    loop, clock = observed()
    devices = OneDevice(clock)
    devices.powered_down = True
    watcher = DeviceWatcher(devices, ScriptedUnits(), QuietHost(clock), loop)
    watcher._interval = 0.001
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        for _ in range(20):
            await anyio.sleep(0.001)
        assert devices.samples == 0
        watcher.now()  # somebody asks for a fresh sample: that is worth waking it
        await posted(loop, 1)
        assert devices.samples == 1
        tasks.cancel_scope.cancel()


async def test_host_memory_that_cannot_be_read_does_not_stop_the_samples():
    loop, clock = observed()
    host = QuietHost(clock)
    host.unreadable = True
    watcher = DeviceWatcher(OneDevice(clock), ScriptedUnits(), host, loop)
    await watcher.post_sample()
    (event,) = await posted(loop, 1)
    assert isinstance(event, ev.DevicesSampled)
    assert event.host is None


async def test_the_host_is_asked_what_each_running_service_holds():
    loop, clock = observed()
    for service, active in (("up", Active.ACTIVE), ("down", Active.INACTIVE)):
        loop.engine.state.track(service).unit = UnitFact(service=service, active=active, at=clock.at)
    watcher = DeviceWatcher(OneDevice(clock), ScriptedUnits(), QuietHost(clock), loop)
    fact = await watcher.host_memory()
    assert (fact.mem_available_mib, fact.services) == (8000, {"up": 20})


async def test_a_manager_that_is_away_does_not_hide_the_host():
    loop, clock = observed()
    units = ScriptedUnits()
    units.fails = PortError("units_unreachable", "gone")
    loop.engine.state.track("up").unit = UnitFact(service="up", active=Active.ACTIVE, at=clock.at)
    fact = await DeviceWatcher(OneDevice(clock), units, QuietHost(clock), loop).host_memory()
    assert (fact.mem_available_mib, fact.services) == (8000, {})


async def test_whoever_asks_while_a_sample_is_taken_gets_a_later_one():
    loop, clock = observed()
    devices = OneDevice(clock)
    watcher = DeviceWatcher(devices, ScriptedUnits(), QuietHost(clock), loop)
    watcher.follow()
    taken = devices.sample

    async def slow(**how):
        fact = await taken(**how)
        if devices.samples == 1:
            watcher.now()
        return fact

    watcher._interval = 600.0
    devices.sample = slow
    watcher.now()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        with anyio.fail_after(20):  # well before the next one would be due
            while devices.samples < 2:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
