"""The demo's model server behaves, and misbehaves, as it is told."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpumodd.demo.table import Device, DeviceTable

A, B = "GPU-a", "GPU-b"


@pytest.fixture
def table(tmp_path: Path) -> DeviceTable:
    table = DeviceTable(tmp_path / "devices")
    table.create(Device(A, 0, 10_000, foreign_mib=500), Device(B, 1, 4000))
    return table


class Server:
    """One running model server; its standard output is read as it comes."""

    def __init__(self, port: int, *arguments: object, devices: str | None = None) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        command = [sys.executable, "-m", "gpumodd.demo.model_server", *map(str, arguments)]
        self.port = port
        self.seen: dict[str, dict[str, str]] = {}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def line(self, event: str) -> dict[str, str]:
        """The newest line about this event; waits for the first one."""
        assert self.process.stdout
        while event not in self.seen:
            words = self.process.stdout.readline().decode().split()
            assert words, f"no {event!r}: {self.end()}"
            self.seen[words[1]] = {"at": words[0]} | dict(word.split("=", 1) for word in words[2:])
        return self.seen[event]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def end(self) -> tuple[int, str]:
        """Wait for the exit: its code and the last words."""
        _, stderr = self.process.communicate(timeout=10)
        return self.process.returncode, stderr.decode()


@pytest.fixture
def start(table) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(*arguments: object, port: bool = True, devices: str | None = None) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            number = free.getsockname()[1]
        listening = ("--port", number) if port else ()
        servers.append(Server(number, *arguments, "--table", table.path, *listening, devices=devices))
        return servers[-1]

    yield begin
    for server in servers:
        # The group: also the engine of a server that was killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.communicate()


def eventually(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def chat(**more: object) -> dict[str, object]:
    return {"model": "any", "messages": [{"role": "user", "content": "hello you"}], **more}


def test_it_listens_loads_and_is_ready(start, table):
    server = start("chat", "--vram-mib", 6000, "--load-s", 0.5)
    server.line("listening")
    assert server.ask("GET", "/health") == (503, b'{"status": "loading model"}\n')
    assert server.ask("POST", "/v1/chat/completions", chat())[0] == 503
    eventually(lambda: 0 < table.read().processes(A).get(server.process.pid, 0) < 6000)
    ready = server.line("ready")
    assert server.ask("GET", "/health") == (200, b'{"status": "ok"}\n')
    assert table.read().processes(A) == {server.process.pid: 6000}
    assert table.read().processes(B) == {}
    timeline = json.loads(server.ask("GET", "/demo/timeline")[1])
    assert timeline["pid"] == server.process.pid
    assert timeline["started"] <= timeline["listening"] <= timeline["ready"] <= timeline["now"]
    assert timeline["ready"] - timeline["started"] >= 0.5
    assert abs(timeline["ready"] - float(ready["at"])) < 0.1


def test_it_chats(start):
    server = start("--model", "m-1", "--alias", "tiny")
    server.line("ready")
    server.line("listening")
    assert json.loads(server.ask("GET", "/v1/models")[1])["data"][0]["id"] == "tiny"
    status, body = server.ask("POST", "/v1/chat/completions", chat())
    reply = json.loads(body)
    assert (status, reply["model"]) == (200, "tiny")
    assert reply["choices"][0]["message"]["content"] == "tiny heard: hello you"
    assert reply["usage"]["completion_tokens"] == 4
    status, body = server.ask("POST", "/v1/chat/completions", chat(stream=True))
    pieces = [line[6:] for line in body.decode().split("\n\n") if line]
    assert pieces.pop() == "[DONE]"
    deltas = [json.loads(piece)["choices"][0]["delta"]["content"] for piece in pieces]
    assert "".join(deltas) == "tiny heard: hello you"


def test_a_connection_carries_many_requests(start):
    server = start()
    server.line("listening")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    for _ in range(3):
        connection.request("POST", "/v1/chat/completions", json.dumps(chat()))
        assert connection.getresponse().read()
        local = connection.sock.getsockname()
        connection.request("GET", "/nothing")
        reply = connection.getresponse()
        assert (reply.status, reply.read()[:10]) == (404, b'{"error": ')
        assert connection.sock.getsockname() == local
    connection.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\r\n\r\n", b"400"),
        (b"GET / HTTP/2\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, b"431"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 4\r\n\r\n[[[[", b"400"),
        (b'POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 15\r\n\r\n{"messages": 1}', b"400"),
    ],
)
def test_bad_requests_get_an_answer_and_do_no_harm(start, sent, status):
    server = start()
    server.line("listening")
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(sent)
        assert connection.recv(65536).split(b" ")[1] == status
    assert server.ask("GET", "/v1/models")[0] == 200


def test_memory_follows_the_device_selection(start, table):
    one, both = start("--vram-mib", 700, devices=B), start("--vram-mib", 1001, devices=f"1,{A}")
    one.line("ready")
    both.line("ready")
    assert table.read().processes(A) == {both.process.pid: 500}
    assert table.read().processes(B) == {one.process.pid: 700, both.process.pid: 501}


def test_without_a_device_it_fails_like_cuda(start):
    assert start("--vram-mib", 700, devices="").end() == (1, "RuntimeError: No CUDA GPUs are available\n")


def test_late_listen(start):
    server = start("--late-listen", "--load-s", 0.3)
    server.line("started")
    with pytest.raises(ConnectionRefusedError):
        server.ask("GET", "/health")
    server.line("listening")
    assert server.ask("GET", "/health")[0] == 200


def test_sigterm_ends_it_and_frees_the_memory(start, table):
    server = start("--vram-mib", 700)
    server.line("ready")
    server.process.terminate()
    server.line("sigterm")
    assert server.end()[0] == 0
    assert table.read().used_mib(A) == 500


def test_kill_frees_the_memory_late_if_asked(start, table):
    server = start("--vram-mib", 700, "--linger-ms", 60_000)
    server.line("ready")
    server.process.kill()
    server.end()
    assert (table.read().used_mib(A), table.read().processes(A)) == (1200, {})


def test_sigterm_may_be_ignored_or_slow(start):
    stubborn, slow = start("--ignore-sigterm"), start("--term-s", 0.4)
    for server in (stubborn, slow):
        server.line("ready")
        server.line("listening")
        server.process.terminate()
        server.line("sigterm")
    begun = time.monotonic()
    assert slow.ask("GET", "/health")[0] == 200
    assert slow.end()[0] == 0
    assert time.monotonic() - begun > 0.2
    assert stubborn.ask("GET", "/health")[0] == 200


def test_it_fails_when_told(start):
    server = start("--fail-at-s", 0.1, "--exit-code", 7, "--last-words", "ValueError: no such layer")
    assert server.end() == (7, "ValueError: no such layer\n")


def test_it_exits_on_request(start):
    server = start()
    server.line("listening")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        server.ask("POST", "/demo/exit?9")
    assert server.end()[0] == 9


def test_out_of_memory_is_its_end(start, table):
    table.hold(A, 5000)
    server = start("--vram-mib", 5000)
    code, words = server.end()
    assert code == 1
    assert words.startswith("CUDA out of memory. Tried to allocate 5000 MiB. GPU 0 has 10000 MiB, of which 4500 MiB")
    assert [refusal.pid for refusal in table.read().refusals] == [server.process.pid]
    assert table.read().used_mib(A) == 5500
    assert "CUDA out of memory" in start("--oom").end()[1]


@pytest.mark.parametrize(("mode", "status"), [("loading", 503), ("error", 500), ("redirect", 302)])
def test_health_may_be_bad(start, mode, status):
    server = start(f"--{mode}-health")
    server.line("ready")
    server.line("listening")
    assert server.ask("GET", "/health")[0] == status
    assert server.ask("GET", "/v1/models")[0] == 200
    assert server.ask("POST", "/demo/health?ok")[0] == 200
    assert server.ask("GET", "/health")[0] == 200
    assert server.ask("POST", "/demo/health?nonsense")[0] == 404


def test_health_may_hang(start):
    server = start("--hang-health")
    server.line("listening")
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.3) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert server.ask("GET", "/v1/models")[0] == 200


def test_health_may_never_end(start):
    server = start("--endless-health")
    server.line("listening")
    received = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        while received < 50 << 20:
            received += len(connection.recv(1 << 20))
    assert server.ask("GET", "/v1/models")[0] == 200


def test_health_may_flap(start):
    server = start("--flap-s", 0.1)
    server.line("ready")
    server.line("listening")
    for status in (500, 200, 500):
        eventually(lambda status=status: server.ask("GET", "/health")[0] == status)


def test_it_sleeps_and_wakes(start, table):
    server = start("--vram-mib", 700, "--residue-mib", 30)
    server.line("ready")
    server.line("listening")
    assert server.ask("POST", "/sleep?level=1")[0] == 200
    assert json.loads(server.ask("GET", "/is_sleeping")[1]) == {"is_sleeping": True}
    assert table.read().processes(A) == {server.process.pid: 30}
    assert server.ask("POST", "/v1/chat/completions", chat())[0] == 503
    assert server.ask("GET", "/health")[0] == 200
    assert server.ask("POST", "/wake_up")[0] == 200
    assert json.loads(server.ask("GET", "/is_sleeping")[1]) == {"is_sleeping": False}
    assert table.read().processes(A) == {server.process.pid: 700}


def test_it_may_lie_about_its_sleep(start, table):
    server = start("--vram-mib", 700, "--lie-asleep")
    server.line("ready")
    server.line("listening")
    assert server.ask("POST", "/sleep")[0] == 200
    assert json.loads(server.ask("GET", "/is_sleeping")[1]) == {"is_sleeping": True}
    assert table.read().processes(A) == {server.process.pid: 700}


@pytest.mark.parametrize("flag", ["--engine-child", "--fork-away"])
def test_an_engine_outlives_a_killed_server_but_not_a_polite_end(start, table, flag):
    polite = start("--vram-mib", 700, flag)
    polite.line("ready")
    assert polite.process.pid not in table.read().processes(A)
    assert sum(table.read().processes(A).values()) == 700
    polite.process.terminate()
    assert polite.end()[0] == 0
    assert table.read().used_mib(A) == 500

    killed = start("--vram-mib", 800, flag)
    killed.line("ready")
    (engine,) = table.read().processes(A)
    assert (os.getpgid(engine) == killed.process.pid) is (flag == "--engine-child")
    killed.process.kill()
    killed.process.wait()
    try:
        assert table.read().processes(A) == {engine: 800}
    finally:
        os.kill(engine, signal.SIGKILL)
    eventually(lambda: table.read().used_mib(A) == 500)


def test_an_engine_that_cannot_load_is_the_end(start):
    code, words = start("--oom", "--engine-child").end()
    assert code == 1
    assert "CUDA out of memory" in words
    assert "Engine core initialization failed" in words


def test_a_taken_port_is_the_end(start):
    first = start()
    first.line("listening")
    second = start("--port", first.port, port=False)
    code, words = second.end()
    assert (code, words) == (1, f"cannot listen on 127.0.0.1:{first.port}: Address already in use\n")


def test_without_a_port_it_just_runs(start, table):
    server = start("--vram-mib", 700, port=False)
    server.line("ready")
    server.process.terminate()
    assert server.end()[0] == 0


def test_foreign_arguments_are_ignored_aloud(start):
    server = start("org/model", "--max-model-len", 8192, "--enable-sleep-mode")
    assert server.line("started")["model"] == "org/model"
    server.line("ready")
    server.process.terminate()
    assert server.end() == (0, "ignored: --max-model-len 8192 --enable-sleep-mode\n")


def test_it_survives_a_closed_output(start):
    server = start()
    server.line("listening")
    server.process.stdout.close()
    assert server.ask("POST", "/sleep")[0] in (200, 503)  # writes a line
    assert server.ask("GET", "/v1/models")[0] == 200
    server.process.stdout = None


def test_it_listens_soon(start):
    """38 ms were measured; the limit is what a busy test machine needs, the median what one notices."""
    took = []
    for _ in range(5):
        begun = time.clock_gettime(time.CLOCK_BOOTTIME)
        took.append(float(start().line("listening")["at"]) - begun)
    assert sorted(took)[2] < 0.25
