"""`gpumodctl events`: what happens, as it happens."""

import click

from gpumodctl import completion, text
from gpumodctl.client import decode
from gpumodctl.invocation import Invocation
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
    words = " ".join(f"{key}={_short(value)}" for key, value in event.data.items() if value not in (None, "", [], {}))
    return text.clean(f"{event.at}  {event.cursor:>6}  {event.topic:<9}  {words}")


def _short(value: object) -> str:
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
