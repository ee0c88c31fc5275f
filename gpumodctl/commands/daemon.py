"""`gpumodctl reload`, `check` and `version`: the daemon itself."""

from collections.abc import Iterable

import click

from gpumodctl import exits, text
from gpumodctl.client import Unreachable, decode
from gpumodctl.invocation import Invocation
from gpumodctl.options import command
from gpumodd import __version__
from gpumodd.wire.types import ConfigCheck, ConfigProblem, Hello, Reload


@command("reload", help="Read the configuration again. A bad file keeps its last good state.")
@click.option("--restart-changed", is_flag=True, help="Restart running services whose definition changed.")
@click.pass_obj
def reload(invocation: Invocation, restart_changed: bool) -> int:
    raw = invocation.ask("daemon.reload", {"restart_changed": restart_changed})
    result = decode(raw, Reload)
    if invocation.json:
        invocation.document(raw)
    else:
        counts = ", ".join(f"{len(getattr(result, what))} {what}" for what in _COUNTED)
        invocation.say(f"Reloaded: {counts}.")
        for what in (*_COUNTED[:3], "restarted", "stale"):
            ids: list[str] = getattr(result, what)
            if ids:
                invocation.say(f"{what.capitalize()}:", *(f"  {text.clean(id)}" for id in ids))
        invocation.note(*map(_place, result.errors))
    return exits.FAILED if result.errors else exits.OK


_COUNTED = ("added", "changed", "removed", "unchanged")


@command("check", help="Check the configuration on disk without loading it.")
@click.pass_obj
def check(invocation: Invocation) -> int:
    raw = invocation.ask("config.check")
    problems = decode(raw, ConfigCheck).problems
    if invocation.json:
        invocation.document(raw)
    else:
        _show_problems(invocation, problems)
    return exits.FAILED if problems else exits.OK


def _show_problems(invocation: Invocation, problems: Iterable[ConfigProblem]) -> None:
    lines = [_place(problem) for problem in problems]
    invocation.say(*(lines or ["The configuration is good."]))


def _place(problem: ConfigProblem) -> str:
    place = ":".join(str(part) for part in (problem.file, problem.line or "", problem.column or "") if part)
    parts = [part for part in (place, problem.path, problem.message) if part]
    return text.clean(": ".join(parts) + (f" ({problem.hint})" if problem.hint else ""))


@command("version", help="Print the versions of client and daemon.")
@click.pass_obj
def version(invocation: Invocation) -> None:
    try:
        raw = invocation.ask("daemon.hello", {"client": "gpumodctl"})
    except Unreachable as unreachable:
        if invocation.json:
            invocation.document({"gpumodctl": __version__, "gpumodd": None})
        else:
            invocation.say(f"gpumodctl {__version__}", "gpumodd not reachable")
        invocation.note(f"gpumodctl: {text.clean(unreachable.message)}")
        return
    if invocation.json:
        invocation.document({"gpumodctl": __version__, "gpumodd": raw})
        return
    hello = decode(raw, Hello)
    invocation.say(
        f"gpumodctl {__version__}",
        text.clean(f"gpumodd {hello.version} (pid {hello.pid}, since {hello.started_at}, protocol {hello.protocol})"),
    )
