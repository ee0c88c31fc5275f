"""The baseline of the RPC benchmark: an asyncio server that answers every line with the same bytes.

`python -m benchmarks.echo_server SOCKET REPLY_FILE`; it ends when its standard input does.
"""

import asyncio
import sys
from pathlib import Path


class Echo(asyncio.Protocol):
    """As little as a server in this language can do."""

    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self.reply * data.count(b"\n"))


async def main(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Echo, path)
    async with server:
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    Echo.reply = Path(sys.argv[2]).read_bytes()
    asyncio.run(main(sys.argv[1]))
