"""The same model servers without a daemon: what each takes, alone or all at once, and how soon a plain loop sees that
one is ready."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Self

from benchmarks.scenarios import Scenario, Service
from benchmarks.stage import free_ports
from benchmarks.witness import Death
from gpumodd.demo.model_server import boottime
from gpumodd.demo.table import Device, DeviceTable
from tests.support.daemon import GPU, TOTAL_MIB, Daemon

REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PATIENCE_S = 60.0


class DirectServer:
    """A service's own command line, on a device and a port of its own."""

    def __init__(
        self, daemon: Daemon, vram_mib: int, arguments: Sequence[str], *, table: DeviceTable | None = None
    ) -> None:
        table = table or empty_table(daemon)
        self.port = free_ports(1)[0]
        command = [daemon.python, "-m", "gpumodd.demo.model_server", "--table", str(table.path)]
        command += ["--port", str(self.port), "--vram-mib", str(vram_mib), *arguments]
        self.begun = boottime()
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": GPU},
            cwd=daemon.root,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def able_at(self) -> float:
        """When it became able to answer 200, by its own account; waits for it."""
        assert self.process.stdout is not None
        missing = {"ready", "listening"}
        for line in self.process.stdout:
            at, event, *_ = line.split()
            missing.discard(event)
            if not missing:
                return float(at)
        raise RuntimeError(f"it ended with {self.process.wait()} before it was ready")

    def answered_at(self, every_s: float) -> float:
        """When a loop that asks this often has its first 200."""
        deadline = boottime() + PATIENCE_S
        while boottime() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(REQUEST)
                if connection.recv(64).startswith(b"HTTP/1.1 200"):
                    return boottime()
            time.sleep(every_s)
        raise TimeoutError("it never answered 200")


def empty_table(daemon: Daemon) -> DeviceTable:
    """A device for servers that no daemon knows."""
    table = DeviceTable(daemon.root / "direct.table")
    table.create(Device(GPU, 0, TOTAL_MIB))
    return table


# -- whole scenarios ------------------------------------------------------------------------------------------


def together(daemon: Daemon, scenario: Scenario) -> dict[str, float]:
    """Do what the scenario asks for with everything overlapping that may, by one thread per service and nothing but
    signals and `exec`. Seconds by service: from SIGTERM to gone, or from `exec` to able, by its own account."""
    table = empty_table(daemon)
    took: dict[str, float] = {}
    over = {name: threading.Event() for name in scenario.services}
    gates = scenario.gates(scenario.nominal)

    def leaves(name: str, server: DirectServer) -> None:
        wait_for(over, scenario.before_stop(name))
        took[name] = ends(server)
        table.read()  # memory lingers from the moment somebody looks, and is counted in milliseconds
        time.sleep(scenario.leaving[name].linger_s + 0.002)
        over[name].set()

    def comes(name: str, service: Service) -> None:
        wait_for(over, [*gates[name], *service.needs])
        server = running.enter_context(DirectServer(daemon, service.vram_mib, service.server, table=table))
        took[name] = server.able_at() - server.begun
        over[name].set()

    with ExitStack() as running:
        servers = {
            name: running.enter_context(DirectServer(daemon, service.vram_mib, service.server, table=table))
            for name, service in scenario.leaving.items()
        }
        for server in servers.values():
            server.able_at()
        tasks: list[Callable[[], None]] = [lambda n=n, s=s: leaves(n, s) for n, s in servers.items()]  # type: ignore[misc]
        tasks += [lambda n=n, s=s: comes(n, s) for n, s in scenario.coming.items()]  # type: ignore[misc]
        threads = [threading.Thread(target=task, daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert took.keys() == scenario.services.keys(), f"not all of {scenario.name} went well: {took}"
    return took


def one_by_one(daemon: Daemon, scenario: Scenario) -> float:
    """Seconds in all when each service is waited for, its memory included, before the next is touched."""
    seconds = 0.0
    for service in scenario.leaving.values():
        with DirectServer(daemon, service.vram_mib, service.server) as server:
            server.able_at()
            seconds += ends(server) + service.linger_s
    for service in scenario.coming.values():
        with DirectServer(daemon, service.vram_mib, service.server) as server:
            seconds += server.able_at() - server.begun
    return seconds


def ends(server: DirectServer) -> float:
    """Seconds from SIGTERM until it is gone."""
    death = Death(server.process.pid)
    begun = boottime()
    server.process.send_signal(signal.SIGTERM)
    return death.at() - begun


def wait_for(over: dict[str, threading.Event], names: Sequence[str]) -> None:
    for name in names:
        assert over[name].wait(PATIENCE_S), f"{name} never got there"
