"""The lock against other processes: held, killed, inherited, stale."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from gpumodd.adapters.lock import DaemonLock
from gpumodd.ports import PortError

HOLDER = """
import subprocess, sys
from pathlib import Path
from gpumodd.adapters.lock import DaemonLock
lock = DaemonLock.acquire(Path(sys.argv[1]))
if len(sys.argv) > 2:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], close_fds=False)
    print(child.pid, flush=True)
else:
    print(flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(path, *more):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process, process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "lock"


def refused(path):
    with pytest.raises(PortError) as caught:
        DaemonLock.acquire(path)
    assert caught.value.message.startswith("cannot ")
    assert str(path.parent) in caught.value.message
    assert caught.value.hint
    return caught.value


def test_it_is_private_and_holds_the_pid(path):
    with DaemonLock.acquire(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.read_text() == ""


def test_a_second_daemon_learns_the_first_one_s_pid(path):
    with holder(path) as (process, _):
        error = refused(path)
        assert error.code == "already_running"
        assert f"pid {process.pid})" in error.message
        assert path.read_text() == f"{process.pid}\n"  # the loser wrote nothing
    with DaemonLock.acquire(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_one_process_cannot_hold_it_twice(path):
    with DaemonLock.acquire(path):
        assert f"pid {os.getpid()})" in refused(path).message


@pytest.mark.parametrize("content", [b"", b"1\n", b"4194304\n", b"\xff\xfe" * 5000, b"999999999999\n" * 3])
def test_what_an_old_file_says_is_not_believed(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with DaemonLock.acquire(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_holder_is_named_although_the_file_lies(path):
    with holder(path) as (process, _):
        path.write_text("1\n")
        assert f"pid {process.pid})" in refused(path).message


def test_a_killed_holder_leaves_nothing_to_clean_up(path):
    with holder(path) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.read_text() == f"{process.pid}\n"
        DaemonLock.acquire(path).release()


def test_a_child_does_not_keep_it(path):
    """A service started by the daemon outlives it; the next daemon must get the lock."""
    with holder(path, "child") as (process, child):
        refused(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(int(child), 0)  # still there, with every descriptor that exec let through
        DaemonLock.acquire(path).release()
        process.stdin.close()  # ends the child


def test_release_twice(path):
    lock = DaemonLock.acquire(path)
    lock.release()
    with DaemonLock.acquire(path):
        lock.release()
        assert path.read_text() == f"{os.getpid()}\n"
        refused(path)


def test_a_link_is_not_followed(path, tmp_path):
    target = tmp_path / "precious"
    target.write_text("keep")
    path.parent.mkdir()
    path.symlink_to(target)
    error = refused(path)
    assert error.code == "state_unwritable"
    assert "symbolic link" in error.message
    assert target.read_text() == "keep"


def test_what_cannot_be_locked(path, tmp_path):
    path.mkdir(parents=True)
    assert refused(path).code == "state_unwritable"
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "lock").code == "state_unwritable"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert refused(fifo).code == "state_unwritable"


def test_who_holds_it_is_told_without_taking_it(path):
    assert DaemonLock.holder(path) == ""
    assert not path.parent.exists()
    with holder(path) as (process, _):
        assert DaemonLock.holder(path) == f"pid {process.pid}"
        process.stdin.close()
        process.wait(10)
    assert DaemonLock.holder(path) == ""
