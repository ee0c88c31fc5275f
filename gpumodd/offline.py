"""A simulation without a daemon: look at the machine once, with the daemon's own eyes, and ask the same planner.

Owns the order of looking. It takes ports that are only looked through, keeps nothing, and hands no effect to anybody:
whatever the engine may want, nothing is done.
"""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from gpumodd.api.simulation import Simulator
from gpumodd.api.views import Views
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.ports import Clock, Devices, Host, Prober, Units
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.inspect import Inspector
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.watch_devices import DeviceWatcher
from gpumodd.runtime.watch_health import HealthWatcher
from gpumodd.runtime.watch_units import watch_units
from gpumodd.wire import methods as m
from gpumodd.wire import types as t
from gpumodd.wire.errors import RpcError

LOOK_S = 5.0  # who does not answer within that is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Eyes:
    """What the machine is looked at through, `units` being entered already."""

    clock: Clock
    units: Units
    devices: Devices
    host: Host
    prober: Prober


async def simulate(
    eyes: Eyes, definitions: Definitions, recovered: ev.Recovered, params: m.SimulateParams
) -> t.Simulation:
    """What mode.simulate would answer; raises RpcError `not_found`."""
    loop = Loop(Engine(), eyes.clock)  # its effects go nowhere
    watcher = DeviceWatcher(eyes.devices, eyes.units, eyes.host, loop)
    inspector = Inspector(units=eyes.units, devices=watcher, host=eyes.host, loop=loop, definitions=lambda: definitions)
    views = Views(loop.engine, eyes.clock)
    simulator = Simulator(views=views, inspector=inspector, observe=loop.handled, definitions=lambda: definitions)
    # An operation that a killed daemon left open is not gone on with; what it was to lead to is desired all the same.
    loop.handle_now(recovered, ev.CatalogLoaded(at=loop.now(), catalog=definitions.catalog))
    answer: t.Simulation | RpcError
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop.run)
        tasks.start_soon(watch_units, eyes.units, loop)
        with anyio.move_on_after(LOOK_S):
            await _seen(loop, lambda: loop.observed_units)
            await watcher.post_sample()
            await HealthWatcher(eyes.prober, eyes.units, loop, lambda: definitions).ask_once()
        try:
            answer = await simulator.simulate(params)
        except RpcError as error:
            answer = error
        tasks.cancel_scope.cancel()
    if isinstance(answer, RpcError):
        raise answer
    return answer


async def _seen(loop: Loop, what: Callable[[], bool]) -> None:
    """Wait until a batch has made this true."""
    seen = anyio.Event()
    loop.after_batch.append(lambda: seen.set() if what() else None)
    await seen.wait()
