"""One daemon per state directory: a flock on the file `lock`, which holds the owner's pid.

Owns that file only. The kernel drops the lock with its holder, so a crash leaves nothing to clean up and what an
old file says is never believed. The file itself stays: removing it would let two daemons lock two files.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from gpumodd.ports import PortError


class DaemonLock:
    """Held from `acquire` to `release`; programs the daemon starts do not inherit it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path) -> "DaemonLock":
        """Take the lock or raise PortError: `already_running`, or `state_unwritable` with the reason."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # O_NONBLOCK: were it a FIFO, opening it would wait for another program.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise PortError(
                "already_running",
                f"cannot start: gpumodd already runs with the state directory {path.parent} ({holder})",
                hint="`gpumodctl status` asks that one; another daemon needs its own GPUMODD_STATE_DIR",
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise _unwritable(path, error) from error
        return cls(descriptor)

    @staticmethod
    def holder(path: Path) -> str:
        """Who holds the lock ("pid 4711"), or an empty string; asks without taking it, not even for a moment."""
        try:
            return _in_kernel_table(path.stat().st_ino)
        except OSError:
            return ""

    def release(self) -> None:
        """Let the next daemon in; doing it twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __enter__(self) -> "DaemonLock":
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def _holder(descriptor: int) -> str:
    """Who holds it: by the kernel's table, which cannot be stale, else by what the holder wrote."""
    if pid := _in_kernel_table(os.fstat(descriptor).st_ino):
        return pid
    written = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return f"pid {written}" if written.isdecimal() else "pid unknown"


def _in_kernel_table(inode: int) -> str:
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 fe:00:131 0 EOF
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode) and words[4] != "0":
                return f"pid {words[4]}"
    return ""


def _unwritable(path: Path, error: OSError) -> PortError:
    reason = "it is a symbolic link" if error.errno == errno.ELOOP else os.strerror(error.errno or 0).lower()
    return PortError(
        "state_unwritable",
        f"cannot lock {path}: {reason}",
        hint="the state directory must be writable; GPUMODD_STATE_DIR names another one",
    )
