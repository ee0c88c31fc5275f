"""Watching an operation: a table that is redrawn on a terminal, plain lines anywhere else.

Everything here goes to stderr; the result of the command is somebody else's. Ctrl-C detaches: the operation goes
on in the daemon.
"""

import time
from typing import Any

import msgspec
from msgspec import Raw

from gpumodctl import text
from gpumodctl.client import Client, Refused, Unreachable, decode
from gpumodctl.invocation import Invocation, duration, seconds_of
from gpumodctl.timeline import ASCII_MARKS, MARKS, STYLES, title
from gpumodd.wire.session import Notification, Reply
from gpumodd.wire.types import Operation, Progress, Status, Step

_ASK_EVERY_S = 1.0
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Detached(KeyboardInterrupt):
    """Ctrl-C while an operation runs."""


def run_operation(invocation: Invocation, method: str, params: dict[str, Any]) -> Raw:
    """Call a method that begins an operation and wait for its end; its result, or Refused."""
    with invocation.connect() as client:
        client.introduce()
        view = _View(invocation)
        if invocation.json:
            return _waited(view, client, client.send(method, params | {"wait": True}))
        return _waited(view, client, client.send(method, params | {"wait": True, "progress": True}))


def wait_for(invocation: Invocation, id: str) -> Raw:
    """Wait for an operation that runs already."""
    with invocation.connect() as client:
        view = _View(invocation)
        view.operation = id
        return _waited(view, client, client.send("operation.wait", {"id": id}))


def _waited(view: "_View", client: Client, id: int) -> Raw:
    try:
        return client.wait(
            id,
            heard=view.hear,
            idle=(lambda: view.draw(client)) if view.redraws else None,
        )
    except KeyboardInterrupt:
        view.finish()
        view.tell_detached()
        raise Detached from None
    finally:
        view.finish()


class _View:
    """The steps of one operation as far as they are known."""

    def __init__(self, invocation: Invocation) -> None:
        self.operation = ""
        self.redraws = invocation.err.redraws and not invocation.json
        self._tells = not self.redraws and not invocation.json
        self._invocation = invocation
        self._err = invocation.err
        self._steps: dict[str, Step] = {}
        self._asked = -1
        self._ask_at = 0.0
        self._drawn = 0
        self._at = time.monotonic()

    def hear(self, message: Reply | Notification) -> None:
        """Take in a progress notification, or the whole plan that was asked for."""
        if isinstance(message, Reply):
            if message.id == self._asked and message.result:
                for step in decode(message.result, Operation).steps:
                    self._note_step(step)
            return
        if message.method != "progress":
            return
        try:
            progress = msgspec.json.decode(message.params, type=Progress)
        except (msgspec.DecodeError, RecursionError):
            return  # decoration only: the reply is what counts
        self.operation = progress.operation
        self._note_step(progress.step)

    def _note_step(self, step: Step) -> None:
        before = self._steps.get(step.id)
        self._steps[step.id] = step
        changed = before is None or before.state != step.state
        if self._tells and changed and step.state != "pending":
            elapsed = _elapsed(step) if step.finished_at else ""
            self._invocation.note(f"{title(step)}: {step.state}" + (f" ({elapsed})" if elapsed else ""))

    def draw(self, client: Client) -> None:
        """Draw the table over the one drawn before; ask for the whole plan now and then."""
        if self.operation and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _ASK_EVERY_S
            self._asked = client.send("operation.get", {"id": self.operation})
        lines = self._lines()
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._err.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._drawn = len(lines)

    def finish(self) -> None:
        """Take the table away; the result says what there is to say."""
        if self._drawn:
            self._err.write(f"\x1b[{self._drawn}A\r\x1b[J")
            self._drawn = 0

    def tell_detached(self) -> None:
        """Say what goes on and how to stop it."""
        id = text.clean(self.operation or _running_operation(self._invocation))
        if id:
            self._invocation.note(
                f"Detached: operation {id} goes on. Cancel it with `gpumodctl operation cancel {id}`, "
                f"wait for it with `gpumodctl operation wait {id}`."
            )
        else:
            self._invocation.note(
                "Detached: what was begun goes on. `gpumodctl operation list` shows it, "
                "`gpumodctl operation cancel ID` cancels it."
            )

    def _lines(self) -> list[str]:
        steps = list(self._steps.values())
        room = max(self._err.rows - 2, 3)
        hidden = 0
        while len(steps) > room:
            # What is done is the least interesting; what has not begun comes after it.
            gone = next((step for step in steps if step.state in ("done", "skipped")), steps[-1])
            steps.remove(gone)
            hidden += 1
        lines = [self._line(step) for step in steps]
        if hidden:
            lines.append(text.cut(f"  … and {hidden} more", self._err.columns - 1))
        if not lines:
            lines.append(f"{self._spinner()} waiting {duration(time.monotonic() - self._at)}")
        return lines

    def _line(self, step: Step) -> str:
        marks = MARKS if self._err.unicode else ASCII_MARKS
        mark = self._spinner() if step.state == "running" else marks.get(step.state, "?")
        room = self._err.columns - 14
        words = text.pad(text.cut(title(step), room), room)
        return self._err.paint(f"{mark} {words} {_elapsed(step):>10}", STYLES.get(step.state, ""))

    def _spinner(self) -> str:
        frames = _SPINNER if self._err.unicode else "|/-\\"
        return frames[int((time.monotonic() - self._at) * 10) % len(frames)]


def _elapsed(step: Step) -> str:
    """How long a step took or has been running."""
    began, ended = seconds_of(step.started_at), seconds_of(step.finished_at)
    if began is None or (ended is None and step.state != "running"):
        return ""
    return duration(max((time.time() if ended is None else ended) - began, 0.0))


def _running_operation(invocation: Invocation) -> str:
    """The id of whatever runs now, where nobody told us what we began; empty when that cannot be found out."""
    try:
        with invocation.connect(timeout_s=1.0) as client:
            status = msgspec.json.decode(client.call("status.get"), type=Status)
    except (Refused, Unreachable, msgspec.DecodeError, RecursionError):
        return ""
    return status.operation.id if status.operation else ""
