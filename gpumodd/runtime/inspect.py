"""Inspection: everything a preflight judges about services, gathered fresh and at once."""

import shutil
from collections.abc import Callable

import anyio
import structlog

from gpumodd.core import events as ev
from gpumodd.core.facts import InspectFact
from gpumodd.core.specs import ServiceSpec
from gpumodd.ports import Host, PortError, Units
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.watch_devices import DeviceWatcher

log = structlog.get_logger("gpumodd.inspect")


class Inspector:
    """Looks at ports, files and programs of services, and samples devices and host memory."""

    def __init__(
        self,
        *,
        units: Units,
        devices: DeviceWatcher,
        host: Host,
        loop: Loop,
        definitions: Callable[[], Definitions],
    ) -> None:
        self._units = units
        self._devices = devices
        self._host = host
        self._loop = loop
        self._definitions = definitions

    async def inspect(self, effect: int, services: tuple[str, ...]) -> ev.Inspected:
        """The facts; never raises: what could not be looked at says so."""
        found: dict[str, InspectFact] = {}

        async def look(service: str) -> None:
            found[service] = await self._service(service)

        async with anyio.create_task_group() as tasks:
            for service in services:
                tasks.start_soon(look, service)
            sample = await self._devices.sample(thorough=True)
        facts = tuple(found[s] for s in services)
        host = await self._devices.host_memory()
        return ev.Inspected(at=self._loop.now(), effect=effect, devices=sample, host=host, services=facts)

    async def _service(self, service: str) -> InspectFact:
        spec = self._definitions().catalog.services.get(service)
        if spec is None:
            return InspectFact(service=service)
        try:
            holder = await self._port_holder(spec)
        except PortError as error:
            if error.code == "host_unknown":
                return InspectFact(service=service, host_unknown=error.message, file_missing=self._missing(spec))
            return InspectFact(service=service, error=error.message)
        except Exception as error:  # a bug of ours must not leave a request without an answer
            log.error("inspection_failed", service=service, exc_info=error)
            return InspectFact(service=service, error=f"the daemon made a mistake: {type(error).__name__}")
        return InspectFact(service=service, port_holder=holder, file_missing=self._missing(spec))

    def _missing(self, spec: ServiceSpec) -> str:
        """The file or program without which it cannot start, with the reason."""
        missing = self._host.missing_file(spec.requires_file) if spec.requires_file else ""
        unit = self._definitions().unit_files.get(spec.id)
        if not missing and unit is not None and shutil.which(unit.argv[0], path=dict(unit.env).get("PATH")) is None:
            missing = f"cannot find the program {unit.argv[0]!r}"
        return missing

    async def _port_holder(self, spec: ServiceSpec) -> str:
        """The stranger on its port. A unit of ours there, itself or one that shares the port, is no stranger."""
        if spec.port is None:
            return ""
        specs = self._definitions().catalog.services
        sharing = [spec.id, *sorted(s.id for s in specs.values() if s.port == spec.port and s.id != spec.id)]
        for candidate in sharing:
            owns = await self._units.owns_listener(candidate, spec.host, spec.port)
            if owns is not False:  # its own, or nobody listens at all
                return ""
        return await self._host.listener(spec.host, spec.port)
