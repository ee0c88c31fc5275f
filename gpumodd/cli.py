"""The daemon's command line: `gpumodd run | init | check | simulate | schema | demo | replay | version`.

Each command imports what it needs when it runs. Owns the way from an exception to an exit code: what goes wrong is
one line that says what, and one that says what to do, never a traceback. Exit codes: 0 done, 1 failed, 2 usage,
4 does not fit, 130 Ctrl-C.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpumodd import __version__

if TYPE_CHECKING:
    from gpumodd.config.load import Loaded


class Failed(Exception):
    """A command that cannot be done: what is wrong, and what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpumodd", message="%(prog)s %(version)s", help="Print the version.")
def main() -> None:
    """Decides which model servers own this machine's GPUs. `gpumodctl` talks to it."""


@main.command(short_help="Run the daemon in the foreground.")
def run() -> None:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C; logs go to stderr.

    SIGHUP reads the configuration again.
    """
    import anyio

    from gpumodd.app import ConfigurationError, Places
    from gpumodd.app import run as run_daemon
    from gpumodd.telemetry import log

    log.configure()
    try:
        anyio.run(run_daemon, Places.from_environment())
    except ConfigurationError as error:
        raise _unusable(error.loaded, "start") from None


@main.command(short_help="Write an example configuration.")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def init(directory: Path | None, force: bool) -> None:
    """Write a commented example configuration to DIRECTORY, else to the place where `gpumodd run` looks."""
    from gpumodd.config.shipped import write_example

    target = _config_dir(directory)
    try:
        written = write_example(target, force=force)
    except FileExistsError as error:
        raise Failed(str(error), "move them away, name another directory, or pass --force") from None
    except OSError as error:
        raise Failed(f"cannot write the example to {target}: {_told(error)}", "name a directory of yours") from None
    click.echo(f"{len(written)} files written to {target}")
    if directory is None:
        click.echo("next: edit them, then `gpumodd check` and `gpumodd run`")
    else:
        click.echo(f"next: edit them, then `gpumodd check {directory}`; GPUMODD_CONFIG_DIR makes `gpumodd run` use it")


@main.command(short_help="Validate a configuration, offline.")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("-v", "--verbose", is_flag=True, help="List every setting, also those with their default value.")
def check(directory: Path | None, verbose: bool) -> int:
    """Validate the configuration in DIRECTORY, else the one that `gpumodd run` would use.

    Tells every problem at once, and where each setting that is not the default comes from. Exit code 0 when there
    is no error, else 1.
    """
    from gpumodd.config.check import report
    from gpumodd.config.load import load

    loaded = load(_config_dir(directory))
    click.echo(report(loaded, verbose=verbose), nl=False)
    return 1 if loaded.errors else 0


@main.command(short_help="Print a JSON Schema, for editors.")
@click.argument("kind", type=click.Choice(["gpumodd", "service", "mode"]))
def schema(kind: str) -> None:
    """Print the JSON Schema of one kind of configuration file, for editors."""
    from gpumodd.config.schema import json_schema

    click.echo(json.dumps(json_schema(kind), indent=2))


@main.command(short_help="Show a switch without GPU and systemd.")
@click.option("--fast", is_flag=True, help="Shorter loads, for tests.")
def demo(fast: bool) -> int:
    """Show switches between modes on a simulated device; no GPU and no systemd needed.

    A real daemon, a real client and model servers without models run in a temporary directory and end with it.
    """
    from gpumodd.demo.show import show

    return show(fast=fast)


@main.command(short_help="Show whether a mode fits; needs no daemon.")
@click.argument("mode", required=False)
@click.option("--services", metavar="A,B,…", help="These services instead of a mode.")
@click.option("--add", multiple=True, metavar="SERVICE", help="With this service, too.")
@click.option("--remove", multiple=True, metavar="SERVICE", help="Without this service.")
@click.option("--context", multiple=True, metavar="SERVICE=N", help="With this context for this service.")
@click.option("--json", "as_json", is_flag=True, help="Print the simulation, or the error object, as JSON.")
def simulate(
    mode: str | None,
    services: str | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    context: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show whether MODE, or a list of services, fits and what a switch to it would do: what `gpumodctl simulate` shows,
    without a daemon.

    Looks at the configuration, the devices and what runs, as the daemon would; starts, stops and writes nothing. Exit
    code 0 when it fits, 4 when it does not, 2 for an unknown id, 1 for a broken configuration.
    """
    import anyio
    from msgspec import Raw, json

    from gpumodctl import failures
    from gpumodctl.client import Refused
    from gpumodctl.commands.simulate import params, show
    from gpumodctl.invocation import Invocation
    from gpumodd import app
    from gpumodd.telemetry import log
    from gpumodd.wire.errors import RpcError
    from gpumodd.wire.methods import METHODS

    log.configure({"GPUMODD_LOG_LEVEL": "error", **os.environ})
    invocation = Invocation()
    invocation.json = as_json
    try:
        asked = METHODS["mode.simulate"].decode_params(Raw(json.encode(params(mode, services, add, remove, context))))
        simulation, remarks = anyio.run(app.simulate, app.Places.from_environment(), asked)
    except app.ConfigurationError as error:
        failed = _unusable(error.loaded, "simulate")
        if as_json:
            invocation.document(RpcError("invalid_config", failed.message, hint=failed.hint).as_object())
        raise failed from None
    except RpcError as error:
        answer = error.as_object()
        return failures.tell_refused(invocation, Refused(answer, Raw(json.encode(answer))), program="gpumodd")
    invocation.note(*remarks)
    return show(invocation, simulation, simulation)


@main.command(short_help="Replay a recorded event log, offline.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--until", metavar="N|TIME", help="Stop after this batch, or before what happened after this time.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON document.")
def replay(file: Path, until: str | None, as_json: bool) -> int:
    """Replay FILE, an event log of a daemon, in a fresh engine: tell what happened, change by change, and how things
    stood in the end, and verify that it comes out as it was recorded.

    The daemon keeps its newest logs in the folder `events` of its state directory. TIME is RFC 3339, such as
    2026-01-31T12:00:00Z. Exit code 0 when everything is as recorded, 1 when it differs or FILE cannot be read.
    """
    from gpumodd.replaying import replay_file

    return replay_file(file, until=until, as_json=as_json)


@main.command(short_help="Print the version.")
def version() -> None:
    """Print the version."""
    click.echo(f"gpumodd {__version__}")


def run_command(args: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    from gpumodd.ports import PortError
    from gpumodd.wire.paths import PathError

    try:
        # Commands give back nothing or an exit code; click's own ends (--help) give back 0.
        code: Any = main.main(args, prog_name="gpumodd", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (Failed, PortError, PathError) as error:
        return _fail(error.message, error.hint)
    except BrokenPipeError:
        return 1  # whoever read our output has left
    except OSError as error:
        return _fail(f"cannot go on: {_told(error)}")


def _unusable(loaded: "Loaded", what: str) -> Failed:
    """Why nothing can be done with this configuration; the mistakes are told at once."""
    from gpumodd.config.check import problems

    if loaded.errors[0].code == "no_configuration":
        message = f"cannot {what}: there is no configuration directory {loaded.directory}"
        return Failed(message, "`gpumodd init` makes one")
    for line in problems(loaded):
        click.echo(line, err=True)
    return Failed(f"cannot {what}: the configuration has errors", "`gpumodd check` lists them, too")


def _config_dir(directory: Path | None) -> Path:
    from gpumodd.wire import paths

    return directory if directory is not None else Path(paths.config_dir())


def _told(error: OSError) -> str:
    reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
    return f"{error.filename}: {reason}" if error.filename else reason


def _fail(message: str, hint: str = "") -> int:
    with suppress(OSError):  # nobody may hear it; the exit code says it, too
        click.echo(f"gpumodd: {message}" + (f"\n  {hint}" if hint else ""), err=True)
    return 1
