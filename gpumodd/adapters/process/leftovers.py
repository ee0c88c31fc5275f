"""What a killed daemon, or a killed shim, has left running.

Owns the reading of the records that shims write. A process is known by its pid *and* its start time: the pid alone
may be somebody else's by now.
"""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpumodd.adapters import procfs

SUFFIX = ".run"
PATIENCE_S = 10.0


def end_all(folder: Path) -> list[str]:
    """End what every record in the folder names; returns the services it belonged to."""
    return [path.name.removesuffix(SUFFIX) for path in sorted(folder.glob(f"*{SUFFIX}")) if end(path)]


def end(record: Path) -> bool:
    """Kill what is left of one run and forget the record; False when nothing was left."""
    try:
        content = json.loads(record.read_text())
    except (OSError, ValueError):
        content = {}
    deadline = time.monotonic() + PATIENCE_S
    found = False
    while (pids := _alive(content)) and time.monotonic() < deadline:
        found = True
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    record.unlink(missing_ok=True)
    return found


def _alive(content: Any) -> list[int]:
    """Whom to kill: all below the shim first, so that it can see them all off, and itself only when it is alone."""
    if not isinstance(content, dict) or content.get("boot_id") != procfs.boot_id():
        return []
    shim = content.get("shim")
    known = {int(pid): start for pid, start in content.get("pids", {}).items()}
    living = [pid for pid, start in known.items() if procfs.start_time(pid) == start and procfs.alive(pid)]
    if shim in living:
        return procfs.descendants(shim) or [shim]
    others: list[int] = []
    for main in known.keys() - {shim}:
        # Another process with that pid means that nobody of the old session is left: the kernel gives a pid away
        # only when no session has it for its name.
        if procfs.start_time(main) in (None, known[main]):
            others += [pid for pid in procfs.session(main) if procfs.alive(pid)]
    return others
