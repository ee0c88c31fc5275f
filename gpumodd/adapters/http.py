"""Health probes: one GET over a fresh connection, the port `Prober`.

Owns what is believed of a server that nobody trusts: how long it may take, how much it may send, and what its
answer means. Does not know whose listener it met; the runtime asks the units backend about that.
"""

import asyncio
import errno
import os
import socket
import string
from typing import Any
from urllib.parse import quote

import anyio
import h11

from gpumodd.adapters.listeners import loopbacks
from gpumodd.core.facts import Answer, ProbeFact
from gpumodd.drivers.api import ProbeSpec
from gpumodd.ports import Clock

HEAD_LIMIT = 16 * 1024
BODY_LIMIT = 4 * 1024
BODY_WAIT_S = 0.25  # the head decides; the body is read for the detail, and to let the server finish
CHUNK = 16 * 1024
DETAIL_LIMIT = 200

LOADING = 503
STATUS_LINE = b"HTTP/"
TLS_RECORDS = (b"\x15\x03", b"\x16\x03")  # an alert or a handshake, by its type and major version


class HttpProber:
    """Probes endpoints of this machine; holds no connection between two probes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def probe(self, service: str, spec: ProbeSpec) -> ProbeFact:
        """One GET without keep-alive, redirects or retries; bounded in time and bytes; never raises."""
        exchange = _Exchange(spec, self._clock)
        try:
            with anyio.fail_after(spec.timeout_s):
                await exchange.run()
        except TimeoutError:
            if not exchange.status:
                return self._fact(service, Answer.TIMEOUT, f"no answer within {spec.timeout_s:g} s")
        except _NoAnswerError as problem:
            return self._fact(service, problem.answer, problem.detail)
        answer = _judge(exchange.status, spec.loading_statuses)
        return ProbeFact(
            service=service,
            answer=answer,
            at=exchange.at,
            status=exchange.status,
            detail="" if answer is Answer.HEALTHY else exchange.describe(),
        )

    def _fact(self, service: str, answer: Answer, detail: str) -> ProbeFact:
        return ProbeFact(service=service, answer=answer, at=self._clock.boottime(), detail=_plain(detail))


def _judge(status: int, loading_statuses: tuple[int, ...]) -> Answer:
    if status == LOADING or status in loading_statuses:
        return Answer.LOADING
    return Answer.HEALTHY if 200 <= status < 300 else Answer.UNHEALTHY


class _NoAnswerError(Exception):
    """There was no response head; `answer` says what there was instead."""

    def __init__(self, answer: Answer, detail: str) -> None:
        super().__init__(detail)
        self.answer = answer
        self.detail = detail


class _Exchange:
    """One request and its response on one connection, as far as either came."""

    def __init__(self, spec: ProbeSpec, clock: Clock) -> None:
        self._spec = spec
        self._clock = clock
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._received = 0
        self._start = b""
        self.status = 0  # 0 until the head is complete
        self.at = 0.0  # when that was
        self._reason = b""
        self._location = b""
        self._body = b""

    async def run(self) -> None:
        connection = await _connect(self._spec.host, self._spec.port)
        try:
            await asyncio.get_running_loop().sock_sendall(connection, self._request())
            await self._read_head(connection)
            with anyio.move_on_after(BODY_WAIT_S):
                await self._read_body(connection)
        except OSError as error:
            if not self.status:
                raise _NoAnswerError(Answer.INVALID, f"the connection broke: {_reason(error)}") from error
        finally:
            connection.close()

    def describe(self) -> str:
        """The status and what the server says about it, fit for one line of a terminal."""
        text = f"HTTP {self.status} {_plain(self._reason.decode('latin-1'))}".rstrip()
        if 300 <= self.status < 400 and self._location:
            return _plain(f"{text}, a redirect to {self._location.decode('latin-1')}")
        body = _plain(self._body.decode("utf-8", "replace"))
        return _plain(f"{text}: {body}") if body else text

    def _request(self) -> bytes:
        host = f"[{self._spec.host}]" if ":" in self._spec.host else self._spec.host
        path = quote(self._spec.path, safe=string.punctuation)
        headers = [
            ("Host", f"{host}:{self._spec.port}"),
            ("User-Agent", "gpumodd"),
            ("Accept", "*/*"),
            ("Connection", "close"),
        ]
        request = h11.Request(method="GET", target=path if path.startswith("/") else f"/{path}", headers=headers)
        return (self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b"")

    async def _read_head(self, connection: socket.socket) -> None:
        while not self.status:
            data = await self._receive(connection)
            try:
                self._take_head(data)
            except h11.RemoteProtocolError as error:
                raise _NoAnswerError(Answer.INVALID, f"not an HTTP response: {error}") from error

    async def _receive(self, connection: socket.socket) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(connection, CHUNK)
        if not data:
            said = f"after {self._received} bytes of a response head" if self._received else "without an answer"
            raise _NoAnswerError(Answer.INVALID, f"the connection was closed {said}")
        self._received += len(data)
        self._start = (self._start + data)[: len(STATUS_LINE)]
        if self._start.startswith(TLS_RECORDS):
            raise _NoAnswerError(Answer.INVALID, "the server speaks TLS; probes are plain HTTP")
        if not STATUS_LINE.startswith(self._start):
            # Said here, because h11 would wait for the end of a line that may never come.
            raise _NoAnswerError(Answer.INVALID, f"not an HTTP response: it starts with {self._start!r}")
        return data

    def _take_head(self, data: bytes) -> None:
        self._http.receive_data(data)
        # Interim responses (1xx) come before the head; together they may not be longer than one.
        while isinstance(event := self._http.next_event(), h11.InformationalResponse):
            if event.status_code == 101:
                raise _NoAnswerError(Answer.INVALID, "the server switched to another protocol")
        if isinstance(event, h11.Response):
            self.at = self._clock.boottime()
            self.status = event.status_code
            self._reason = bytes(event.reason)
            self._location = next((value for key, value in event.headers if key == b"location"), b"")
        elif self._received > HEAD_LIMIT:
            raise _NoAnswerError(Answer.INVALID, f"the response head is longer than {HEAD_LIMIT} bytes")

    async def _read_body(self, connection: socket.socket) -> None:
        """Up to BODY_LIMIT bytes; whatever goes wrong here changes nothing."""
        try:
            while len(self._body) < BODY_LIMIT:
                event = self._http.next_event()
                if isinstance(event, h11.Data):
                    self._body = (self._body + bytes(event.data))[:BODY_LIMIT]
                elif event is h11.NEED_DATA:
                    self._http.receive_data(await asyncio.get_running_loop().sock_recv(connection, CHUNK))
                else:
                    return
        except h11.RemoteProtocolError:
            return


async def _connect(host: str, port: int) -> socket.socket:
    """A connected non-blocking socket to the first address that accepts."""
    try:
        addresses = await _resolve(host, port)
    except (OSError, ValueError, OverflowError) as error:  # a malformed name or port is not always an OSError
        raise _NoAnswerError(Answer.REFUSED, f"cannot resolve {host} port {port}: {_reason(error)}") from error
    failure = "no address"
    for address in addresses:
        try:
            connection = await _open(*address)
        except OSError as error:
            failure = _reason(error)
            continue
        # On loopback, a connect to a free port of the ephemeral range may meet itself when the kernel picks that very
        # port as the source. It would look like a listener, and keep the service from binding its port.
        if connection.getsockname() != connection.getpeername():
            return connection
        connection.close()
        failure = os.strerror(errno.ECONNREFUSED)
    raise _NoAnswerError(Answer.REFUSED, f"cannot connect to {host} port {port}: {failure}")


async def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        # The usual case: a numeric address takes no look-up, so it needs no thread.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses: list[tuple[socket.AddressFamily, tuple[Any, ...]]] = [(each[0], each[4]) for each in found]
    for loopback in loopbacks(host):  # after what the name stands for here
        other = socket.AF_INET6 if loopback.version == 6 else socket.AF_INET
        if all(address[0] != str(loopback) for _, address in addresses):
            addresses.append((other, (str(loopback), port)))
    return addresses


async def _open(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def _reason(error: Exception) -> str:
    """What the system says; asyncio puts the address into `strerror`, and we name it ourselves."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _plain(text: str) -> str:
    """One short line without control characters, safe for logs and terminals."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= DETAIL_LIMIT else f"{line[: DETAIL_LIMIT - 1]}…"
