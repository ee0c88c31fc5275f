"""Just enough HTTP/1.1 for a model server that must listen a few milliseconds after its start.

One thread per connection, keep-alive, bodies by Content-Length, replies of known or unknown length. The
standard library's server costs 25 ms of imports, which a switch would be blamed for. Knows nothing of models.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import NamedTuple

MAX_HEAD = 64 << 10
MAX_BODY = 8 << 20


class Request(NamedTuple):
    """One request, its body read."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    """One reply; a body that is an iterator is sent as it comes and ends with the connection."""

    status: int
    body: bytes | Iterator[bytes] = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Reply]


def json_reply(status: int, value: object) -> Reply:
    return Reply(status, json.dumps(value).encode() + b"\n")


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # A restart must get its port back although old connections are in TIME_WAIT.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(256)
    return listener


def serve(listener: socket.socket, handler: Handler) -> None:
    """Accept for ever; returns when the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_converse, args=(connection, handler), daemon=True).start()


def _converse(connection: socket.socket, handler: Handler) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            pending = b""
            while True:
                received = _receive(connection, pending)
                if received is None:
                    return
                request, pending = received
                if not _send(connection, handler(request), keep=request.headers.get("connection") != "close"):
                    return
        except _Rejected as rejected:
            _send(connection, json_reply(rejected.status, {"error": rejected.message}), keep=False)
        except OSError:
            return  # the client went away


class _Rejected(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def _receive(connection: socket.socket, pending: bytes) -> tuple[Request, bytes] | None:
    """The next request and the bytes after it; None when the client closed."""
    while b"\r\n\r\n" not in pending:
        if len(pending) > MAX_HEAD:
            raise _Rejected(431, "the request's head is too large")
        chunk = connection.recv(65536)
        if not chunk:
            return None
        pending += chunk
    head, _, body = pending.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Rejected(400, "not an HTTP/1 request")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if words[2] == "HTTP/1.0":
        headers["connection"] = "close"
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
        raise _Rejected(411, "send the body with a Content-Length")
    if len(length) > 9 or int(length) > MAX_BODY:
        raise _Rejected(413, "the body is too large")
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(body) < int(length):
        chunk = connection.recv(65536)
        if not chunk:
            return None
        body += chunk
    path, _, query = words[1].partition("?")
    return Request(words[0], path, query, headers, body[: int(length)]), body[int(length) :]


def _send(connection: socket.socket, reply: Reply, *, keep: bool) -> bool:
    """Send it; says whether the connection can carry another."""
    known = isinstance(reply.body, bytes)
    keep = keep and known
    head = [
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
        f"Content-Type: {reply.content_type}",
    ]
    head += [f"{name}: {value}" for name, value in reply.headers]
    if isinstance(reply.body, bytes):
        head.append(f"Content-Length: {len(reply.body)}")
    head.append(f"Connection: {'keep-alive' if keep else 'close'}")
    start = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n"
    if isinstance(reply.body, bytes):
        connection.sendall(start + reply.body)
        return keep
    connection.sendall(start)
    for piece in reply.body:
        connection.sendall(piece)
    return False
