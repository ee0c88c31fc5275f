"""Reading /proc and the cgroup tree, with real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpumodd.adapters import procfs

TREE = """
import os, sys, threading, time
def family():
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
        time.sleep(1000)
thread = threading.Thread(target=family)  # its child is the thread's, not the main thread's
thread.start()
time.sleep(1000)
"""


def poll(check, what: str):
    deadline = time.monotonic() + 10
    while not (found := check()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return found


def test_descendants_are_found_through_threads_and_sessions() -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-W", "ignore", "-c", TREE]) as process:
        try:
            below = poll(lambda: len(found := procfs.descendants(process.pid)) == 2 and found, "no family")
            assert procfs.parent(below[0]) == process.pid
            assert procfs.parent(below[1]) == below[0]
            assert process.pid not in below
        finally:
            below = procfs.descendants(process.pid)
            process.kill()
            for pid in below:
                os.kill(pid, 9)
    poll(lambda: not any(map(procfs.alive, below)), "a process is left")


def test_a_name_with_spaces_and_parentheses(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"]) as process:
        poll(lambda: b"a) R (b" in Path(f"/proc/{process.pid}/comm").read_bytes(), "no exec")
        assert procfs.parent(process.pid) == os.getpid()
        assert procfs.alive(process.pid)
        process.kill()


def test_a_zombie_does_not_run() -> None:
    process = subprocess.Popen(["true"])
    poll(lambda: procfs.stat(process.pid)[0] == "Z", "no zombie")
    assert not procfs.alive(process.pid)
    assert process.pid not in procfs.descendants(os.getpid())
    process.wait()
    assert not procfs.alive(process.pid)


def test_a_start_time_tells_processes_apart() -> None:
    assert procfs.start_time(os.getpid()) == procfs.start_time(os.getpid())
    with subprocess.Popen(["sleep", "1000"]) as process:
        assert procfs.start_time(process.pid) >= procfs.start_time(os.getpid())
        assert process.pid in procfs.session(os.getsid(0))
        process.kill()


@pytest.mark.parametrize("pid", [0, -1, 1 << 22])
def test_nobody_has_nothing(pid: int) -> None:
    assert procfs.stat(pid) is None
    assert procfs.parent(pid) is None
    assert procfs.start_time(pid) is None
    assert procfs.cgroup(pid) is None
    assert procfs.children(pid) == []
    assert procfs.descendants(pid) == []
    assert procfs.socket_inodes(pid) == set()
    assert not procfs.alive(pid)


def test_members_of_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    assert procfs.cgroup_members(tmp_path / "gone") == ()
    assert procfs.cgroup_ids(tmp_path / "gone") == set()
