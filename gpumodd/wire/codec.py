"""Bytes and lines: encoding replies, cutting a byte stream into lines, the size limit.

Knows nothing of methods; `envelope` reads requests, `session` reads replies.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from gpumodd.wire.errors import RpcError

LINE_LIMIT: Final = 1024 * 1024  # bytes of one line without its newline when reading, with it when writing
NULL: Final = Raw(b"null")

_encoder = msgspec.json.Encoder(decimal_format="number")


class Oversized:
    """Stands in for a line that was longer than the limit; its bytes are gone."""


OVERSIZED: Final = Oversized()


class Lines:
    """Cuts a byte stream into lines, keeping at most one unfinished line of `limit` bytes.

    A longer line is reported once, as soon as it is too long, and skipped up to its newline: the next line is
    read as if nothing had happened. `skipped` counts the bytes of the line being skipped.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self.limit = limit
        self.skipped = 0
        self._skipping = False
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | Oversized]:
        """The lines that `data` completes, without newlines; blank ones are left out."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            if self._skipping:
                self._skipping = False
                self.skipped = 0
                continue
            line = piece
            if self._rest:
                line = bytes(self._rest) + piece
                self._rest.clear()
            if len(line) > self.limit:
                yield OVERSIZED
            elif line and not line.isspace():
                yield line
        if self._skipping:
            self.skipped += len(rest)
        elif len(self._rest) + len(rest) > self.limit:
            self._skipping = True
            self.skipped = len(self._rest) + len(rest)
            self._rest.clear()
            yield OVERSIZED
        else:
            self._rest += rest

    def end(self) -> bytes:
        """What stood behind the last newline when the stream ended."""
        rest = bytes(self._rest)
        self._rest.clear()
        return b"" if rest.isspace() else rest


def encode_result(id: Raw, result: Any) -> bytes:
    """One reply line. A `Raw` result is taken as it is and must be compact JSON.

    A result that does not fit into a line becomes the error `too_large`.
    """
    body = bytes(result) if type(result) is Raw else _encoder.encode(result)
    line = b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (bytes(id), body)
    if len(line) > LINE_LIMIT:
        return encode_error(id, too_large("answer", len(line)))
    return line


def encode_error(id: Raw, error: RpcError) -> bytes:
    """One reply line; details that do not fit are left out."""
    line = b'{"jsonrpc":"2.0","id":%b,"error":%b}\n' % (bytes(id), _encoder.encode(error.as_object()))
    if len(line) <= LINE_LIMIT:
        return line
    shorter = RpcError(error.code, error.message[:1000], hint=error.hint[:1000])
    if len(id) > LINE_LIMIT // 2:
        id = NULL
    return encode_error(id, shorter)


def encode_notification(method: str, params: Any) -> bytes:
    """One notification line; raises RpcError(`too_large`) when it does not fit."""
    body = bytes(params) if type(params) is Raw else _encoder.encode(params)
    line = b'{"jsonrpc":"2.0","method":%b,"params":%b}\n' % (_encoder.encode(method), body)
    if len(line) > LINE_LIMIT:
        raise too_large("notification", len(line))
    return line


def encode_request(id: int, method: str, params: Any) -> bytes:
    """One request line; raises RpcError(`too_large`) when it does not fit."""
    line = b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}\n' % (
        id,
        _encoder.encode(method),
        _encoder.encode(params),
    )
    if len(line) > LINE_LIMIT:
        raise too_large("request", len(line))
    return line


def too_large(what: str, size: int | None = None) -> RpcError:
    """The error for a line beyond the limit."""
    actual = "" if size is None else f" of {size} bytes"
    return RpcError(
        "too_large",
        f"cannot carry this {what}{actual}: a line has at most {LINE_LIMIT} bytes",
        hint="ask for less at a time",
        details={"limit_bytes": LINE_LIMIT} | ({} if size is None else {"size_bytes": size}),
    )
