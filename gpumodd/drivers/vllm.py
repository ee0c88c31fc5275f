"""vLLM: `vllm serve MODEL`. Owns its command line; the server itself is never asked anything here."""

from collections.abc import Mapping
from dataclasses import dataclass

from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers import command
from gpumodd.drivers.api import DriverContext, DriverError, ProbeSpec, UnitFile


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """`options:` of a vLLM service."""

    cwd: str | None = None  # directory the server runs in


class VllmDriver:
    name: str = "vllm"
    options: type = VllmOptions

    def check(self, spec: ServiceSpec, options: VllmOptions) -> list[DriverError]:
        hint = "a Hugging Face id, or a directory that starts with /, ./ or ~"
        return [*command.check_model(spec, hint), *command.check_directory(options.cwd)]

    def unit_file(
        self,
        spec: ServiceSpec,
        options: VllmOptions,
        context: DriverContext,
        *,
        args: tuple[str, ...],
        env: Mapping[str, str],
    ) -> UnitFile:
        if problems := [*self.check(spec, options), *command.check_address(args, spec)]:
            raise problems[0]
        model = self.requires_file(spec, options) or str(spec.model)
        return UnitFile(
            service=spec.id,
            description=spec.name or spec.id,
            argv=(*context.command, model, *command.address(spec), *_derived(spec, args), *args),
            env=tuple(env.items()),
            working_directory=command.directory(options.cwd),
            stop_timeout_s=spec.stop_timeout_s,
        )

    def probe(self, spec: ServiceSpec, options: VllmOptions) -> ProbeSpec | None:
        return command.http_probe(spec)

    def requires_file(self, spec: ServiceSpec, options: VllmOptions) -> str | None:
        """Only what is plainly a path is one: `org/name` is an id even if such a directory exists."""
        if spec.model and spec.model.startswith(("/", "./", "~")):
            return command.absolute(spec.model, options.cwd)
        return None

    def device_env(self, uuids: tuple[str, ...]) -> Mapping[str, str]:
        return command.cuda_devices(uuids)


def _derived(spec: ServiceSpec, args: tuple[str, ...]) -> tuple[str, ...]:
    """Flags that follow from the service's own keys, unless `args` says otherwise."""
    flags: tuple[str, ...] = ()
    if spec.context is not None and not command.given(args, "--max-model-len"):
        flags += ("--max-model-len", str(spec.context))
    if spec.device_count > 1 and not command.given(args, "--tensor-parallel-size", "-tp"):
        flags += ("--tensor-parallel-size", str(spec.device_count))
    return flags


DRIVER = VllmDriver()
