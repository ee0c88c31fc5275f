"""The fork server, seen from the daemon: one process that is up already, and forks a shim in a millisecond.

Owns that process. What a shim does is in `shim`, what is said to it in `run`.
"""

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import gpumodd

SCRIPT = Path(__file__).with_name("shim.py")
ROOT = Path(gpumodd.__file__).parents[1]


class ForkServer:
    """Up before the first service is, so that no start waits for it; if somebody ends it, there is a new one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    def start(self) -> None:
        """Let it come up; does not wait for that. Raises OSError."""
        self.close()
        self._requests, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SCRIPT), str(ROOT)],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,  # a Ctrl-C in the daemon's terminal is not meant for its services
            )

    def shim(self) -> socket.socket:
        """A new shim's socket. Raises OSError."""
        ours, its = socket.socketpair()
        with its:
            try:
                self._hand_over(its)
            except OSError:  # somebody has ended it
                self.start()
                self._hand_over(its)
        return ours

    def _hand_over(self, its: socket.socket) -> None:
        if self._requests is None:
            raise BrokenPipeError
        socket.send_fds(self._requests, [b"+"], [its.fileno()], socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """It ends; its shims do not."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            self._process.kill()  # it may have been stopped
            self._process.wait()
            self._process = None
