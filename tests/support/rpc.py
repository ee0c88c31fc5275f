"""A real server on a real socket with handlers of the test's choice, and a client that speaks in raw lines."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread

from gpumodd.api.connection import Handler, Limits
from gpumodd.api.dispatch import Identity
from gpumodd.api.listener import bind
from gpumodd.api.server import Server

IDENTITY = Identity(version="1.2.3", pid=4711, started_at="2026-01-02T03:04:05Z")
PATIENCE_S = 20.0  # how long a test waits for what must happen


@contextlib.asynccontextmanager
async def serving(
    path: Path, handlers: Mapping[str, Handler], *, limits: Limits | None = None
) -> AsyncIterator[Server]:
    """Serve on `path` while the block runs. Use it inside a test, not in a fixture."""
    server = Server(handlers, identity=IDENTITY, limits=limits)
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.serve, bind(str(path)))
        try:
            yield server
        finally:
            tasks.cancel_scope.cancel()


class Peer:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes | str | dict | list) -> None:
        if isinstance(data, (dict, list)):
            data = json.dumps(data) + "\n"
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def line(self) -> bytes:
        """The next line; empty at the end of the stream."""
        with anyio.fail_after(PATIENCE_S):
            return await self.reader.readline()

    async def read(self) -> Any:
        """The next message."""
        line = await self.line()
        assert line.endswith(b"\n"), "the connection ended"
        assert len(line) <= 1024 * 1024
        return json.loads(line)

    async def call(self, method: str, params: Any = None, id: Any = 1) -> Any:
        """Send a request and return the next message, which must be its reply."""
        request = {"jsonrpc": "2.0", "id": id, "method": method}
        await self.send(request if params is None else request | {"params": params})
        reply = await self.read()
        assert reply["id"] == id
        return reply

    async def ended(self) -> bool:
        """True when the server closed the connection; fails when it says anything more."""
        try:
            return await self.line() == b""
        except ConnectionError:
            return True


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=64 * 1024 * 1024)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.contextmanager
def served(path: Path, handlers: Mapping[str, Handler], *, limits: Limits | None = None) -> Iterator[Server]:
    """The same server on a thread of its own, for tests whose client is a process."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(path, handlers, limits=limits)) as server,
    ):
        yield server
