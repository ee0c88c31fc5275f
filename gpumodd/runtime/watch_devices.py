"""The device watcher: samples device memory as often as the engine's attention asks for. It never acts."""

from contextlib import suppress
from dataclasses import replace

import anyio
import structlog

from gpumodd.core import attention
from gpumodd.core import events as ev
from gpumodd.core.facts import DeviceFact, DevicesFact, HostFact
from gpumodd.ports import Devices, Host, PortError, Units
from gpumodd.runtime.loop import Loop

log = structlog.get_logger("gpumodd.devices")

HOST_S = 1.0  # between looks at the host's memory while device memory moves: nothing waits for these alone
HOST_IDLE_S = 5.0
PIDS_S = 0.5


class DeviceWatcher:
    """Samples, says whose processes those are, and posts."""

    def __init__(self, devices: Devices, units: Units, host: Host, loop: Loop) -> None:
        self._devices = devices
        self._units = units
        self._host = host
        self._loop = loop
        self._interval = attention.IDLE_S
        self._wake = anyio.Event()
        self._host_at = -HOST_IDLE_S

    def follow(self) -> None:
        """Take over the rate that the state calls for; a higher one takes effect at once."""
        interval = attention.sampling_s(self._loop.engine.state)
        if interval < self._interval:
            self._wake.set()
        self._interval = interval

    def now(self) -> None:
        """Sample without waiting for the next tick."""
        self._wake.set()

    async def sample(self, *, thorough: bool = False) -> DevicesFact:
        """One sample with each process's service filled in; `thorough` looks at the devices' health anew."""
        fact = await self._devices.sample(thorough=thorough)
        return replace(fact, devices=tuple(self._owned(device) for device in fact.devices))

    def _owned(self, device: DeviceFact) -> DeviceFact:
        owner = self._units.owner
        return replace(device, processes=tuple(replace(p, service=owner(p.pid)) for p in device.processes))

    async def host_memory(self) -> HostFact | None:
        """The host's memory and what each service holds of it; None when it cannot be read: the last figure stays."""
        tracks = self._loop.engine.state.tracks
        held: dict[str, int] = {}
        with anyio.move_on_after(PIDS_S), suppress(PortError):  # a manager that is away must not keep us from sampling
            for service in sorted(tracks):
                if not tracks[service].gone:
                    held[service] = self._host.held_mib(await self._units.pids(service))
        try:
            return replace(self._host.memory(), services=held)
        except PortError as error:
            log.warning("host_unreadable", error=error.message)
            return None

    async def post_sample(self, *, host: bool = True) -> None:
        """Sample and post, with `host` its memory beside it."""
        fact = await self.sample()
        memory = None
        if host:
            self._host_at = self._loop.now()
            memory = await self.host_memory()
        await self._loop.post(ev.DevicesSampled(at=self._loop.now(), fact=fact, host=memory))

    async def run(self) -> None:
        """Sample until cancelled; leave a GPU alone that the system powered down while nothing of ours runs."""
        while True:
            with anyio.move_on_after(self._interval):
                await self._wake.wait()
            asked = self._wake.is_set()
            self._wake = anyio.Event()  # before the sample: whoever asks while it is taken wants a later one
            if self._devices.asleep() and attention.may_sleep(self._loop.engine.state) and not asked:
                continue
            pause = HOST_IDLE_S if self._interval >= attention.IDLE_S else HOST_S
            await self.post_sample(host=asked or self._loop.now() >= self._host_at + pause)
