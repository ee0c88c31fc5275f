"""`gpumodctl events`: what happens, as it happens."""

from typing import Any

import click

from gpumodctl import completion, text
from gpumodctl.client import decode
from gpumodctl.invocation import Invocation, duration
from gpumodctl.options import command
from gpumodd.wire.session import Notification
from gpumodd.wire.types import Event


@command("events", help="Print what happens, one line each, until Ctrl-C.")
@click.option("--topics", metavar="TOPIC,…", shell_complete=completion.topics, help="Only these; separated by commas.")
@click.option("--after", type=click.IntRange(0), metavar="CURSOR", help="Begin behind this cursor of an earlier run.")
@click.option("-n", "--count", type=click.IntRange(1), help="End after that many.")
@click.pass_obj
def events(invocation: Invocation, topics: str | None, after: int | None, count: int | None) -> None:
    params: dict[str, object] = {}
    if topics is not None:
        params["topics"] = [topic.strip() for topic in topics.split(",") if topic.strip()]
    if after is not None:
        params["after"] = after
    with invocation.connect() as client:
        client.call("events.subscribe", params)
        left = count
        while not invocation.out.closed and left != 0:
            message = client.receive(None)
            if not isinstance(message, Notification) or message.method != "event":
                continue
            if invocation.json:
                invocation.document_line(message.params)
            else:
                invocation.say(_line(decode(message.params, Event)))
            left = None if left is None else left - 1


def _line(event: Event) -> str:
    words = _words(event.topic, event.data)
    return text.clean(f"{event.at}  {event.cursor:>6}  {event.topic:<9}  {words}")


def _words(topic: str, data: dict[str, Any]) -> str:
    """What happened, in words; an event of a shape that is not known, as it came."""
    match topic, data:
        case "service", {"service": service, "from": before, "to": now}:
            return f"{service}: {before} → {now}"
        case "operation", {"operation": id, "kind": kind, "target": target, "step": {"verb": verb, **step}}:
            took = step.get("seconds") if step.get("state") == "done" else None
            what = f"{str(verb).replace('_', ' ')} {step.get('service') or ''}".strip()
            why = f": {error.get('message', '')}" if isinstance(error := step.get("error"), dict) else ""
            lasted = f" in {duration(took)}" if isinstance(took, (int, float)) else ""
            return f"{id} {kind} {target}: {what} {step.get('state', '')}{lasted}{why}"
        case "operation", {"operation": id, "kind": kind, "target": target, "state": state}:
            why = f": {error.get('message', '')}" if isinstance(error := data.get("error"), dict) else ""
            how = "turns back" if data.get("turned_back") else str(state).replace("_", " ")
            return f"{id} {kind} {target} {how}{why}"
        case "mode", {"mode": mode, "desired_mode": wanted}:
            return f"{mode or 'none'}" + (f", wanted: {wanted or 'none'}" if wanted != mode else "")
        case "device", {"state": state, "message": message}:
            where = f"GPU {data['index']} {data.get('name', '')}" if data.get("index") is not None else "devices"
            return f"{where}: {state}: {message}"
        case "problem", {"problem": {"code": code, "message": message}, "raised": raised}:
            return f"{code}: {message}" if raised else f"{code} is over: {message}"
        case "config", {"added": [*added], "changed": [*changed], "removed": [*removed], "errors": [*errors]}:
            counts = f"{len(added)} added, {len(changed)} changed, {len(removed)} removed"
            return f"reloaded: {counts}, {len(errors)} errors"
    return " ".join(f"{key}={_short(value)}" for key, value in data.items() if value not in (None, "", [], {}))


def _short(value: object) -> str:
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
