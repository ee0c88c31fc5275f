"""The leaf that adapters share: what /proc and the cgroup tree say about processes.

Owns reading, never acting: no signals, no waiting. A process may end between any two lines here, so "it is gone" is
an ordinary answer (None, or empty) and never an error.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from `state` (field 3) on; the name before them may hold spaces and parentheses."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def parent(pid: int) -> int | None:
    fields = stat(pid)
    return int(fields[1]) if fields else None


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which it started: with the pid, what identifies a process within one boot."""
    fields = stat(pid)
    return int(fields[19]) if fields else None


def alive(pid: int) -> bool:
    """Does it run? A zombie does not."""
    fields = stat(pid)
    return fields is not None and fields[0] not in "ZX"


def lists_children() -> bool:
    return (PROC / "thread-self/children").exists()


def children(pid: int) -> list[int]:
    """The children of all its threads."""
    found: list[int] = []
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            found.extend(map(int, (task / "children").read_text().split()))
    except OSError:
        pass
    return found


def descendants(pid: int) -> list[int]:
    """Everything below it that runs, nearest first; not the process itself."""
    found: list[int] = []
    seen = {pid}
    queue = [pid]
    while queue:
        for child in children(queue.pop(0)):
            if child not in seen:
                seen.add(child)
                queue.append(child)
                found.append(child)
    return [child for child in found if alive(child)]


def session(sid: int) -> list[int]:
    """The processes of one session."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))) and int(fields[3]) == sid:
            found.append(int(entry.name))
    return found


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def cgroup(pid: int) -> str | None:
    """Its place in the unified hierarchy, as a path from the root of it."""
    try:
        text = (PROC / str(pid) / "cgroup").read_text(errors="replace")
    except OSError:
        return None
    return next((line[3:] for line in text.splitlines() if line.startswith("0::")), None)


def cgroup_mount() -> Path | None:
    """Where the unified hierarchy is mounted: /sys/fs/cgroup, or below it on a machine that has version 1 too."""
    try:
        text = (PROC / "self/mountinfo").read_text(errors="replace")
    except OSError:
        return None
    for line in reversed(text.splitlines()):  # the newest mount hides the older ones
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 ") and before.split()[3] == "/":
            return Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4]))
    return None


def cgroup_members(folder: Path) -> tuple[int, ...]:
    """Every process in this cgroup and below it."""
    pids: set[int] = set()
    for procs in _folders(folder):
        try:
            pids.update(map(int, (procs / "cgroup.procs").read_text().split()))
        except OSError:
            continue
    return tuple(sorted(pids))


def cgroup_ids(folder: Path) -> set[int]:
    """The kernel's ids of this cgroup and of those below it: the inodes of their directories."""
    ids: set[int] = set()
    for path in _folders(folder):
        try:
            ids.add(path.stat().st_ino)
        except OSError:
            continue
    return ids


def _folders(top: Path) -> Iterable[Path]:
    yield top
    try:
        with os.scandir(top) as entries:  # it knows what is a directory without asking for each
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for path in below:
        yield from _folders(Path(path))


def socket_inodes(pid: int) -> set[int]:
    """The sockets it holds open; empty for a process that is not ours to look at."""
    inodes: set[int] = set()
    try:
        for fd in (PROC / str(pid) / "fd").iterdir():
            try:
                target = str(fd.readlink())
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    except OSError:
        pass
    return inodes
