"""The stage: the daemons that benchmarks measure, real ones on each backend this machine can run.

Owns the temporary folder, the sandbox with its user manager and everything started in them; all of it ends with
the `with` block.
"""

import contextlib
import functools
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gpumodd.demo.table import Device, Hold, process_started
from tests.support.daemon import GPU, TOTAL_MIB, Daemon
from tests.support.sandbox import Sandbox, missing

SECOND_GPU = "GPU-22222222-0000-0000-0000-000000000002"
FIFTY = 50
SMALL_MIB = 400  # of each of the fifty
TINY_SERVER = Path(__file__).with_name("tiny_server.c")


@dataclass(frozen=True)
class Backend:
    """What runs the services and what counts the memory."""

    name: str
    words: str


SYSTEMD = Backend("systemd", "systemd and NVML")
PROCESS = Backend("process", "processes and simulated devices")


class Stage:
    """`with Stage(quick=…) as stage:` gives benchmarks their daemons."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self.backends: list[Backend] = []
        self.left_out = ""  # why there is no systemd here
        self.plots: dict[str, str] = {}  # SVG by file stem
        self._stack = contextlib.ExitStack()
        self._fifty: dict[str, Daemon] = {}
        self.fifty_took_s: dict[str, float] = {}  # by backend: the switch that started them

    def __enter__(self) -> Self:
        self.root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gpumodd-bench-")))
        self.left_out = missing() or ("" if shutil.which("gcc") else "the NVML stub needs gcc")
        self.backends = [PROCESS] if self.left_out else [SYSTEMD, PROCESS]
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def times(self, full: int, quick: int) -> int:
        """How often, in this run."""
        return quick if self.quick else full

    def plot(self, stem: str, svg: str) -> None:
        """Keep a picture for the report."""
        self.plots[stem] = svg

    @property
    def first(self) -> Backend:
        """The backend for what does not depend on it: systemd if there is one."""
        return self.backends[0]

    @contextlib.contextmanager
    def daemon(self, backend: Backend, name: str) -> Iterator[Daemon]:
        """A daemon with two devices, still to be configured and started; the end of the block ends it.

        Each has a user manager of its own: in a shared one it would end the others' services as orphans.
        """
        with contextlib.ExitStack() as stack:
            box = stack.enter_context(Sandbox()) if backend is SYSTEMD else None
            daemon = Daemon(self.root / f"{name}-{backend.name}", box=box, nvml=backend is SYSTEMD)
            daemon.table.create(Device(GPU, 0, TOTAL_MIB), Device(SECOND_GPU, 1, TOTAL_MIB))
            stack.push(daemon.__exit__)
            yield daemon

    def fifty(self, backend: Backend) -> Daemon:
        """A daemon with fifty services that run and hold memory on two devices; the same one for all who ask."""
        if backend.name not in self._fifty:
            daemon = self._stack.enter_context(self.daemon(backend, "fifty"))
            server = str(self.tiny_server())
            services = [f"service-{number:02}" for number in range(FIFTY)]
            for service, port in zip(services, free_ports(FIFTY), strict=True):
                daemon.command(service, server, str(port), port=port, vram_mib=SMALL_MIB, model=f"example/{service}")
            daemon.mode("all", *services)
            daemon.start()
            begun = time.monotonic()
            daemon.switch("all")
            self.fifty_took_s[backend.name] = time.monotonic() - begun
            self._hold(daemon)
            self._fifty[backend.name] = daemon
        return self._fifty[backend.name]

    @staticmethod
    def _hold(daemon: Daemon) -> None:
        """Let each running service hold on its device what it was given."""
        with daemon.table.edit() as table:
            for service in daemon.status()["services"]:
                started = process_started(service["pid"])
                assert started is not None, f"{service['id']} has ended"
                table.holds.append(Hold(service["devices"][0], service["pid"], started, SMALL_MIB))

    @functools.cache  # noqa: B019  # one stage a run
    def tiny_server(self) -> Path:
        """The compiled server of the fifty: as an interpreter each would take 10 MiB, and they must not be what is
        measured."""
        if shutil.which("gcc") is None:
            raise SystemExit("cannot build benchmarks/tiny_server.c: gcc is not installed")
        program = self.root / "tiny_server"
        subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, TINY_SERVER], check=True)
        return program


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now, and that the kernel gives to nobody who does not name one: they are
    used much later than they are chosen."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    for port in random.sample(range(10_000, max(20_000, first_given)), k=min(10 * count + 100, 10_000)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"cannot find {count} free ports")
