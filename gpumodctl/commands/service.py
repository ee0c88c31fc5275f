"""`gpumodctl service …`: single services."""

from typing import Any

import click

from gpumodctl import completion, text
from gpumodctl.client import decode
from gpumodctl.commands.switch import begin
from gpumodctl.invocation import Invocation, ago, clock
from gpumodctl.options import Command, group
from gpumodd.wire.types import Explanation, Logs, Service

service = group("service", help="List, show, start and stop services.")


@service.command("list", help="List all services.")
@click.pass_obj
def list_(invocation: Invocation) -> None:
    raw = invocation.ask("service.list")
    if invocation.json:
        invocation.document(raw)
        return
    invocation.table(
        ("ID", "Name", "Driver", "Phase", "VRAM (MiB)", "Port"),
        [(s.id, s.name, s.driver, s.phase, s.vram_mib, s.port) for s in decode(raw, list[Service])],
        numbers=(4, 5),
    )


@service.command("show", help="Show all there is to know about one service.")
@click.argument("id", shell_complete=completion.services)
@click.pass_obj
def show(invocation: Invocation, id: str) -> None:
    raw = invocation.ask("service.get", {"id": id})
    if invocation.json:
        invocation.document(raw)
        return
    shown = decode(raw, Service)
    invocation.panel(
        [
            ("ID", shown.id),
            ("Name", shown.name),
            ("Driver", shown.driver),
            ("Model", shown.model),
            ("Aliases", shown.aliases or None),
            ("Depends on", shown.depends_on or None),
            ("In the mode", "yes" if shown.mode_member else "no"),
            ("Loads in", None if shown.load_s is None else f"{shown.load_s:.1f} s"),
            *_state(shown),
        ]
    )


@service.command("status", help="Show how one service is, and its last log lines.")
@click.argument("id", shell_complete=completion.services)
@click.option("-n", "--lines", type=click.IntRange(0, 5000), default=10, help="How many log lines (default: 10).")
@click.pass_obj
def status(invocation: Invocation, id: str, lines: int) -> None:
    with invocation.connect() as client:
        raw = client.call("service.get", {"id": id})
        if invocation.json:
            invocation.document(raw)
            return
        shown = decode(raw, Service)
        invocation.panel([("Service", shown.id), *_state(shown)])
        if lines:
            logs = decode(client.call("service.logs", {"id": id, "lines": lines}), Logs)
            invocation.say("", *map(text.clean, logs.lines))


def _state(shown: Service) -> list[tuple[str, object]]:
    vram = None if shown.vram_mib is None else f"{shown.vram_mib} MiB ({shown.vram_source or 'declared'})"
    problem = shown.problem
    return [
        ("Phase", shown.phase if shown.sleep_level is None else f"{shown.phase} ({shown.sleep_level})"),
        ("Since", f"{ago(shown.since)} ago" if shown.since else None),
        ("Unit", shown.unit),
        ("PID", shown.pid),
        ("Port", shown.port),
        ("Devices", shown.devices or None),
        ("VRAM", vram),
        ("VRAM observed", None if shown.vram_observed_mib is None else f"{shown.vram_observed_mib} MiB"),
        ("Problem", None if problem is None else f"{problem.code}: {problem.message}"),
        ("Hint", problem.hint or None if problem else None),
    ]


@service.command("logs", help="Show the last lines a service wrote.")
@click.argument("id", shell_complete=completion.services)
@click.option("-n", "--lines", type=click.IntRange(1, 5000), default=50, help="How many (default: 50).")
@click.pass_obj
def logs(invocation: Invocation, id: str, lines: int) -> None:
    raw = invocation.ask("service.logs", {"id": id, "lines": lines})
    if invocation.json:
        invocation.document(raw)
    else:
        invocation.say(*map(text.clean, decode(raw, Logs).lines))


@service.command("explain", help="Show why a service is as it is, and what would change that.")
@click.argument("id", shell_complete=completion.services)
@click.pass_obj
def explain(invocation: Invocation, id: str) -> None:
    raw = invocation.ask("service.explain", {"id": id})
    if invocation.json:
        invocation.document(raw)
        return
    told = decode(raw, Explanation)
    columns = invocation.out.columns
    invocation.say(*text.wrap(f"{told.id} is {told.phase}: {told.why}.", columns))
    for fact in told.because:
        invocation.say(*text.wrap(f"- {fact}", columns, "  "))
    if told.would_change:
        invocation.say("", "What would change it:")
        for way in told.would_change:
            invocation.say(*text.wrap(way, columns, "  "))
    if told.story:
        invocation.say("", "What happened:")
        for entry in told.story:
            cause = f" ({entry.cause})" if entry.cause else ""
            invocation.say(*text.wrap(f"{clock(entry.at)}  {entry.text}{cause}", columns, "  "))


def _action(verb: str, done: str, help: str) -> Command:
    @service.command(verb, help=help)
    @click.argument("id", shell_complete=completion.services)
    @click.option("--no-wait", is_flag=True, help="Begin it and return.")
    @click.option("--force", is_flag=True, help="Pass refusals for lack of memory and the pause after a stop.")
    @click.pass_obj
    def action(invocation: Invocation, id: str, no_wait: bool, force: bool) -> int:
        params: dict[str, Any] = {"id": id} | ({"force": True} if force else {})
        return begin(invocation, f"service.{verb}", params, no_wait=no_wait, headline=f"Service {id} {done}")

    assert isinstance(action, Command)
    return action


start = _action("start", "is ready", "Start a service beside the mode and wait until it is ready.")
stop = _action("stop", "has stopped", "Stop a service; it stays stopped until the next switch.")
restart = _action("restart", "is ready again", "Stop a service and start it again.")
