"""What the service manager is told about the daemon: the port `Notifier`, by systemd's notification protocol.

Owns the variables NOTIFY_SOCKET and WATCHDOG_*. A manager that does not listen is no reason to stop, so nothing
here raises or waits.
"""

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

STATUS_LIMIT = 1000
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class SystemdNotifier:
    """Sends datagrams to the manager that started the daemon; does nothing when none did."""

    def __init__(self, address: str = "", *, watchdog_s: float | None = None) -> None:
        # A leading @ means the abstract namespace; other families (vsock) are for virtual machines.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._wanted = address.startswith(("@", "/"))
        self.watchdog_s = watchdog_s if self._wanted else None  # the manager's patience: `watchdog` is due more often

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> "SystemdNotifier":
        """Take the variables out of the environment: a child that inherited them would speak for the daemon."""
        address, microseconds, pid = (environ.pop(name, "") for name in VARIABLES)
        meant = pid in ("", str(os.getpid()))
        watchdog_s = int(microseconds) / 1e6 if meant and microseconds.isdecimal() and int(microseconds) else None
        return cls(address, watchdog_s=watchdog_s)

    def ready(self) -> None:
        """The daemon serves."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        line = " ".join(text.split())[:STATUS_LIMIT]  # a line break would begin another assignment
        self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """The daemon ends by itself."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The daemon is alive; without this for `watchdog_s` the manager ends it."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._wanted:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto(message.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)
