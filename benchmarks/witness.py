"""Witnesses: what happened and when, seen from outside the daemon. All times are CLOCK_BOOTTIME seconds."""

import json
import os
import select
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any, Self

from gpumodd.demo.model_server import boottime
from gpumodd.demo.table import DeviceTable
from tests.support.daemon import Daemon

PATIENCE_S = 90.0


class Subscriber:
    """A client that subscribes to everything and notes when each event reached it."""

    def __init__(self, daemon: Daemon) -> None:
        self.events: list[tuple[float, dict[str, Any]]] = []
        self._arrived = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(daemon.socket))
        self._socket.sendall(b'{"jsonrpc":"2.0","id":1,"method":"events.subscribe"}\n')
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the reply: from here on nothing is missed
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._lines.close()
        self._socket.close()

    def _listen(self) -> None:
        for line in self._lines:
            at = boottime()
            message = json.loads(line)
            with self._arrived:
                self.events.append((at, message["params"]))
                self._arrived.notify_all()

    def first(self, matches: Callable[[dict[str, Any]], bool], *, since: float) -> float:
        """When the first such event that came after `since` reached this client; waits for it."""
        deadline = time.monotonic() + PATIENCE_S
        with self._arrived:
            while True:
                for at, event in self.events:
                    if at >= since and matches(event):
                        return at
                if not self._arrived.wait(deadline - time.monotonic()):
                    raise TimeoutError("the event did not come")

    def phase(self, service: str, phase: str, *, since: float) -> float:
        """When the service was said to be in this phase."""
        return self.first(
            lambda e: e["topic"] == "service" and (e["data"]["service"], e["data"]["to"]) == (service, phase),
            since=since,
        )

    def step(self, verb: str, service: str, *, since: float) -> float:
        """When this step of an operation was said to be done."""

        def done(event: dict[str, Any]) -> bool:
            step = event["data"].get("step") if event["topic"] == "operation" else None
            return step is not None and (step["verb"], step["service"], step["state"]) == (verb, service, "done")

        return self.first(done, since=since)


class Death:
    """Notes when a process ends, whoever's child it is."""

    def __init__(self, pid: int) -> None:
        self._at = 0.0
        self._pidfd = os.pidfd_open(pid)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()
        self._at = boottime()

    def at(self) -> float:
        """When; waits for it."""
        self._thread.join(PATIENCE_S)
        assert self._at, "the process did not end"
        os.close(self._pidfd)
        return self._at


def able_since(port: int) -> float:
    """Since when a model server has been able to answer 200, by its own account."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/demo/timeline", timeout=10) as reply:
        timeline = json.load(reply)
    return max(float(timeline["ready"]), float(timeline["listening"]))


def memory_back(table: DeviceTable, pid: int, died: float) -> float:
    """When the memory of a process that ended was free again: at its death, or later where it lingers.

    The stamp of whoever looked first stays in the file until somebody writes; reading it raw changes nothing.
    """
    for line in table.path.read_text().splitlines():
        match line.split(" "):
            case ["hold", _, owner, _, _, _, until_ms] if int(owner) == pid and int(until_ms):
                return int(until_ms) / 1000
    return died
