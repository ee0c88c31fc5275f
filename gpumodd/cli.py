"""The daemon's command line: `gpumodd run | init | check | schema | demo | version`.

Each command imports what it needs when it runs. Errors are one line that says what to do, never a traceback.
"""

import json
import sys
from pathlib import Path

import click

from gpumodd import __version__

CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Decides which model servers own this machine's GPUs. `gpumodctl` talks to it."""


@main.command()
def run() -> None:
    """Run the daemon in the foreground; logs go to stderr."""
    import anyio

    from gpumodd.app import ConfigurationError, Places
    from gpumodd.app import run as run_daemon
    from gpumodd.config.check import report
    from gpumodd.ports import PortError
    from gpumodd.telemetry import log
    from gpumodd.wire.paths import PathError

    log.configure()
    try:
        anyio.run(run_daemon, Places.from_environment())
    except ConfigurationError as error:
        click.echo(report(error.loaded), err=True, nl=False)
        _fail("cannot start: the configuration has errors", "`gpumodd check` lists them; nothing was touched")
    except (PortError, PathError) as error:
        _fail(error.message, error.hint)


@main.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def init(directory: Path | None, force: bool) -> None:
    """Write a commented example configuration (to the default place, or DIRECTORY)."""
    from gpumodd.config.shipped import write_example
    from gpumodd.wire.paths import PathError

    try:
        target = _config_dir(directory)
        written = write_example(target, force=force)
    except FileExistsError as error:
        _fail(str(error), "move them away, name another directory, or pass --force")
    except OSError as error:
        _fail(f"cannot write the example: {error.filename}: {error.strerror}", "name a directory of yours")
    except PathError as error:
        _fail(error.message, error.hint)
    else:
        click.echo(f"{len(written)} files written to {target}")
        click.echo("next: edit them, then `gpumodd check` and `gpumodd run`")


@main.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("-v", "--verbose", is_flag=True, help="Also list every setting and who set it.")
def check(directory: Path | None, verbose: bool) -> None:
    """Validate a configuration, offline: every problem at once. Exit 0 when there is no error, else 1."""
    from gpumodd.config.check import report
    from gpumodd.config.load import load
    from gpumodd.wire.paths import PathError

    try:
        loaded = load(_config_dir(directory))
    except PathError as error:
        _fail(error.message, error.hint)
    else:
        click.echo(report(loaded, verbose=verbose), nl=False)
        sys.exit(1 if loaded.errors else 0)


@main.command()
@click.argument("kind", type=click.Choice(["gpumodd", "service", "mode"]))
def schema(kind: str) -> None:
    """Print the JSON Schema of one kind of configuration file, for editors."""
    from gpumodd.config.schema import json_schema

    click.echo(json.dumps(json_schema(kind), indent=2))


@main.command()
@click.option("--fast", is_flag=True, help="Shorter loads, for tests.")
def demo(fast: bool) -> None:
    """Show a switch between modes on simulated devices; no GPU and no systemd needed."""
    from gpumodd.demo.show import show

    sys.exit(show(fast=fast))


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"gpumodd {__version__}")


def _config_dir(directory: Path | None) -> Path:
    from gpumodd.wire import paths

    return directory if directory is not None else Path(paths.config_dir())


def _fail(message: str, hint: str = "") -> None:
    click.echo(f"gpumodd: {message}", err=True)
    if hint:
        click.echo(f"  {hint}", err=True)
    sys.exit(1)
