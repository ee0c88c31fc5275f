"""What the protocol costs: a status of 50 services against an asyncio echo of the same bytes, in one process."""

import socket
import statistics
import subprocess
import sys
import time

SERVER = """
import asyncio, sys
import anyio, msgspec
from gpumodd.api.dispatch import Identity
from gpumodd.api.listener import bind
from gpumodd.api.server import Server
from gpumodd.wire import types as t

services = [
    t.Service(id=f"service-{n}", name=f"Service {n}", driver="vllm", model="org/model", phase="ready",
              unit=f"gpumod-service-{n}.service", pid=1000 + n, port=8000 + n, devices=["GPU-0000"],
              vram_mib=7000, vram_source="declared", vram_observed_mib=6900, since="2026-01-02T03:04:05Z")
    for n in range(50)
]
status = msgspec.Raw(msgspec.json.encode(t.Status(mode="m", desired_mode="m", state="converged", services=services)))
line = b'{"jsonrpc":"2.0","id":1,"result":' + bytes(status) + b'}\\n'

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(line)

async def main():
    echo = await asyncio.get_running_loop().create_unix_server(Echo, sys.argv[1])
    server = Server({"status.get": lambda session, params: status},
                    identity=Identity(version="", pid=1, started_at=""))
    async with echo, anyio.create_task_group() as tasks:
        await tasks.start(server.serve, bind(sys.argv[2]))
        print(len(line), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        tasks.cancel_scope.cancel()

asyncio.run(main())
"""
REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"status.get"}\n'
TARGET = 0.4


def seconds(client, size):
    """One request and its reply."""
    began = time.perf_counter()
    client.sendall(REQUEST)
    while size > 0:
        size -= len(client.recv(1 << 18))
    return time.perf_counter() - began


def test_a_status_costs_little_more_than_its_bytes(tmp_path):
    echo, daemon = tmp_path / "echo", tmp_path / "daemon"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(echo), str(daemon)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        size = int(process.stdout.readline())
        with socket.socket(socket.AF_UNIX) as to_echo, socket.socket(socket.AF_UNIX) as to_daemon:
            to_echo.connect(str(echo))
            to_daemon.connect(str(daemon))
            best = 0.0
            for _ in range(5):
                pairs = [(seconds(to_echo, size), seconds(to_daemon, size)) for _ in range(400)]
                ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
                best = max(best, ratio)
                if best >= TARGET:
                    break
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert best >= TARGET, f"{best:.0%} of the rate of an echo"
