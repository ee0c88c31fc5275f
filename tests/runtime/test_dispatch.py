"""Effects end in exactly one event each, whatever happens to them, and nothing runs ahead of its Save."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.operations import Operation
from gpumodd.core.specs import Catalog, ServiceSpec
from gpumodd.core.state import Snapshot
from gpumodd.ports import PortError
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.dispatch import Dispatcher
from gpumodd.runtime.inspect import Inspector
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.watch_devices import DeviceWatcher
from tests.runtime.fakes import ManualClock, OneDevice, QuietHost, ScriptedUnits

COMMANDS = (
    fx.StartUnit(id=1, service="mine", devices=()),
    fx.StopUnit(id=2, service="mine"),
    fx.KillUnit(id=3, service="mine"),
    fx.Inspect(id=4, services=("mine",)),
    fx.ReadLogs(id=5, service="mine"),
)


class Disk:
    """What saves go to."""

    def __init__(self) -> None:
        self.full = False
        self.saved: list[Snapshot] = []

    async def save(self, snapshot: Snapshot, operations: tuple[Operation, ...]) -> None:
        if self.full:
            raise PortError("state_unwritable", "cannot write state.db: disk full")
        self.saved.append(snapshot)


class Bench:
    """A dispatcher on scripted ports whose loop only collects what is posted."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.units, self.disk = ScriptedUnits(), Disk()
        self.loop = Loop(Engine(), self.clock)
        self.posted: list[Any] = []
        self.loop.post = self.take  # type: ignore[method-assign]
        self.told: list[Any] = []
        host = QuietHost(self.clock)
        devices = DeviceWatcher(OneDevice(self.clock), self.units, host, self.loop)
        definitions = Definitions(catalog=Catalog(services={"mine": ServiceSpec(id="mine", port=1)}))
        self.dispatcher = Dispatcher(
            units=self.units,
            devices=devices,
            inspector=Inspector(
                units=self.units, devices=devices, host=host, loop=self.loop, definitions=lambda: definitions
            ),
            memory=self.disk,
            announce=self.told.append,
            loop=self.loop,
            definitions=lambda: definitions,
        )

    async def take(self, event: Any) -> None:
        self.posted.append(event)

    async def carry_out(self, *batch: fx.Effect, ends: int) -> None:
        """Submit and wait for this many events."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.dispatcher.run)
            self.dispatcher.submit(batch)
            with anyio.fail_after(20):
                while len(self.posted) < ends:
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    def ended(self) -> list[int]:
        return sorted(e.effect for e in self.posted if isinstance(e, ev.EffectEnded))


@pytest.mark.parametrize("fails", [None, PortError("bus_lost", "cannot reach the manager"), ZeroDivisionError()])
async def test_each_effect_ends_once(fails: BaseException | None):
    bench = Bench()
    bench.units.fails = fails
    await bench.carry_out(*COMMANDS, ends=5)
    assert bench.ended() == [1, 2, 3, 4, 5]
    started = next(e for e in bench.posted if isinstance(e, ev.UnitStarted))
    inspected = next(e for e in bench.posted if isinstance(e, ev.Inspected))
    if fails is None:
        assert (started.result, started.error, inspected.services[0].error) == ("done", "", "")
    else:
        assert started.result == "failed"
        assert started.error and inspected.services[0].error


async def test_a_job_is_followed_by_a_look_at_the_unit():
    bench = Bench()
    await bench.carry_out(COMMANDS[0], ends=1)
    assert bench.units.asked[0] == ("start", "mine")
    bench.posted.clear()
    await bench.carry_out(COMMANDS[1], fx.ReadLogs(id=9, service="mine"), ends=2)
    assert ("refresh", "mine") in bench.units.asked


@pytest.mark.parametrize("fails", [None, PortError("units_unreachable", "cannot reach the manager")])
async def test_units_are_read_anew_one_after_the_other_whatever_becomes_of_the_first(fails: BaseException | None):
    bench = Bench()
    bench.units.fails = fails
    await bench.carry_out(fx.RefreshUnits(services=("mine", "other")), fx.ReadLogs(id=1, service="mine"), ends=1)
    assert [asked for asked in bench.units.asked if asked[0] == "refresh"] == [
        ("refresh", "mine"),
        ("refresh", "other"),
    ]


async def test_nothing_runs_ahead_of_a_save_that_fails():
    bench = Bench()
    bench.disk.full = True
    save = fx.Save(snapshot=Snapshot(), operations=())
    await bench.carry_out(save, *COMMANDS, ends=6)
    assert isinstance(bench.posted[0], ev.SaveFailed)
    assert bench.ended() == [1, 2, 3, 4, 5]
    assert not {"start", "stop", "kill"} & {verb for verb, _ in bench.units.asked}


async def test_a_save_that_works_again_is_told():
    bench = Bench()
    save = fx.Save(snapshot=Snapshot(), operations=())
    bench.disk.full = True
    await bench.carry_out(save, ends=1)
    bench.disk.full = False
    await bench.carry_out(save, ends=2)
    assert [type(e) for e in bench.posted] == [ev.SaveFailed, ev.SaveWorked]
    assert bench.disk.saved == [Snapshot()]
