"""Inspection: everything a preflight judges about services, gathered fresh and at once."""

import shutil
from collections.abc import Callable

import anyio

from gpumodd.core import events as ev
from gpumodd.core.facts import InspectFact
from gpumodd.ports import Host, Units
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.watch_devices import DeviceWatcher


class Inspector:
    """Looks at ports, files and programs of services, and samples devices and host memory."""

    def __init__(
        self, units: Units, devices: DeviceWatcher, host: Host, definitions: Callable[[], Definitions]
    ) -> None:
        self._units = units
        self._devices = devices
        self._host = host
        self._definitions = definitions

    async def inspect(self, effect: int, services: tuple[str, ...], now: Callable[[], float]) -> ev.Inspected:
        """The facts; never raises for what it finds."""
        found: dict[str, InspectFact] = {}

        async def look(service: str) -> None:
            found[service] = await self._service(service)

        async with anyio.create_task_group() as tasks:
            for service in services:
                tasks.start_soon(look, service)
            sample = await self._devices.sample()
        facts = tuple(found[s] for s in services)
        return ev.Inspected(at=now(), effect=effect, devices=sample, host=self._host.memory(), services=facts)

    async def _service(self, service: str) -> InspectFact:
        definitions = self._definitions()
        spec = definitions.catalog.services.get(service)
        if spec is None:
            return InspectFact(service=service)
        missing = self._host.missing_file(spec.requires_file) if spec.requires_file else ""
        unit = definitions.unit_files.get(service)
        if not missing and unit is not None and shutil.which(unit.argv[0]) is None:
            missing = f"cannot find the program {unit.argv[0]!r}"
        holder = ""
        if spec.port is not None and not await self._ours(service, spec.host, spec.port):
            holder = await self._host.listener(spec.host, spec.port)
        return InspectFact(service=service, port_holder=holder, file_missing=missing)

    async def _ours(self, service: str, host: str, port: int) -> bool:
        """Does a unit of ours listen there? The service itself, or one that shares its port and may be leaving."""
        specs = self._definitions().catalog.services
        sharing = [service, *sorted(s.id for s in specs.values() if s.port == port and s.id != service)]
        for candidate in sharing:
            owns = await self._units.owns_listener(candidate, host, port)
            if owns is None:
                return True  # nobody listens at all
            if owns:
                return True
        return False
