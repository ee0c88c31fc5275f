"""The client's half of the conversation, without I/O: requests out as bytes, bytes in as replies.

Blocking, threaded and async clients drive the same object: they send what `request` returns, pass what they
receive to `feed` and look at what comes out.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gpumodd.wire.codec import Lines, Oversized, encode_notification, encode_request
from gpumodd.wire.errors import ErrorObject


class Reply(Struct):
    """The answer to request `id`; exactly one of `result` and `error` is set, both as received."""

    id: int | None
    result: Raw = Raw()
    error: Raw = Raw()

    def error_object(self) -> ErrorObject | None:
        """The error, read leniently; None for a result."""
        if not self.error:
            return None
        try:
            return msgspec.json.decode(self.error, type=ErrorObject)
        except msgspec.DecodeError:
            return ErrorObject(code=0, message=bytes(self.error).decode(errors="replace"))


class Notification(Struct):
    """Something the server said unasked."""

    method: str
    params: Raw


class ProtocolFault(Exception):
    """The peer does not speak this protocol; the connection is of no further use."""


class _Incoming(Struct):
    jsonrpc: str
    id: int | str | float | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw = Raw()
    result: Raw = Raw()
    error: Raw = Raw()


_incoming = msgspec.json.Decoder(_Incoming)


class ClientSession:
    """Numbers requests and reads what comes back."""

    def __init__(self) -> None:
        self._next = 0
        self._lines = Lines()

    def request(self, method: str, params: Any = None) -> tuple[int, bytes]:
        """A fresh id and the line to send."""
        self._next += 1
        return self._next, encode_request(self._next, method, {} if params is None else params)

    def notification(self, method: str, params: Any) -> bytes:
        """The line to send of what wants no answer."""
        return encode_notification(method, params)

    def feed(self, data: bytes) -> Iterator[Reply | Notification]:
        """What these bytes complete; raises ProtocolFault when they are no JSON-RPC."""
        for line in self._lines.feed(data):
            if isinstance(line, Oversized):
                raise ProtocolFault(f"a line is longer than {self._lines.limit} bytes")
            yield _read(line)


def _read(line: bytes) -> Reply | Notification:
    try:
        if not line.isascii():
            line.decode()
        message = _incoming.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolFault(f"a line is no JSON-RPC message ({error})") from None
    if isinstance(message.method, str):
        return Notification(message.method, message.params)
    if message.id is UNSET or bool(message.result) == bool(message.error):
        raise ProtocolFault("a line is neither a reply nor a notification")
    return Reply(message.id if isinstance(message.id, int) else None, message.result, message.error)
