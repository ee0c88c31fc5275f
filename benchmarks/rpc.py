"""Status calls over the socket, against a bare asyncio server that sends the same bytes.

The client is the same tight loop for both, so what differs is the daemon's own share.
"""

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Spread
from benchmarks.stage import FIFTY, Stage
from tests.support.daemon import until

REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"status.get"}\n'
CLIENTS = 8


def measure(stage: Stage) -> Iterator[Figure]:
    """Rounds of calls, the daemon and the baseline in turn."""
    daemon = stage.fifty(stage.first)
    calls = stage.times(2000, 50)
    with echo(stage.root, reply := ask(daemon.socket)) as baseline:
        places = {"daemon": daemon.socket, "echo": baseline.socket}
        pids = {"daemon": daemon.rpc("daemon.hello")["pid"], "echo": baseline.pid}
        latency: dict[str, list[float]] = {name: [] for name in places}
        rate: dict[str, list[float]] = {name: [] for name in places}
        crowd: dict[str, list[float]] = {name: [] for name in places}
        for _ in range(stage.times(15, 2)):
            for name, path in places.items():
                took = exchange(path, calls)
                latency[name].append(sorted(took)[len(took) // 2] * 1000)
                with one_core(pids[name]):
                    took = exchange(path, calls)
                rate[name].append(len(took) / sum(took))
        for _ in range(stage.times(5, 1)):
            for name, path in places.items():
                crowd[name].append(together(path, calls // 2))
    size = f"{len(reply) / 1024:.0f} KiB for {FIFTY} services"
    yield Figure(
        benchmark="rpc",
        name="status.get, p50",
        spread=Spread.of(latency["daemon"]),
        unit="ms",
        goal=0.2,
        digits=3,
        how=f"one client, request to the last byte of the reply ({size}), the median of each round of {calls} calls",
    )
    yield Figure(
        benchmark="rpc",
        name="the same bytes from a bare server, p50",
        spread=Spread.of(latency["echo"]),
        unit="ms",
        digits=3,
        how="the same client on an asyncio.Protocol that answers every line with these bytes",
    )
    yield Figure(
        benchmark="rpc",
        name="status.get rate / bare server",
        spread=Spread.ratio([100 * r for r in rate["daemon"]], rate["echo"]),
        unit="%",
        goal=40,
        at_least=True,
        digits=0,
        how="calls per second of one client on the server's core: waking another core costs more than either server",
    )
    yield Figure(
        benchmark="rpc",
        name=f"status.get rate / bare server, {CLIENTS} clients",
        spread=Spread.ratio([100 * r for r in crowd["daemon"]], crowd["echo"]),
        unit="%",
        digits=0,
        how="likewise, all clients together, each a process",
    )
    yield Figure(
        benchmark="rpc",
        name=f"status.get rate, {CLIENTS} clients",
        spread=Spread.of(crowd["daemon"]),
        unit="calls/s",
        digits=0,
        how="the same",
    )


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(path))
    return sock


def ask(path: Path) -> bytes:
    """One reply."""
    with connected(path) as sock:
        sock.sendall(REQUEST)
        return sock.makefile("rb").readline()


def exchange(path: Path, calls: int) -> list[float]:
    """Seconds of each call, one after the other on one connection."""
    now = time.perf_counter
    took: list[float] = []
    with connected(path) as sock:
        buffer = memoryview(bytearray(1 << 20))
        for _ in range(calls):
            begun = now()
            sock.sendall(REQUEST)
            size = sock.recv_into(buffer)
            while buffer[size - 1] != 10:
                size += sock.recv_into(buffer[size:])
            took.append(now() - begun)
    return took


def together(path: Path, calls: int) -> float:
    """Calls per second of several clients at once."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(CLIENTS + 1)
    clients = [fork.Process(target=_client, args=(path, calls, barrier), daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    barrier.wait(30)
    begun = time.perf_counter()
    for client in clients:
        client.join()
    seconds = time.perf_counter() - begun
    assert not any(client.exitcode for client in clients), "a client failed"
    return CLIENTS * calls / seconds


def _client(path: Path, calls: int, barrier: Any) -> None:
    barrier.wait(30)
    exchange(path, calls)


@contextlib.contextmanager
def one_core(pid: int) -> Iterator[None]:
    """Keep this process and that one's main thread on the same core."""
    core = {min(os.sched_getaffinity(0))}
    before = {each: os.sched_getaffinity(each) for each in (0, pid)}
    try:
        for each in before:
            os.sched_setaffinity(each, core)
        yield
    finally:
        for each, cores in before.items():
            os.sched_setaffinity(each, cores)


@dataclass(frozen=True)
class Baseline:
    """The bare server."""

    socket: Path
    pid: int


@contextlib.contextmanager
def echo(root: Path, reply: bytes) -> Iterator[Baseline]:
    """The baseline, in a process of its own."""
    path, content = root / "echo", root / "reply"
    content.write_bytes(reply)
    command = [sys.executable, "-m", "benchmarks.echo_server", str(path), str(content)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as server:
        until(path.exists, why="the baseline listens")
        assert ask(path) == reply
        yield Baseline(path, server.pid)
    assert server.returncode == 0  # it ended with its standard input, which the block has closed
