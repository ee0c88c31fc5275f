"""`gpumodctl status` with fifty services, as installed, against importing what it needs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Figure, Spread
from benchmarks.stage import Stage
from tests.support.daemon import Daemon

CTL = Path(sys.executable).with_name("gpumodctl")
NEEDED = "import click, msgspec, socket"


def measure(stage: Stage) -> Iterator[Figure]:
    """One after the other, many times."""
    daemon = stage.fifty(stage.first)
    commands = {
        "status": [str(CTL), "status"],
        "json": [str(CTL), "status", "--json"],
        "baseline": [sys.executable, "-c", NEEDED],
        "bare": [sys.executable, "-c", "pass"],
    }
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():  # the first run of each fills the caches
        took(command, daemon)
    for _ in range(stage.times(60, 3)):
        for name, command in commands.items():
            samples[name].append(took(command, daemon))
    baseline = samples["baseline"]
    yield Figure(
        benchmark="startup",
        name="gpumodctl status / imports",
        spread=Spread.ratio(samples["status"], baseline),
        unit="×",
        goal=1.5,
        how=f"the installed script, from start to exit, against `python -c '{NEEDED}'`",
    )
    yield Figure(
        benchmark="startup",
        name="gpumodctl status --json / imports",
        spread=Spread.ratio(samples["json"], baseline),
        unit="×",
        goal=1.5,
        how="likewise, the result as a document",
    )
    for name, words in (("status", "gpumodctl status"), ("baseline", "the imports"), ("bare", "python -c pass")):
        yield Figure(
            benchmark="startup",
            name=words,
            spread=Spread.of(1000 * s for s in samples[name]),
            unit="ms",
            digits=1,
            how="wall time from start to exit, in the rounds above",
        )


def took(command: Sequence[str], daemon: Daemon) -> float:
    """Seconds from start to a good end."""
    begun = time.perf_counter()
    subprocess.run(command, env=environment(daemon), cwd=daemon.root, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def environment(daemon: Daemon) -> dict[str, str]:
    """A plain environment that leads to this daemon."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("GPUMODD_", "PYTHON"))}
    return clean | {"GPUMODD_SOCKET": str(daemon.socket)}


def imports(stage: Stage, most: int = 15) -> str:
    """What `gpumodctl status` imports, the dearest last, as `python -X importtime` tells it."""
    daemon = stage.fifty(stage.first)
    command = [sys.executable, "-X", "importtime", str(CTL), "status"]
    done = subprocess.run(command, env=environment(daemon), cwd=daemon.root, capture_output=True, text=True, check=True)
    found = []
    for line in done.stderr.splitlines():
        own, whole, name = line.removeprefix("import time:").split("|")
        if own.strip().isdigit():
            found.append((int(whole), int(own), name.strip()))
    lines = [f"{whole:>9} {own:>9}  {name}" for whole, own, name in sorted(found)[-most:]]
    return "\n".join([f"{'whole us':>9} {'own us':>9}  module ({len(found)} in all)", *lines])
