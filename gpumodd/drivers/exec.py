"""Any program: the command is written out in the service file and nothing is added to it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers import command
from gpumodd.drivers.api import DriverContext, DriverError, ProbeSpec, UnitFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecOptions:
    """`options:` of an exec service."""

    command: (
        tuple[str, ...] | str
    ) = ()  # the program and its arguments; a text is split as a shell would, without running one
    cwd: str | None = None  # directory the program runs in


class ExecDriver:
    name: str = "exec"
    options: type = ExecOptions

    def check(self, spec: ServiceSpec, options: ExecOptions) -> list[DriverError]:
        problems = command.check_directory(options.cwd)
        try:
            _argv(options)
        except DriverError as error:
            problems.append(error)
        return problems

    def unit_file(
        self,
        spec: ServiceSpec,
        options: ExecOptions,
        context: DriverContext,
        *,
        args: tuple[str, ...],
        env: Mapping[str, str],
    ) -> UnitFile:
        if problems := self.check(spec, options):
            raise problems[0]
        return UnitFile(
            service=spec.id,
            description=spec.name or spec.id,
            argv=(*_argv(options), *args),
            env=tuple(env.items()),
            working_directory=command.directory(options.cwd),
            stop_timeout_s=spec.stop_timeout_s,
        )

    def probe(self, spec: ServiceSpec, options: ExecOptions) -> ProbeSpec | None:
        return command.http_probe(spec)

    def requires_file(self, spec: ServiceSpec, options: ExecOptions) -> str | None:
        return None

    def device_env(self, uuids: tuple[str, ...]) -> Mapping[str, str]:
        return command.cuda_devices(uuids)


def _argv(options: ExecOptions) -> tuple[str, ...]:
    """The command with its program as an absolute path or a bare name; raises DriverError."""
    where, hint = "options.command", "such as [python3, -m, http.server]"
    words: tuple[str, ...] | list[str] = options.command if isinstance(options.command, tuple) else ()
    if isinstance(options.command, str):
        try:
            words = shlex.split(options.command)
        except ValueError as error:
            message = f"cannot split command {options.command!r}: {str(error).lower()}"
            raise DriverError(message, field=where, hint="write it as a list") from None
    if not words or not words[0]:
        raise DriverError("driver exec needs options.command", field=where, hint=hint)
    program = words[0]
    if "/" not in program and not program.startswith("~"):
        return tuple(words)
    if not program.startswith(("/", "~")) and options.cwd is None:
        message = f"cannot use the relative program {program!r} without options.cwd"
        raise DriverError(message, field=where, hint="give an absolute path, or set options.cwd")
    return (command.absolute(program, options.cwd), *words[1:])


DRIVER = ExecDriver()
