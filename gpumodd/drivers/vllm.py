"""vLLM: `vllm serve MODEL`. Owns its command line; the server itself is never asked anything here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers import command
from gpumodd.drivers.api import DriverContext, DriverError, ProbeSpec, UnitFile
from gpumodd.estimate import vllm
from gpumodd.estimate.checkpoint import Checkpoint
from gpumodd.estimate.vllm import Need


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

    def model_files(
        self, spec: ServiceSpec, options: VllmOptions, *, args: tuple[str, ...], env: Mapping[str, str]
    ) -> tuple[str, ...]:
        """The directory of a local model; what an id stands for is known to vLLM alone."""
        path = self.requires_file(spec, options)
        return () if path is None else (path,)

    def estimate_mib(
        self,
        spec: ServiceSpec,
        options: VllmOptions,
        *,
        args: tuple[str, ...],
        env: Mapping[str, str],
        models: Mapping[str, Any],
        context: int | None = None,
    ) -> int:
        words = (*_derived(spec, args), *args)
        need = Need(
            context=context or _number(command.value(words, "--max-model-len")),
            cache_type=command.value(words, "--kv-cache-dtype") or "auto",
            cache_bytes=_number(command.value(words, "--kv-cache-memory-bytes")),
            devices=spec.device_count,
        )
        (model,) = models.values()
        if not isinstance(model, Checkpoint):
            raise ValueError("it is no directory with a config.json and safetensors files")
        return -(-vllm.needed(model, need) // vllm.MIB)


def _number(word: str | None) -> int | None:
    """A number as vLLM takes it where it is short; `8k` and the like are left to vLLM."""
    return int(word) if word is not None and word.isascii() and word.isdigit() and int(word[:16]) > 0 else None


def _derived(spec: ServiceSpec, args: tuple[str, ...]) -> tuple[str, ...]:
    """Flags that follow from the service's own keys, unless `args` says otherwise."""
    flags: tuple[str, ...] = ()
    if spec.context is not None and not command.given(args, "--max-model-len"):
        flags += ("--max-model-len", str(spec.context))
    if spec.device_count > 1 and not command.given(args, "--tensor-parallel-size", "-tp"):
        flags += ("--tensor-parallel-size", str(spec.device_count))
    return flags


DRIVER = VllmDriver()
