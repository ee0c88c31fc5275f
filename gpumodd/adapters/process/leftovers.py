"""What a killed daemon, or a killed shim, has left running.

Owns the reading of the records that shims write. A process is known by its pid *and* its start time: the pid alone
may be somebody else's by now.
"""

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpumodd.adapters import procfs

SUFFIX = ".run"
PATIENCE_S = 10.0


def end_all(folder: Path) -> list[str]:
    """End what every record in the folder names; returns the services it belonged to."""
    return [path.name.removesuffix(SUFFIX) for path in sorted(folder.glob(f"*{SUFFIX}")) if end(path)]


def end(path: Path) -> bool:
    """Kill what is left of one run and forget the record; False when nothing was left."""
    record = read(path)
    deadline = time.monotonic() + PATIENCE_S
    found = False
    while record is not None and (pids := record.alive()) and time.monotonic() < deadline:
        found = True
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    path.unlink(missing_ok=True)
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """The shim and the main process, each with its start time."""

    shim: int
    started: dict[int, int]

    def alive(self) -> list[int]:
        """Whom to kill: all below the shim first, so that it can see them all off, and itself only when it is alone."""
        if self._is_the_same(self.shim):
            return procfs.descendants(self.shim) or [self.shim]
        found: list[int] = []
        for main in self.started.keys() - {self.shim}:
            # Another process with that pid means that nobody of the old session is left: the kernel gives a pid away
            # only when no session has it for its name.
            if procfs.start_time(main) in (None, self.started[main]):
                found += [pid for pid in procfs.session(main) if procfs.alive(pid)]
        return found

    def _is_the_same(self, pid: int) -> bool:
        return self.started.get(pid, 0) == procfs.start_time(pid) and procfs.alive(pid)


def read(path: Path) -> Record | None:
    """None when there is nothing to be learnt: another boot's, or damaged."""
    try:
        content = json.loads(path.read_text())
        if content["boot_id"] != procfs.boot_id():
            return None
        return Record(int(content["shim"]), {int(pid): int(start) for pid, start in content["pids"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
