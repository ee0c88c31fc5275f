"""The commands by name, loaded when called, and the one place where every run ends.

Owns the way from an exception to an exit code. No command prints an error by itself, none shows a traceback.
"""

import sys
from importlib import import_module
from typing import Any

import click
import msgspec

from gpumodctl import exits, failures
from gpumodctl.client import Refused, Unreachable
from gpumodctl.invocation import Invocation
from gpumodctl.options import Command, Group

# name -> module of gpumodctl.commands; the attribute is called like the command
COMMANDS = {
    "status": "status",
    "switch": "switch",
    "simulate": "simulate",
    "mode": "mode",
    "service": "service",
    "device": "device",
    "model": "model",
    "operation": "operation",
    "events": "events",
    "reload": "daemon",
    "check": "daemon",
    "version": "daemon",
    "completion": "completion",
}


class Lazy(Group):
    """A group that imports a command when it is called: start-up is what users of a small client notice."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found: Command | Group = getattr(import_module(f"gpumodctl.commands.{module}"), cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise click.UsageError(error.message + hint, ctx) from None


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from gpumodd import __version__

        click.echo(f"gpumodctl {__version__}")
        ctx.exit()


cli = Lazy(
    "gpumodctl",
    help="Ask gpumodd, the daemon that decides which model servers own this machine's GPUs, or tell it what to do.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or unknown id, 3 daemon not reachable, "
    "4 refused and nothing touched, 5 failed and rolled back, 130 interrupted.",
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
        )
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(args: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    invocation = Invocation()
    try:
        # Commands give back nothing or an exit code; click's own ends (--help) give back 0.
        code: Any = cli.main(args, prog_name="gpumodctl", standalone_mode=False, obj=invocation)
        return code if isinstance(code, int) else exits.OK
    except Refused as refused:
        return failures.tell_refused(invocation, refused)
    except Unreachable as unreachable:
        return failures.tell_unreachable(invocation, unreachable)
    except click.ClickException as error:
        return failures.tell_usage(invocation, error, sys.argv[1:] if args is None else args)
    except (click.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    except (msgspec.MsgspecError, OSError) as error:
        invocation.note(f"gpumodctl: cannot go on: {getattr(error, 'strerror', None) or error}")
        return exits.FAILED
    except Exception as error:
        invocation.note(f"gpumodctl: made a mistake, please report it: {type(error).__name__}: {error}")
        return exits.FAILED
