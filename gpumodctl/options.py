"""Commands and groups that all take `--json` and `--socket`, before or behind the command's name."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from gpumodctl.invocation import Invocation

F = TypeVar("F", bound=Callable[..., Any])


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and isinstance(ctx.obj, Invocation):
        ctx.obj.json = True


def _set_socket(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None and isinstance(ctx.obj, Invocation):
        ctx.obj.socket = value


def shared() -> list[click.Parameter]:
    """The options of every command."""
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_set_json,
            help="Print the result, or the error object, as JSON.",
        ),
        click.Option(
            ["--socket"],
            metavar="PATH",
            expose_value=False,
            callback=_set_socket,
            help="The daemon's socket, instead of the usual one.",
        ),
    ]


class Command(click.Command):
    """A command with the shared options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared())


class Group(click.Group):
    """A group with the shared options."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared())


def command(name: str, *, help: str) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command."""
    return click.command(name, cls=Command, help=help)


def group(name: str, *, help: str) -> Group:
    """Declare a group."""
    return Group(name, help=help)
