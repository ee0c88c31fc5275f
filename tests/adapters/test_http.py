"""The prober against real sockets: servers that behave, and servers that do everything else."""

import asyncio
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import pytest

from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.http import HttpProber
from gpumodd.core.facts import Answer
from gpumodd.drivers.api import ProbeSpec
from tests.support.fixtures import require_real

CLOCK = SystemClock()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def spec(port, *, path="/health", timeout_s=5.0, host="127.0.0.1", **more):
    return ProbeSpec(host=host, port=port, path=path, timeout_s=timeout_s, **more)


async def probe(port, **more):
    started = CLOCK.boottime()
    fact = await HttpProber(CLOCK).probe("chat", spec(port, **more))
    assert fact.service == "chat"
    assert started <= fact.at <= CLOCK.boottime()
    assert len(fact.detail) <= 200
    assert fact.detail.isprintable()
    return fact


@asynccontextmanager
async def server(answer, *, host="127.0.0.1"):
    """A listener that reads a request head, then does what `answer` (bytes or a coroutine function) says."""
    seen = []

    async def handle(reader, writer):
        try:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            if callable(answer):
                await answer(reader, writer)
            else:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(handle, host, 0)
    try:
        yield listener.sockets[0].getsockname()[1], seen
    finally:
        listener.close()


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


async def test_a_healthy_answer():
    async with server(OK) as (port, seen):
        fact = await probe(port, path="/health?full=1")
        assert (fact.answer, fact.status, fact.detail) == (Answer.HEALTHY, 200, "")
        (request,) = seen
        assert request.startswith(b"GET /health?full=1 HTTP/1.1\r\n")
        assert f"host: 127.0.0.1:{port}\r\n".encode() in request.lower()
        assert b"connection: close\r\n" in request.lower()


@pytest.mark.parametrize(
    ("head", "answer", "status"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", Answer.HEALTHY, 204),
        (b"HTTP/1.0 200 OK\r\n\r\nfine until I close", Answer.HEALTHY, 200),
        (b"HTTP/1.1 200\r\n\r\n", Answer.HEALTHY, 200),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Answer.HEALTHY, 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n", Answer.HEALTHY, 200),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Answer.LOADING, 503),
        (b"HTTP/1.1 425 Too Early\r\n\r\n", Answer.LOADING, 425),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Answer.UNHEALTHY, 404),
        (b"HTTP/1.1 500 Oops\r\n\r\n", Answer.UNHEALTHY, 500),
        (b"HTTP/1.1 301 Moved\r\nLocation: /elsewhere\r\n\r\n", Answer.UNHEALTHY, 301),
    ],
)
async def test_what_a_status_means(head, answer, status):
    async with server(head) as (port, seen):
        fact = await probe(port, loading_statuses=(425,))
        assert (fact.answer, fact.status) == (answer, status)
        assert len(seen) == 1


async def test_the_detail_quotes_the_server():
    body = b'{"error": {"message": "Loading\x1b[31m model"}}'
    async with server(b"HTTP/1.1 503 Not\tyet\r\n\r\n" + body) as (port, _):
        fact = await probe(port)
        assert fact.detail == 'HTTP 503 Not yet: {"error": {"message": "Loading [31m model"}}'
    async with server(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\xff\r\n\r\n") as (port, _):
        fact = await probe(port)
        assert fact.detail == "HTTP 302 Found, a redirect to http://10.0.0.1/ÿ"


async def test_a_redirect_is_not_followed():
    async with server(OK) as (target, reached):
        redirect = f"HTTP/1.1 307 Temporary\r\nLocation: http://127.0.0.1:{target}/health\r\n\r\n".encode()
        async with server(redirect) as (port, _):
            assert (await probe(port)).answer is Answer.UNHEALTHY
        assert reached == []


async def test_a_long_body_is_cut():
    async with server(b"HTTP/1.1 500 Oops\r\n\r\n" + "ä".encode() * 10_000) as (port, _):
        fact = await probe(port)
        assert fact.status == 500
        assert len(fact.detail) == 200
        assert fact.detail.endswith("ä…")


async def test_nobody_listens():
    fact = await probe(free_port())
    assert fact.answer is Answer.REFUSED
    assert fact.detail.endswith("Connection refused")
    assert fact.status is None


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "a" * 300, "host\nname", "\0", "::gg"])
async def test_a_host_that_does_not_resolve(host):
    fact = await probe(1, host=host)
    assert fact.answer is Answer.REFUSED
    assert fact.detail


async def test_a_port_out_of_range():
    assert (await probe(70_000)).answer in (Answer.REFUSED, Answer.INVALID)


async def test_names_and_ipv6():
    async with server(OK, host="localhost") as (port, _):
        assert (await probe(port, host="localhost")).answer is Answer.HEALTHY
    async with server(OK, host="::1") as (port, _):  # which a hosts file need not know as localhost
        assert (await probe(port, host="localhost")).answer is Answer.HEALTHY
    try:
        listener = server(OK, host="::1")
        async with listener as (port, seen):
            assert (await probe(port, host="::1")).answer is Answer.HEALTHY
            assert f"host: [::1]:{port}".encode() in seen[0].lower()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback: {error}")


async def test_a_path_that_needs_quoting():
    async with server(OK) as (port, seen):
        assert (await probe(port, path="ein Pfad\r\nX-Evil: ü")).answer is Answer.HEALTHY
        assert seen[0].startswith(b"GET /ein%20Pfad%0D%0AX-Evil:%20%C3%BC HTTP/1.1\r\n")
        assert b"\r\nX-Evil" not in seen[0]


async def hang(reader, writer):
    await reader.read()


async def drip_a_head(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"y")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [hang, drip_a_head])
async def test_an_answer_that_does_not_end_is_a_timeout(answer):
    async with server(answer) as (port, _):
        started = time.monotonic()
        fact = await probe(port, timeout_s=0.2)
        assert fact.answer is Answer.TIMEOUT
        assert "0.2 s" in fact.detail
        assert 0.15 < time.monotonic() - started < 2


async def test_a_listener_that_never_accepts_is_a_timeout():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        assert (await probe(listener.getsockname()[1], timeout_s=0.2)).answer is Answer.TIMEOUT


async def test_a_body_that_stalls_does_not_delay_the_verdict():
    async def stall(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await reader.read()

    async with server(stall) as (port, _):
        started = time.monotonic()
        fact = await probe(port, timeout_s=30)
        assert fact.answer is Answer.HEALTHY
        assert time.monotonic() - started < 5
        assert (await probe(port, timeout_s=0.1)).answer is Answer.HEALTHY


async def test_gigabytes_are_not_read():
    sent = 0

    async def flood(reader, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 1 << 30:
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    async with server(flood) as (port, _):
        fact = await probe(port)
        assert fact.answer is Answer.HEALTHY
    assert sent < 64 << 20  # what the kernel buffered, not what was offered


async def endless_headers(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Header: value\r\n" * 64)
        await writer.drain()


async def endless_line(reader, writer):
    while True:
        writer.write(b"H" * 4096)
        await writer.drain()


async def endless_interim(reader, writer):
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 64)
        await writer.drain()


@pytest.mark.parametrize("answer", [endless_headers, endless_line, endless_interim])
async def test_an_endless_head_is_invalid(answer):
    async with server(answer) as (port, _):
        fact = await probe(port, timeout_s=20)
        assert (fact.answer, fact.status) == (Answer.INVALID, None)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "not an HTTP response"),
        (os.urandom(256).replace(b"\x15\x03", b"").replace(b"\x16\x03", b"") + b"\r\n\r\n", ""),
        (b"HTTP/1.1 two hundred\r\n\r\n", "not an HTTP response"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "not an HTTP response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "not an HTTP response"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", ""),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        (b"", "closed without an answer"),
        (b"HTTP/1.1 200", "closed after 12 bytes"),
    ],
)
async def test_what_is_not_http_is_invalid(answer, detail):
    async with server(answer) as (port, _):
        fact = await probe(port)
        assert (fact.answer, fact.status) == (Answer.INVALID, None)
        assert detail in fact.detail


async def test_a_reset_is_invalid():
    async def reset(reader, writer):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with server(reset) as (port, _):
        fact = await probe(port)
        assert fact.answer is Answer.INVALID
        assert "reset" in fact.detail


async def test_a_head_in_single_bytes():
    async def spell(reader, writer):
        for byte in OK:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with server(spell) as (port, _):
        assert (await probe(port)).answer is Answer.HEALTHY


# With one ephemeral port, a connect to it always gets it as its source, which otherwise happens by chance.
SELF_CONNECT = """
import anyio, fcntl, socket, struct, sys
from pathlib import Path
from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.http import HttpProber
from gpumodd.drivers.api import ProbeSpec
with socket.socket() as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40001 40001")
spec = ProbeSpec(host="127.0.0.1", port=40001, path="/", timeout_s=2)
print(anyio.run(HttpProber(SystemClock()).probe, "chat", spec).detail)
"""


@pytest.mark.real
def test_a_connection_to_itself_is_nobody():
    alone = ["unshare", "--net", "--"]
    tried = subprocess.run([*alone, "true"], capture_output=True, text=True, check=False)
    require_real("" if tried.returncode == 0 else f"no network namespace: {tried.stderr.strip()}")
    run = subprocess.run(
        [*alone, sys.executable, "-c", SELF_CONNECT], capture_output=True, text=True, check=False, timeout=30
    )
    assert (run.stdout, run.stderr) == ("cannot connect to 127.0.0.1 port 40001: Connection refused\n", "")


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def test_no_descriptor_is_left():
    async with server(hang) as (port, _), server(OK) as (fine, _):
        await probe(fine)
        before = descriptors()
        for _ in range(5):
            await probe(port, timeout_s=0.02)
            await probe(free_port())
        with anyio.move_on_after(0.05) as scope:
            await HttpProber(CLOCK).probe("chat", spec(port, timeout_s=60))
        assert scope.cancelled_caught
    deadline = time.monotonic() + 5
    while descriptors() > before and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert descriptors() <= before


async def test_out_of_descriptors_is_an_answer_not_an_exception():
    async with server(OK) as (port, _):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        top = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
        filler = [os.dup(0) for _ in range(top)]  # no gap below the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler) + 1, hard))
        try:
            fact = await HttpProber(CLOCK).probe("chat", spec(port))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in filler:
                os.close(descriptor)
        assert fact.answer is Answer.REFUSED
        assert "Too many open files" in fact.detail


async def test_many_at_once():
    async with server(OK) as (port, seen):
        facts = await asyncio.gather(*(probe(port) for _ in range(50)))
        assert {fact.answer for fact in facts} == {Answer.HEALTHY}
        assert len(seen) == 50


async def test_a_threaded_server_of_the_standard_library():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert (await probe(httpd.server_port)).answer is Answer.HEALTHY
            assert (await probe(httpd.server_port, path="/other")).detail.startswith("HTTP 404 Not Found: hello")
        finally:
            httpd.shutdown()
            thread.join()
