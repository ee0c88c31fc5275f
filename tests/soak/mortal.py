"""The daemon that dies on time: `python -m tests.soak.mortal FOLDER` is `gpumodd run` with SIGKILL at one moment.

A moment is where a crash hurts: before and after each write of the state file, before and after each command to
the service manager, and between such a command and the news of its end. When FOLDER/die begins with a number, that many
moments from then on the process kills itself. What it passed is in FOLDER/moments, one name a line.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gpumodd.__main__ import main
from gpumodd.adapters.sqlite import SqliteStore
from gpumodd.adapters.systemd import units as systemd
from gpumodd.adapters.systemd.bus import Connection
from gpumodd.core import deadlines, ledger, planner, world

FOLDER = Path()
passed: Counter[str] = Counter()  # moments since each order


def moment(name: str) -> None:
    """Count it, and die if this is the one."""
    try:
        order = (FOLDER / "die").read_text()
    except OSError:
        return  # there is no order
    passed[order] += 1
    with (FOLDER / "moments").open("a") as file:
        file.write(f"{passed[order]} {name}\n")
    if passed[order] >= int(order.split()[0]):
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: type, method: str, name: Callable[..., str]) -> None:
    """Put a moment before and after this method."""
    original: Callable[..., Awaitable[Any]] = getattr(owner, method)

    async def watched(self: Any, *args: Any, **kw: Any) -> Any:
        moment(f"before {name(*args)}")
        result = await original(self, *args, **kw)
        moment(f"after {name(*args)}")
        return result

    setattr(owner, method, watched)


def calls(what: str, *_: object) -> str:
    return f"the call: {what}"


# -- safeguards that can be taken out, to see that somebody notices -------------------------------------------


def starts_wait_for_no_release() -> None:
    gates = planner.gates_of

    def none(*args: Any) -> Any:
        drawn, reasons = gates(*args)
        return dict.fromkeys(drawn, frozenset()), reasons

    planner.gates_of = none


def memory_is_back_when_the_process_is_gone() -> None:
    ledger.ReleaseWindow.lingering = lambda self, _: dict.fromkeys(self.leaving, 0)  # type: ignore[method-assign]
    world.foreign_mib = lambda *_: 0


def nothing_is_written_down() -> None:
    async def save(*args: object) -> None:
        """As if it had been."""

    SqliteStore.save = save  # type: ignore[method-assign,assignment]


MUTANTS = {m.__name__: m for m in (starts_wait_for_no_release, memory_is_back_when_the_process_is_gone)}
MUTANTS[nothing_is_written_down.__name__] = nothing_is_written_down


if __name__ == "__main__":
    FOLDER = Path(sys.argv.pop(1))
    around(SqliteStore, "save", lambda *_: "a save")
    around(systemd.SystemdUnits, "start", lambda service, *_: f"the start of {service}")
    around(systemd.SystemdUnits, "stop", lambda service: f"the stop of {service}")
    call = Connection.call

    async def watched_call(self: Connection, what: str, *args: Any) -> Any:
        """Between a command and the news of its end."""
        result = await call(self, what, *args)
        if what.startswith(("start ", "stop ")):
            moment(f"accepted: {what}")
        return result

    Connection.call = watched_call  # type: ignore[method-assign]
    if (FOLDER / "impatient").exists():
        deadlines.KILL_GRACE_S = deadlines.SURVIVOR_S = 1.0
    if (FOLDER / "mutant").exists():
        MUTANTS[(FOLDER / "mutant").read_text()]()
    sys.argv[1:] = ["run"]
    sys.exit(main())
