"""The blocking client: one connection, requests out, replies and notifications in, every wait bounded.

The protocol is `gpumodd.wire.session`; here are only the socket, the deadlines and the three ways it can fail.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from gpumodd.wire.errors import ErrorObject
from gpumodd.wire.paths import PathError, socket_path
from gpumodd.wire.session import ClientSession, Notification, ProtocolFault, Reply

T = TypeVar("T")

CONNECT_S = 5.0
ANSWER_S = 30.0


class Unreachable(Exception):
    """There is no daemon to talk to, or it stopped talking."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Refused(Exception):
    """The daemon answered with an error; `raw` is its error object as received."""

    def __init__(self, error: ErrorObject, raw: Raw) -> None:
        super().__init__(error.message)
        self.error = error
        self.raw = raw


def answer_timeout_s() -> float:
    """How long a query may take; $GPUMODCTL_TIMEOUT_S overrides it."""
    try:
        chosen = float(os.environ.get("GPUMODCTL_TIMEOUT_S", ""))
    except ValueError:
        return ANSWER_S
    return chosen if 0 < chosen < 86400 else ANSWER_S


class Client:
    """One connection to the daemon. Use as a context manager."""

    def __init__(self, path: str | None = None, *, timeout_s: float | None = None) -> None:
        self.timeout_s = answer_timeout_s() if timeout_s is None else timeout_s
        try:
            self.path = path or socket_path()
        except PathError as error:
            raise Unreachable(error.message, error.hint) from None
        self._session = ClientSession()
        self._arrived: list[Reply | Notification] = []
        self._socket = self._connect()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def call(self, method: str, params: Any = None) -> Raw:
        """The result of a query, as received; raises Refused or Unreachable."""
        return self.wait(self.send(method, params), within_s=self.timeout_s)

    def introduce(self) -> None:
        """Say who asks for what follows; that wants no answer."""
        params = {"client": "gpumodctl", "actor": f"gpumodctl (pid {os.getpid()})"}
        self._say(self._session.notification("daemon.hello", params))

    def send(self, method: str, params: Any = None) -> int:
        """Send a request; its id."""
        id, line = self._session.request(method, params)
        self._say(line)
        return id

    def _say(self, line: bytes) -> None:
        self._socket.settimeout(self.timeout_s)
        # When the daemon has hung up, what it said before is still to be read.
        with contextlib.suppress(OSError):
            self._socket.sendall(line)

    def wait(
        self,
        id: int,
        *,
        within_s: float | None = None,
        heard: Callable[[Reply | Notification], None] | None = None,
        idle: Callable[[], None] | None = None,
        idle_s: float = 0.1,
    ) -> Raw:
        """The result of request `id`. Whatever else arrives goes to `heard`; `idle` is called now and then."""
        deadline = None if within_s is None else time.monotonic() + within_s
        while True:
            pause = idle_s if idle else None
            if deadline is not None:
                left = max(deadline - time.monotonic(), 0.0)
                pause = left if pause is None else min(pause, left)
            message = self.receive(pause)
            if isinstance(message, Reply):
                error = message.error_object()
                # An error without an id is about the connection, so about us.
                if error is not None and message.id in (id, None):
                    raise Refused(error, message.error)
                if message.id == id:
                    return message.result
            if message is not None and heard:
                heard(message)
            if deadline is not None and time.monotonic() >= deadline:
                raise Unreachable(f"gpumodd at {self.path} has not answered for {within_s:g} s", _LOOK_AT_IT)
            if idle:
                idle()

    def receive(self, within_s: float | None) -> Reply | Notification | None:
        """The next message; None when none came in time."""
        deadline = None if within_s is None else time.monotonic() + within_s
        while not self._arrived:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 18)
            except TimeoutError:
                return None
            except OSError as error:
                raise self._hung_up(error) from None
            if not data:
                raise self._hung_up(None)
            try:
                self._arrived.extend(self._session.feed(data))
            except ProtocolFault as fault:
                raise Unreachable(f"what listens at {self.path} is not gpumodd: {fault}", _OTHER_SOCKET) from None
        return self._arrived.pop(0)

    def _hung_up(self, error: OSError | None) -> Unreachable:
        why = f" ({os.strerror(error.errno).lower()})" if error is not None and error.errno else ""
        return Unreachable(f"gpumodd at {self.path} closed the connection{why}", _LOOK_AT_IT)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(min(CONNECT_S, self.timeout_s))
        try:
            connection.connect(self.path)
        except (OSError, ValueError) as error:
            connection.close()
            raise Unreachable(f"cannot reach gpumodd at {self.path}: {_plainly(error)}", _START_IT) from None
        return connection


_START_IT = "start it with `systemctl --user start gpumodd` or `gpumodd run`"
_LOOK_AT_IT = "see what it is doing with `systemctl --user status gpumodd`"
_OTHER_SOCKET = "GPUMODD_SOCKET or --socket chooses another socket"


def _plainly(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such socket"
        case ConnectionRefusedError():
            return "nobody listens there"
        case TimeoutError() | BlockingIOError():
            return "it does not take connections"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case _:
            return str(error).lower()


def decode(raw: Raw, type: type[T]) -> T:
    """A result in its declared shape."""
    try:
        return msgspec.json.decode(raw, type=type)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreachable(
            f"cannot understand the daemon's answer: {error}",
            "gpumodctl and gpumodd should have the same version; see `gpumodctl version`",
        ) from None
