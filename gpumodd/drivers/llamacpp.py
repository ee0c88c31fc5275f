"""llama.cpp: `llama-server` with one GGUF. Owns its command line; router mode is not built yet."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers import command
from gpumodd.drivers.api import DriverContext, DriverError, ProbeSpec, UnitFile
from gpumodd.estimate import flags, llamacpp
from gpumodd.estimate.gguf import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppOptions:
    """`options:` of a llama.cpp service."""

    cwd: str | None = None  # directory the server runs in


class LlamaCppDriver:
    name: str = "llamacpp"
    options: type = LlamaCppOptions

    def check(self, spec: ServiceSpec, options: LlamaCppOptions) -> list[DriverError]:
        return [*command.check_model(spec, "the path of a GGUF file"), *command.check_directory(options.cwd)]

    def unit_file(
        self,
        spec: ServiceSpec,
        options: LlamaCppOptions,
        context: DriverContext,
        *,
        args: tuple[str, ...],
        env: Mapping[str, str],
    ) -> UnitFile:
        if problems := [*self.check(spec, options), *command.check_address(args, spec)]:
            raise problems[0]
        model = command.absolute(str(spec.model), options.cwd)
        return UnitFile(
            service=spec.id,
            description=spec.name or spec.id,
            argv=(*context.command, "--model", model, *command.address(spec), *_derived(spec, args), *args),
            env=tuple(env.items()),
            working_directory=command.directory(options.cwd),
            stop_timeout_s=spec.stop_timeout_s,
        )

    def probe(self, spec: ServiceSpec, options: LlamaCppOptions) -> ProbeSpec | None:
        return command.http_probe(spec)

    def requires_file(self, spec: ServiceSpec, options: LlamaCppOptions) -> str | None:
        """The model file. What it is called and what is in it is judged by llama-server, when it starts."""
        return command.absolute(spec.model, options.cwd) if spec.model else None

    def device_env(self, uuids: tuple[str, ...]) -> Mapping[str, str]:
        return command.cuda_devices(uuids)

    def model_files(
        self, spec: ServiceSpec, options: LlamaCppOptions, *, args: tuple[str, ...], env: Mapping[str, str]
    ) -> tuple[str, ...]:
        """The model, and those that are loaded beside it."""
        beside = flags.beside(args, env)
        names = [str(spec.model), *(name for name in (beside.projector, beside.draft) if name is not None)]
        return tuple(command.absolute(name, options.cwd) for name in names)

    def estimate_mib(
        self,
        spec: ServiceSpec,
        options: LlamaCppOptions,
        *,
        args: tuple[str, ...],
        env: Mapping[str, str],
        models: Mapping[str, Any],
        context: int | None = None,
    ) -> int:
        run = flags.run((*_derived(spec, args), *args), env, devices=spec.device_count)
        if context is not None:
            run = replace(run, context=context)
        if not all(isinstance(model, Header) for model in models.values()):
            raise ValueError("it is no GGUF file")
        beside = flags.beside(args, env)

        def named(name: str | None) -> Header | None:
            return None if name is None else models[command.absolute(name, options.cwd)]

        model = models[command.absolute(str(spec.model), options.cwd)]
        taken = llamacpp.on_device(model, run, projector=named(beside.projector), draft=named(beside.draft))
        return llamacpp.mib(taken)


def _derived(spec: ServiceSpec, args: tuple[str, ...]) -> tuple[str, ...]:
    if spec.context is not None and not command.given(args, "--ctx-size", "-c"):
        return ("--ctx-size", str(spec.context))
    return ()


DRIVER = LlamaCppDriver()
