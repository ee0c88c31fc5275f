"""An ASGI application of your own, served by uvicorn. Owns its command line only."""

from collections.abc import Mapping
from dataclasses import dataclass

from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers import command
from gpumodd.drivers.api import DriverContext, DriverError, ProbeSpec, UnitFile


@dataclass(frozen=True, slots=True, kw_only=True)
class FastApiOptions:
    """`options:` of a FastAPI service."""

    cwd: str | None = None  # directory the server runs in, and where uvicorn looks for the module


class FastApiDriver:
    name: str = "fastapi"
    options: type = FastApiOptions

    def check(self, spec: ServiceSpec, options: FastApiOptions) -> list[DriverError]:
        hint = "the import path of the application, such as speech.server:app"
        problems = command.check_model(spec, hint)
        if not problems and not all((spec.model or "").partition(":")):
            problems = [DriverError(f"cannot import model {spec.model!r}", field="model", hint=hint)]
        return [*problems, *command.check_directory(options.cwd)]

    def unit_file(
        self,
        spec: ServiceSpec,
        options: FastApiOptions,
        context: DriverContext,
        *,
        args: tuple[str, ...],
        env: Mapping[str, str],
    ) -> UnitFile:
        if problems := [*self.check(spec, options), *command.check_address(args, spec)]:
            raise problems[0]
        return UnitFile(
            service=spec.id,
            description=spec.name or spec.id,
            argv=(*context.command, str(spec.model), *command.address(spec), *args),
            env=tuple(env.items()),
            working_directory=command.directory(options.cwd),
            stop_timeout_s=spec.stop_timeout_s,
        )

    def probe(self, spec: ServiceSpec, options: FastApiOptions) -> ProbeSpec | None:
        return command.http_probe(spec)

    def requires_file(self, spec: ServiceSpec, options: FastApiOptions) -> str | None:
        return None

    def device_env(self, uuids: tuple[str, ...]) -> Mapping[str, str]:
        return command.cuda_devices(uuids)


DRIVER = FastApiDriver()
