"""Clients that send rubbish, too much, too little, or do not read: nobody else notices."""

import asyncio
import contextlib
import json
import random
import socket
import time

import anyio
import anyio.lowlevel
import pytest

from gpumodd.api.connection import Limits, Reply
from tests.support.rpc import PATIENCE_S, connected, serving

STATUS = {"status.get": lambda _session, _params: "status"}
MIB = 1024 * 1024


def request(method="status.get", id=1, **extra):
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method} | extra).encode() + b"\n"


async def until(condition):
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await anyio.sleep(0.005)


RUBBISH = [
    (b"\xff\xfe\x00\n", -32700),
    (b'{"jsonrpc":"2.0","id":"\xff","method":"status.get"}\n', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"status.get","params":{"a":"\xc3\x28"}}\n', -32700),
    (b'{"jsonrpc":"2.0","id":"\\ud800","method":"status.get"}\n', -32700),
    (b'{"jsonrpc":"2.0","id":NaN,"method":"status.get"}\n', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"status.get","params":{"a":Infinity}}\n', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"status.get","params":' + b"[" * 100_000 + b"\n", -32700),
    (b"[" * 500_000 + b"]" * 500_000 + b"\n", -32700),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n", -32700),
    (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}\n", -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"status.get"\n', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"status.get"} {"jsonrpc":"2.0"}\n', -32700),
    (b'{"jsonrpc":"2.0","id":"a\x00b","method":"status.get"}\n', -32700),
    (b"GET / HTTP/1.1\n", -32700),
    (b"\x16\x03\x01\x02\x00\x01\n", -32700),
    (b"null\n", -32600),
    (b"1e999\n", -32600),
    (b"9" * 100_000 + b"\n", -32600),
    (b'"' + b"x" * 100_000 + b'"\n', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * 100_000 + b'"}\n', -32601),
    (b'{"jsonrpc":"2.0","id":"' + b"x" * 900_000 + b'","method":"nope"}\n', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"service.get","params":{"id":' + b"9" * 5000 + b"}}\n", -32601),
    (b"[" + b"1," * 300 + b"1]\n", -32013),
]


@pytest.mark.parametrize(("line", "code"), RUBBISH, ids=range(len(RUBBISH)))
async def test_rubbish_gets_one_error_and_the_next_line_is_read(tmp_path, line, code):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as peer:
        await peer.send(line)
        assert (await peer.read())["error"]["code"] == code
        assert (await peer.call("status.get"))["result"] == "status"


async def test_random_bytes_never_end_the_connection(tmp_path):
    path = tmp_path / "s"
    dice = random.Random(7)
    async with serving(path, STATUS), connected(path) as peer:
        for _ in range(200):
            await peer.send(dice.randbytes(dice.randrange(1, 300)))
        await peer.send(b"\n" + request(id="end"))
        while (reply := await peer.read())["id"] != "end":
            assert reply["error"]["code"] in (-32700, -32600)


async def test_mutated_requests_never_end_the_connection(tmp_path):
    path = tmp_path / "s"
    dice = random.Random(11)
    good = request("mode.switch", params={"id": "rag", "wait": False, "on_failure": "keep"})[:-1]
    async with serving(path, STATUS | {"mode.switch": lambda _s, p: p}), connected(path) as peer:
        for _ in range(1000):
            bad = bytearray(good)
            for _ in range(dice.randrange(1, 4)):
                bad[dice.randrange(len(bad))] = dice.randrange(256)
            await peer.send(bytes(bad) + b"\n")
        await peer.send(b"\n" + request(id="end"))
        while (reply := await peer.read())["id"] != "end":
            assert "error" in reply or "result" in reply


async def test_blank_lines_and_carriage_returns_are_no_requests(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as peer:
        await peer.send(b"\n\r\n  \n" + request()[:-1] + b"\r\n")
        assert (await peer.read())["result"] == "status"


async def test_a_duplicate_key_counts_once(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as peer:
        await peer.send(b'{"jsonrpc":"2.0","id":1,"id":2,"method":"nope","method":"status.get"}\n')
        assert await peer.read() == {"jsonrpc": "2.0", "id": 2, "result": "status"}


# -- sizes


async def test_a_line_of_exactly_one_mib_is_taken(tmp_path):
    path = tmp_path / "s"
    line = request()[:-1]
    async with serving(path, STATUS), connected(path) as peer:
        await peer.send(b" " * (MIB - len(line)) + line + b"\n")
        assert (await peer.read())["result"] == "status"
        await peer.send(b" " * (MIB - len(line) + 1) + line + b"\n")
        assert (await peer.read())["error"]["data"]["code"] == "too_large"


async def test_a_line_of_ten_mib_is_skipped(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as peer:
        await peer.send(b"x" * (10 * MIB) + b"\n" + request(id="next"))
        too_large = await peer.read()
        assert (too_large["id"], too_large["error"]["code"]) == (None, -32013)
        assert (await peer.read())["id"] == "next"


async def test_an_endless_line_ends_the_connection(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS, limits=Limits(skipped_bytes=4 * MIB)) as server:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(str(path))
        sent = 0
        with anyio.fail_after(PATIENCE_S), contextlib.suppress(ConnectionError):
            while True:
                with contextlib.suppress(BlockingIOError):
                    sent += client.send(b"x" * MIB)
                await anyio.lowlevel.checkpoint()
        assert 4 * MIB <= sent < 8 * MIB
        await until(lambda: server.connections == 0)
        assert json.loads(client.recv(10_000))["error"]["data"]["code"] == "too_large"
        client.close()


async def test_an_answer_that_does_not_fit(tmp_path):
    path = tmp_path / "s"
    async with serving(path, {"status.get": lambda _s, _p: "x" * (2 * MIB)}), connected(path) as peer:
        reply = await peer.call("status.get", id="big")
        assert reply["error"]["data"]["code"] == "too_large"


async def test_a_batch_answer_that_does_not_fit_loses_only_what_is_too_much(tmp_path):
    path = tmp_path / "s"
    handlers = STATUS | {"mode.list": lambda _s, _p: "x" * (MIB // 3)}
    async with serving(path, handlers), connected(path) as peer:
        methods = ["status.get", "mode.list", "mode.list", "mode.list", "mode.list", "status.get"]
        await peer.send([{"jsonrpc": "2.0", "id": n, "method": m} for n, m in enumerate(methods)])
        replies = {reply["id"]: reply for reply in await peer.read()}
        assert sorted(replies) == list(range(6))
        assert replies[0]["result"] == replies[5]["result"] == "status"
        assert [n for n in replies if "error" in replies[n]] == [3, 4]
        assert replies[3]["error"]["data"]["code"] == "too_large"


async def test_a_full_batch_of_long_ids_still_fits(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as peer:
        await peer.send([{"jsonrpc": "2.0", "id": "i" * 4000 + str(n), "method": "status.get"} for n in range(256)])
        replies = await peer.read()
        assert len(replies) == 256


# -- half of something


async def test_a_last_line_without_a_newline_is_answered(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as peer:
        await peer.send(request()[:-1])
        peer.writer.write_eof()
        assert (await peer.read())["result"] == "status"
        assert await peer.ended()


async def test_half_a_request_at_the_end_is_an_error_and_runs_nothing(tmp_path):
    ran = []
    path = tmp_path / "s"
    async with serving(path, {"status.get": lambda _s, _p: ran.append(1)}), connected(path) as peer:
        await peer.send(request()[:-2])
        peer.writer.write_eof()
        assert (await peer.read())["error"]["code"] == -32700
        assert await peer.ended()
    assert not ran


async def test_a_request_in_single_bytes(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as peer:
        for byte in request():
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await peer.read())["result"] == "status"


# -- too many


async def test_256_clients_are_served_and_the_next_are_told(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS) as server, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(path)) for _ in range(256)]
        for n, peer in enumerate(peers):
            assert (await peer.call("status.get", id=n))["result"] == "status"
        for _ in range(44):
            async with connected(path) as extra:
                refusal = await extra.read()
                assert refusal["id"] is None
                assert refusal["error"]["data"]["code"] == "too_many_connections"
                assert await extra.ended()
        assert (await peers[255].call("status.get"))["result"] == "status"
        peers[0].writer.close()
        await until(lambda: server.connections == 255)
        async with connected(path) as late:
            assert (await late.call("status.get"))["result"] == "status"


async def test_too_many_waiting_requests_are_refused_one_by_one(tmp_path):
    path = tmp_path / "s"
    go = asyncio.Event()

    async def wait(_session, _params):
        await go.wait()
        return "waited"

    handlers = STATUS | {"operation.wait": wait}
    async with serving(path, handlers, limits=Limits(running=4)), connected(path) as peer:
        for n in range(6):
            await peer.send(request("operation.wait", id=n, params={"id": "1"}))
        refused = [await peer.read(), await peer.read()]
        assert [reply["id"] for reply in refused] == [4, 5]
        assert refused[0]["error"]["data"]["code"] == "rate_limited"
        assert refused[0]["error"]["data"]["retry_after_s"] > 0
        assert (await peer.call("status.get", id="still"))["result"] == "status"
        go.set()
        assert sorted([(await peer.read())["id"] for _ in range(4)]) == [0, 1, 2, 3]


# -- clients that do not read


async def test_a_client_that_never_reads_is_paused_and_then_dropped(tmp_path, log_entries):
    served = 0

    def status(_session, _params):
        nonlocal served
        served += 1
        return "x" * 100_000

    path = tmp_path / "s"
    limits = Limits(stall_s=0.3)
    async with serving(path, {"status.get": status, "mode.list": lambda _s, _p: []}, limits=limits) as server:
        deaf = socket.socket(socket.AF_UNIX)
        deaf.setblocking(False)
        deaf.connect(str(path))
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.send(request() * 100)
        async with connected(path) as other:
            assert (await other.call("mode.list"))["result"] == []
            await until(lambda: server.connections == 1)
            assert (await other.call("mode.list"))["result"] == []
        deaf.close()
    assert served < 40  # 1 MiB and what the kernel holds, not the thousands it asked for
    assert [entry["event"] for entry in log_entries] == ["client_dropped"]


async def test_a_slow_client_is_not_dropped(tmp_path):
    path = tmp_path / "s"
    asked = 60
    async with serving(path, {"status.get": lambda _s, _p: "x" * 100_000}, limits=Limits(stall_s=0.4)):
        slow = socket.socket(socket.AF_UNIX)
        slow.setblocking(False)
        slow.connect(str(path))
        slow.send(request() * asked)
        seen = b""
        with anyio.fail_after(PATIENCE_S * 2):
            while seen.count(b"\n") < asked:
                with contextlib.suppress(BlockingIOError):
                    seen += slow.recv(200_000)
                await anyio.sleep(0.02)
        slow.close()


async def test_a_deaf_subscriber_does_not_fill_the_memory(tmp_path):
    sent = 0

    def subscribe(session, _params):
        async def pump():
            nonlocal sent
            while not session.closed.is_set():
                await session.drained()
                if session.notify("event", {"data": "x" * 50_000}):
                    sent += 1
                await anyio.lowlevel.checkpoint()

        return Reply({"cursor": 0}, then=pump)

    path = tmp_path / "s"
    async with serving(path, STATUS | {"events.subscribe": subscribe}, limits=Limits(stall_s=0.3)) as server:
        deaf = socket.socket(socket.AF_UNIX)
        deaf.setblocking(False)
        deaf.connect(str(path))
        deaf.send(request("events.subscribe"))
        async with connected(path) as other:
            await until(lambda: sent > 5)
            assert (await other.call("status.get"))["result"] == "status"
            await until(lambda: server.connections == 1)
        deaf.close()
    assert sent < 100


async def test_a_flood_of_unheeding_notifications_drops_the_client(tmp_path, log_entries):
    def subscribe(session, _params):
        async def pump():
            while session.notify("event", {"data": "x" * 100_000}):
                await anyio.lowlevel.checkpoint()

        return Reply({"cursor": 0}, then=pump)

    path = tmp_path / "s"
    async with serving(path, {"events.subscribe": subscribe}, limits=Limits(dropped_bytes=3 * MIB)) as server:
        deaf = socket.socket(socket.AF_UNIX)
        deaf.setblocking(False)
        deaf.connect(str(path))
        deaf.send(request("events.subscribe"))
        await until(lambda: any(entry["event"] == "client_dropped" for entry in log_entries))
        await until(lambda: server.connections == 0)
        deaf.close()


# -- clients that want everything at once


async def test_a_flood_of_requests_lets_others_through(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as flood, connected(path) as other:

        async def read_all():
            while await flood.line() != b"":
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_all)
            for _ in range(20):
                flood.writer.write(request() * 2000)
                began = time.monotonic()
                assert (await other.call("status.get"))["result"] == "status"
                assert time.monotonic() - began < 2
            flood.writer.transport.abort()
            tasks.cancel_scope.cancel()


async def test_a_flood_of_rubbish_lets_others_through(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as flood, connected(path) as other:
        flood.writer.write(b"{]\n" * 50_000)
        for _ in range(5):
            assert (await other.call("status.get"))["result"] == "status"


async def test_clients_that_vanish_in_the_middle(tmp_path):
    path = tmp_path / "s"

    async def wait(session, _params):
        await session.closed.wait()

    dice = random.Random(3)
    async with serving(path, STATUS | {"operation.wait": wait}) as server:
        for _ in range(100):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            what = request("operation.wait", params={"id": "1"}) + request() * dice.randrange(3)
            client.sendall(what[: dice.randrange(len(what))])
            if dice.random() < 0.3:
                await anyio.lowlevel.checkpoint()
            client.close()
        await until(lambda: server.connections == 0)
        async with connected(path) as peer:
            assert (await peer.call("status.get"))["result"] == "status"
