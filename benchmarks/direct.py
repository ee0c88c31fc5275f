"""The same model server without a daemon: what it takes by itself, and how soon a plain loop sees that it is ready."""

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from benchmarks.stage import free_ports
from gpumodd.demo.model_server import boottime
from gpumodd.demo.table import Device, DeviceTable
from tests.support.daemon import GPU, TOTAL_MIB, Daemon

REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PATIENCE_S = 60.0


class DirectServer:
    """A service's own command line, on a device and a port of its own."""

    def __init__(self, daemon: Daemon, vram_mib: int, arguments: Sequence[str]) -> None:
        table = DeviceTable(daemon.root / "direct.table")
        table.create(Device(GPU, 0, TOTAL_MIB))
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
