"""One client's connection: lines in, reply lines and notifications out, and the seam to the handlers.

The seam
--------
`Handler = Callable[[Session, Params], Result | Coroutine[Result]]`, one per method name of `wire.methods`.
`Params` is the method's validated params struct, `Result` what the method declares, or the same pre-encoded as
a compact `msgspec.Raw`.

- A plain function is answered in the same turn of the event loop and must not block.
- An `async def` runs as a task of its own. When the client goes away it is cancelled: at once if the method
  only reads, after `Limits.abandon_s` if it changes something. So: hand the change to the daemon's loop first
  and wait for the outcome afterwards; nothing needs shielding.
- To refuse, raise `RpcError`. Anything else that is raised is logged and answered with -32603.
- `return Reply(result, then=pump)` runs `await pump()` after the reply was written, until the client is gone:
  for subscriptions and progress. A pump awaits `session.drained()` before each `session.notify(…)`, so a slow
  client backs up into the pump's own bounded queue and not into the daemon's memory.

What this module must not do: know any method.
"""

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast

import anyio
import anyio.abc
import msgspec
import structlog

from gpumodd.api.access import Peer
from gpumodd.api.dispatch import Answer, Dispatcher, Follow, Handler, Reply
from gpumodd.wire.codec import (
    LINE_LIMIT,
    NULL,
    Lines,
    Oversized,
    encode_error,
    encode_notification,
    too_large,
)
from gpumodd.wire.envelope import Call, Invalid, read_line
from gpumodd.wire.errors import RpcError
from gpumodd.wire.methods import Access

__all__ = ["Connection", "Handler", "Limits", "Reply", "Session"]

log = structlog.get_logger("gpumodd.api")


class Limits(msgspec.Struct, kw_only=True, frozen=True):
    """How much one client may ask of the daemon."""

    connections: int = 256
    running: int = 256  # handlers of one connection that have not answered yet
    lines_per_turn: int = 32  # answered before other connections get their turn
    paused_bytes: int = LINE_LIMIT  # unread output from which on no more requests are taken
    dropped_bytes: int = 16 * LINE_LIMIT  # unread output that ends the connection at once
    stall_s: float = 30.0  # paused without reading a byte: the connection ends
    abandon_s: float = 10.0  # how long a changing handler may go on without its client
    skipped_bytes: int = 16 * LINE_LIMIT  # of one endless line
    linger_s: float = 1.0  # for unread output when the daemon ends


class Session:
    """What a handler sees of its connection."""

    def __init__(self, connection: "Connection", peer: Peer) -> None:
        self._connection = connection
        self.peer = peer
        self.access = Access.ADMIN
        self.client = ""
        self.actor = f"pid {peer.pid}"
        self.closed = asyncio.Event()

    def notify(self, method: str, params: Any) -> bool:
        """Send a notification (`params` may be pre-encoded); False when the client is gone."""
        return self._connection.send(encode_notification(method, params))

    async def drained(self) -> None:
        """Wait until the client has read most of what was sent, or is gone."""
        await self._connection.writable.wait()


class _Batch:
    """Collects the replies of a batch until the last one is there."""

    def __init__(self, count: int, send: Callable[[Answer], None]) -> None:
        self._missing = count
        self._send = send
        self._answers: list[Answer] = []

    def add(self, answer: Answer) -> None:
        self._answers.append(answer)
        self._missing -= 1
        if self._missing:
            return
        lines = [answer.line for answer in self._answers if answer.line]
        if lines:
            self._send(Answer(_joined(lines)))
        for follow in (answer.then for answer in self._answers if answer.then):
            self._send(Answer(b"", follow))


class Connection(asyncio.Protocol):
    """The protocol of one accepted socket."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        peer: Peer,
        *,
        limits: Limits,
        tasks: anyio.abc.TaskGroup,
        connections: set["Connection"],
    ) -> None:
        self.session = Session(self, peer)
        self.writable = asyncio.Event()
        self.writable.set()
        self._dispatcher = dispatcher
        self._limits = limits
        self._tasks = tasks
        self._connections = connections
        self._lines = Lines()
        self._waiting: deque[bytes | Oversized] = deque()
        self._turn_due = False
        self._ended = False  # the client has sent all it will send
        self._running: dict[anyio.CancelScope, Access] = {}
        self._written = 0
        self._stall: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.paused_bytes)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._waiting.extend(self._lines.feed(data))
        if not self._turn_due:
            self._take_turn()
        if self._lines.skipped > self._limits.skipped_bytes:
            self.close()

    def eof_received(self) -> bool:
        self._ended = True
        # `printf '{…}' | nc` sends no newline; a request cut short is no JSON object, so nothing half is run.
        rest = self._lines.end()
        if rest:
            self._waiting.append(rest)
        if not self._turn_due:
            self._take_turn()
        self._look_for_client()
        return True

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._stall is not None:
            self._stall.cancel()
        self._waiting.clear()
        self.session.closed.set()
        self.writable.set()
        self._abandon()
        self._connections.discard(self)

    def pause_writing(self) -> None:
        self.writable.clear()
        self._watch_for_stall()

    def resume_writing(self) -> None:
        self.writable.set()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if not self._turn_due:
            self._take_turn()

    # -- what the server and the session call

    def send(self, line: bytes) -> bool:
        """Hand one line to the transport; a client that lets too much pile up is dropped."""
        transport = self._transport
        if transport.is_closing():
            return False
        transport.write(line)
        self._written += len(line)
        if transport.get_write_buffer_size() > self._limits.dropped_bytes:
            self._drop("it does not read")
            return False
        return True

    def close(self) -> None:
        """End the connection once everything sent has been read."""
        self._waiting.clear()
        self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    # -- requests

    def _take_turn(self) -> None:
        """Answer some of the waiting lines, then let others have their turn."""
        self._turn_due = False
        left = self._limits.lines_per_turn
        while self._waiting and left and self.writable.is_set() and not self._transport.is_closing():
            left -= 1
            self._answer_line(self._waiting.popleft())
        if self._waiting and self.writable.is_set():
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._take_turn)
        if not self._ended and not self._transport.is_closing():
            if self._waiting:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
        self._close_when_done()

    def _answer_line(self, line: bytes | Oversized) -> None:
        if isinstance(line, Oversized):
            self._deliver(Answer(encode_error(NULL, too_large("request"))))
            return
        request = read_line(line)
        if not isinstance(request, list):
            self._answer(request, self._deliver)
            return
        batch = _Batch(len(request), self._deliver)
        for member in request:
            self._answer(member, batch.add)

    def _answer(self, request: Call | Invalid, deliver: Callable[[Answer], None]) -> None:
        if isinstance(request, Invalid):
            deliver(Answer(encode_error(request.id, request.error)))
            return
        may_wait = len(self._running) < self._limits.running
        answer = self._dispatcher.begin(self.session, request, may_wait=may_wait)
        if isinstance(answer, Answer):
            deliver(answer)
            return
        scope = anyio.CancelScope()
        self._running[scope] = self._dispatcher.access_of(request)
        self._tasks.start_soon(self._wait, scope, request, answer, deliver)

    def _deliver(self, answer: Answer) -> None:
        if answer.line:
            self.send(answer.line)
        if answer.then is not None:
            # Begun even when the client is gone already, so that it can let go of what it holds.
            scope = anyio.CancelScope()
            if self._transport.is_closing():
                scope.cancel()
            self._running[scope] = Access.READ
            self._tasks.start_soon(self._follow, scope, answer.then)

    # -- handlers that wait

    async def _wait(
        self,
        scope: anyio.CancelScope,
        call: Call,
        answer: Coroutine[Any, Any, Answer],
        deliver: Callable[[Answer], None],
    ) -> None:
        done: Answer | None = None
        try:
            with scope:
                done = await answer
        finally:
            del self._running[scope]
            if done is None:
                done = Answer(encode_error(call.id, _ending(call.method)) if call.id else b"")
            deliver(done)
            self._close_when_done()

    async def _follow(self, scope: anyio.CancelScope, follow: Follow) -> None:
        try:
            with scope:
                await follow()
        except Exception as error:
            log.error("notifications_failed", exc_info=error)
        finally:
            del self._running[scope]
            self._close_when_done()

    def _abandon(self) -> None:
        """The client is gone: end what only reads, give what changes something the time to hand it over."""
        later = asyncio.get_running_loop().time() + self._limits.abandon_s
        for scope, access in self._running.items():
            if access is Access.READ:
                scope.cancel()
            else:
                scope.deadline = later

    # -- endings

    def _close_when_done(self) -> None:
        if self._ended and not self._waiting and not self._running:
            self._transport.close()

    def _look_for_client(self) -> None:
        """After its end of file: has the client only finished sending, or has it gone altogether?

        The transport stops watching a socket at end of file, so a hang-up has to be asked for.
        """
        if self._transport.is_closing():
            return
        poll = select.poll()
        poll.register(cast("socket.socket", self._transport.get_extra_info("socket")).fileno(), 0)
        if any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0)):
            self._transport.abort()
        else:
            asyncio.get_running_loop().call_later(0.5, self._look_for_client)

    def _watch_for_stall(self) -> None:
        taken = self._written - self._transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._stall = loop.call_later(self._limits.stall_s, self._check_stall, taken)

    def _check_stall(self, taken_before: int) -> None:
        if self._written - self._transport.get_write_buffer_size() <= taken_before:
            self._drop(f"it has read nothing for {self._limits.stall_s:g} s")
        else:
            self._watch_for_stall()

    def _drop(self, why: str) -> None:
        log.info("client_dropped", pid=self.session.peer.pid, client=self.session.client, why=why)
        self._transport.abort()


def _ending(method: str) -> RpcError:
    return RpcError(
        "conflict",
        f"cannot answer {method}: the daemon is ending",
        hint="what was begun goes on when the daemon is back; ask operation.list then",
    )


def _joined(lines: list[bytes]) -> bytes:
    """One line for a batch. What no longer fits is replaced, request by request, by an error."""
    room = LINE_LIMIT - 2 - sum(min(len(line), _SHORT) + 1 for line in lines)
    members: list[bytes] = []
    for line in lines:
        member = line[:-1]
        extra = len(line) - _SHORT
        if extra > room:
            reply = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            member = encode_error(reply["id"], too_large("answer", len(line)))[:-1]
        elif extra > 0:
            room -= extra
        members.append(member)
    return b"[" + b",".join(members) + b"]\n"


_SHORT = 1024  # reserved for each reply of a batch; a `too_large` error fits into it
