"""What an idle daemon costs: fifty services run on two devices and nobody asks for anything."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, Spread
from benchmarks.rpc import exchange
from benchmarks.stage import FIFTY, Stage
from tests.support.daemon import Daemon

TICKS = os.sysconf("SC_CLK_TCK")
MANY = 10_000


def measure(stage: Stage) -> Iterator[Figure]:
    """Watch the process for a while, in windows; at least one full round of health probes is in each."""
    window_s, windows = (16.0, 3) if not stage.quick else (0.5, 2)
    for backend in stage.backends:
        daemon = stage.fifty(backend)
        pid = daemon.rpc("daemon.hello")["pid"]
        ready = len(daemon.ready())
        assert ready == FIFTY, f"only {ready} of {FIFTY} services are ready"
        shares: list[float] = []
        wakes: list[float] = []
        recorded, began = recorded_mib(daemon), time.monotonic()
        for _ in range(windows):
            before, woken = cpu_s(pid), switches(pid)
            begun = time.monotonic()
            time.sleep(window_s)
            seconds = time.monotonic() - begun
            shares.append(100 * (cpu_s(pid) - before) / seconds)
            wakes.append((switches(pid) - woken) / seconds)
        grown = 3600 * (recorded_mib(daemon) - recorded) / (time.monotonic() - began)
        resident = resident_mib(pid)
        exchange(daemon.socket, stage.times(MANY, 100))
        watched = f"{FIFTY} ready services on two devices, {windows} windows of {window_s:g} s; {backend.words}"
        yield Figure(
            benchmark="idle",
            name=f"CPU, {backend.name}",
            spread=Spread.of(shares),
            unit="% of a core",
            goal=1.0,
            how=f"user and system time of the daemon's process: {watched}",
        )
        yield Figure(
            benchmark="idle",
            name=f"wake-ups, {backend.name}",
            spread=Spread.of(wakes),
            unit="/s",
            digits=0,
            how="voluntary context switches of the main thread, in the same windows",
        )
        yield Figure(
            benchmark="idle",
            name=f"event log, {backend.name}",
            spread=Spread.of([grown]),
            unit="MiB/h",
            goal=2.0,
            digits=2,
            how="growth of the folder `events` over these windows",
        )
        yield Figure(
            benchmark="idle",
            name=f"resident memory, {backend.name}",
            spread=Spread.of([resident]),
            unit="MiB",
            goal=70.0,
            digits=1,
            how="VmRSS after these windows",
        )
        yield Figure(
            benchmark="idle",
            name=f"resident memory after {stage.times(MANY, 100)} requests, {backend.name}",
            spread=Spread.of([resident_mib(pid)]),
            unit="MiB",
            goal=70.0,
            digits=1,
            how="VmRSS after that many `status.get` of one client",
        )


def recorded_mib(daemon: Daemon) -> float:
    """The size of all recordings so far."""
    return sum(path.stat().st_size for path in (daemon.state / "events").iterdir()) / (1 << 20)


def cpu_s(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def switches(pid: int) -> int:
    """Voluntary context switches of the main thread so far."""
    return status(pid, "voluntary_ctxt_switches")


def resident_mib(pid: int) -> float:
    return status(pid, "VmRSS") / 1024


def status(pid: int, name: str) -> int:
    """A number of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(f"/proc/{pid}/status has no {name}")
