"""The server: accepts connections on the Unix socket and answers until it is cancelled.

Generic: what is served are the handlers it is given (the seam is described in `connection`). It owns the
listening socket and the accepted ones; it must not know any method.
"""

import asyncio
import contextlib
import socket
from collections.abc import Mapping

import anyio
import anyio.abc
import structlog

from gpumodd.api import access
from gpumodd.api.connection import Connection, Handler, Limits
from gpumodd.api.dispatch import Dispatcher, Identity
from gpumodd.api.listener import Listener
from gpumodd.wire.codec import NULL, encode_error
from gpumodd.wire.errors import RpcError

log = structlog.get_logger("gpumodd.api")


class Server:
    """Serves `handlers` (by method name) on a listener."""

    def __init__(self, handlers: Mapping[str, Handler], *, identity: Identity, limits: Limits | None = None) -> None:
        self._dispatcher = Dispatcher(handlers, identity)
        self._limits = limits or Limits()
        self._connections: set[Connection] = set()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def serve(
        self,
        listener: Listener,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer until cancelled; then close the listener, answer what waits with an error, hang up."""
        try:
            async with anyio.create_task_group() as tasks:
                task_status.started()
                try:
                    await self._accept(listener.socket, tasks)
                finally:
                    listener.close()
        finally:
            with anyio.CancelScope(shield=True):
                await self._close_connections()

    async def _accept(self, listening: socket.socket, tasks: anyio.abc.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(listening)
            except OSError as error:  # out of file descriptors or memory
                log.warning("cannot_accept", error=error.strerror)
                await anyio.sleep(0.5)
                continue
            try:
                peer = access.peer_of(connected)
                self._admit(peer)
            except RpcError as error:
                _turn_away(connected, error)
                continue
            connection = Connection(
                self._dispatcher,
                peer,
                limits=self._limits,
                tasks=tasks,
                connections=self._connections,
            )
            await loop.connect_accepted_socket(lambda made=connection: made, connected)  # type: ignore[misc]

    def _admit(self, peer: access.Peer) -> None:
        access.admit(peer)
        if len(self._connections) >= self._limits.connections:
            raise RpcError(
                "too_many_connections",
                f"cannot take another connection: {len(self._connections)} are open",
                hint="close some of them",
                retry_after_s=1.0,
            )

    async def _close_connections(self) -> None:
        waiting = [connection.session.closed.wait() for connection in self._connections]
        for connection in tuple(self._connections):
            connection.close()
        with anyio.move_on_after(self._limits.linger_s):
            await asyncio.gather(*waiting)
        for connection in tuple(self._connections):
            connection.abort()


def _turn_away(connected: socket.socket, error: RpcError) -> None:
    connected.setblocking(False)
    with connected, contextlib.suppress(OSError):
        connected.send(encode_error(NULL, error))
