"""The ids a shell offers: asked from the daemon, quickly or not at all."""

import re

import click
import msgspec

from gpumodctl.client import Client, Refused, Unreachable
from gpumodctl.invocation import Invocation

_WORD = re.compile(r"[A-Za-z0-9_.:-]+")
_PATIENCE_S = 0.3  # a person is waiting with a finger on the tab key


def modes(ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Ids of modes."""
    return _ids(ctx, "mode.list", begun)


def services(ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Ids of services."""
    return _ids(ctx, "service.list", begun)


def operations(ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Ids of the newest operations."""
    return _ids(ctx, "operation.list", begun)


def topics(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Topics of events, behind what stands before the last comma."""
    from typing import get_args

    from gpumodd.wire.types import Topic

    before, comma, last = begun.rpartition(",")
    return [before + comma + topic for topic in get_args(Topic) if topic.startswith(last)]


class _Named(msgspec.Struct):
    id: str


def _ids(ctx: click.Context, method: str, begun: str) -> list[str]:
    invocation = ctx.find_object(Invocation)
    try:
        with Client(invocation.socket if invocation else None, timeout_s=_PATIENCE_S) as client:
            found = msgspec.json.decode(client.call(method), type=list[_Named])
    except (Refused, Unreachable, msgspec.DecodeError, RecursionError):
        return []
    # What is offered ends up on a command line: only plain words.
    return [item.id for item in found if item.id.startswith(begun) and _WORD.fullmatch(item.id)]
