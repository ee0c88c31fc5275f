"""`gpumodctl status`: the whole state on one screen."""

import time

import click

from gpumodctl import text
from gpumodctl.client import Client, Refused, decode
from gpumodctl.invocation import Invocation, ago
from gpumodctl.options import command
from gpumodctl.results import show_devices
from gpumodd.wire.types import Operation, Status

_STATES = {"converged": "green", "switching": "yellow", "degraded": "yellow", "blocked": "red"}
_REFRESH_S = 2.0  # memory changes without an event
_SETTLE_S = 0.1  # events come in bursts


@command("status", help="Show mode, devices, services and problems.")
@click.option("--watch", is_flag=True, help="Go on and show every change, until Ctrl-C.")
@click.pass_obj
def status(invocation: Invocation, watch: bool) -> None:
    if watch:
        _watch(invocation)
        return
    with invocation.connect() as client:
        raw = client.call("status.get")
        if invocation.json:
            invocation.document(raw)
            return
        show_status(invocation, decode(raw, Status), _last_operation(client))


def _watch(invocation: Invocation) -> None:
    with invocation.connect() as client:
        client.call("events.subscribe", {})
        while not invocation.out.closed:
            raw = client.call("status.get")
            if invocation.json:
                invocation.document_line(raw)
            else:
                if invocation.out.redraws:
                    invocation.out.write("\x1b[H\x1b[2J")
                show_status(invocation, decode(raw, Status), _last_operation(client))
                if not invocation.out.redraws:
                    invocation.say("")
            _await_change(client)


def _last_operation(client: Client) -> Operation | None:
    """The newest operation: what the status does not show any more once it has ended."""
    try:
        newest = decode(client.call("operation.list", {"limit": 1}), list[Operation])
    except Refused:  # the status is worth showing without it
        return None
    return newest[0] if newest else None


def _await_change(client: Client) -> None:
    if client.receive(_REFRESH_S) is None:
        return
    settled = time.monotonic() + _SETTLE_S
    while (left := settled - time.monotonic()) > 0:
        client.receive(left)


def show_status(invocation: Invocation, status: Status, last: Operation | None) -> None:
    """The screen: how things stand, who holds the memory, what is wrong, what to type next."""
    out = invocation.out
    mode = text.clean(status.mode or "none")
    if status.desired_mode is not None and status.desired_mode != status.mode:
        mode += f" (wanted: {text.clean(status.desired_mode)})"
    invocation.say(
        text.cut(f"Mode:   {mode}", out.columns),
        f"State:  {out.paint(status.state, _STATES.get(status.state, ''))}",
    )
    operation = status.operation
    if operation is not None:
        running = [step for step in operation.steps if step.state == "running"]
        doing = ", ".join(f"{step.verb} {step.service or step.device or ''}".strip() for step in running)
        words = f"{operation.id}: {operation.kind} {operation.target}" + (f" ({doing})" if doing else "")
        invocation.say(text.cut(f"Doing:  {text.clean(words)}", out.columns))
    elif last is not None and last.state in ("failed", "rolled_back", "cancelled"):
        why = f": {last.error.message}" if last.error is not None else ""
        words = f"{last.kind} {last.target} {last.state.replace('_', ' ')} {ago(last.finished_at)} ago{why}"
        first, *more = text.wrap(words, out.columns - 8) or [""]
        invocation.say(f"Last:   {first}", *(f"        {line}" for line in more))
    if status.devices:
        invocation.say("")
        show_devices(invocation, status.devices)
    invocation.say("")
    if status.services:
        invocation.table(
            ("", "Service", "Phase", "VRAM (MiB)", "Port", "Since", "Doing"),
            [
                (
                    "" if service.mode_member else "*",
                    service.id,
                    service.phase if service.sleep_level is None else f"{service.phase} ({service.sleep_level})",
                    service.vram_observed_mib if service.vram_observed_mib is not None else service.vram_mib,
                    service.port,
                    ago(service.since),
                    _doing(status, service.id),
                )
                for service in status.services
            ],
            numbers=(3, 4),
        )
        if any(not service.mode_member for service in status.services):
            invocation.say("* not in the mode")
    else:
        invocation.say("No services are configured.")
    _show_problems(invocation, status)
    commands = _next(status, last)
    if commands:
        invocation.say("", *text.wrap(f"Next: {', '.join(f'`{command}`' for command in commands)}", out.columns))


def _next(status: Status, last: Operation | None) -> list[str]:
    """What to type to learn more, most telling first."""
    if status.operation is not None:
        return [f"gpumodctl operation show {status.operation.id}", f"gpumodctl operation cancel {status.operation.id}"]
    found = [f"gpumodctl service explain {problem.service}" for problem in status.problems if problem.service]
    if any(problem.device for problem in status.problems):
        found.append("gpumodctl device list")
    if last is not None and last.state in ("failed", "rolled_back"):
        found.append(f"gpumodctl operation show {last.id}")
    if status.mode is None or not status.services:
        found.append("gpumodctl mode list")
    return list(dict.fromkeys(found))[:3]


def _doing(status: Status, service: str) -> str:
    """What the running operation does with a service."""
    if status.operation is None:
        return ""
    steps = [step for step in status.operation.steps if step.service == service and step.state == "running"]
    if not steps:
        return ""
    started = steps[0].started_at
    return f"{steps[0].verb} {ago(started)}" if started else steps[0].verb


def _show_problems(invocation: Invocation, status: Status) -> None:
    out = invocation.out
    if not status.problems:
        return
    invocation.say("", out.paint("Problems:", "bold"))
    for problem in status.problems:
        where = problem.service or problem.device
        words = f"{problem.code}{f' ({where})' if where else ''}: {problem.message}"
        invocation.say(*(out.paint(line, "red") for line in text.wrap(words, out.columns, "  ")))
        if problem.hint:
            invocation.say(*text.wrap(f"hint: {problem.hint}", out.columns, "    "))
