"""What handlers and well-behaved clients may rely on: concurrency, order, notifications, what a hang-up ends."""

import asyncio
import json
import socket

import anyio
import pytest
from msgspec import Raw

from gpumodd.api.connection import Limits, Reply
from gpumodd.wire.methods import Access
from tests.support.rpc import PATIENCE_S, connected, serving


def request(method="status.get", id=1, **extra):
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method} | extra).encode() + b"\n"


async def until(condition):
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await anyio.sleep(0.005)


STATUS = {"status.get": lambda _session, _params: "status"}


class Gate:
    """A handler that waits until the test lets it go."""

    def __init__(self):
        self.go = asyncio.Event()
        self.began = 0
        self.cancelled = 0
        self.finished = 0

    async def __call__(self, _session, _params):
        self.began += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        return "done"


async def test_replies_come_when_they_are_ready(tmp_path):
    gate, path = Gate(), tmp_path / "s"
    async with serving(path, STATUS | {"operation.wait": gate}), connected(path) as peer:
        await peer.send(request("operation.wait", id="slow", params={"id": "1"}))
        assert (await peer.call("status.get", id="fast"))["result"] == "status"
        gate.go.set()
        assert await peer.read() == {"jsonrpc": "2.0", "id": "slow", "result": "done"}


async def test_a_batch_is_answered_when_all_of_it_is(tmp_path):
    gate, path = Gate(), tmp_path / "s"
    async with serving(path, STATUS | {"operation.wait": gate}), connected(path) as peer:
        await peer.send(
            [
                {"jsonrpc": "2.0", "id": 1, "method": "operation.wait", "params": ["1"]},
                {"jsonrpc": "2.0", "id": 2, "method": "status.get"},
            ]
        )
        assert (await peer.call("status.get", id="after"))["id"] == "after"
        gate.go.set()
        assert {reply["id"] for reply in await peer.read()} == {1, 2}


async def test_every_request_is_answered_once(tmp_path):
    async def later(_session, params):
        await anyio.sleep(len(params.id) % 3 / 1000)
        return params.id

    path = tmp_path / "s"
    async with serving(path, STATUS | {"service.get": later}), connected(path) as peer:
        for n in range(200):
            method, params = ("service.get", ["x" * (n % 7 + 1)]) if n % 2 else ("status.get", [])
            await peer.send(request(method, id=n, params=params))
        assert sorted([(await peer.read())["id"] for _ in range(200)]) == list(range(200))


async def test_a_result_may_be_encoded_already(tmp_path):
    path = tmp_path / "s"
    async with serving(path, {"status.get": lambda _s, _p: Raw(b'{"a":[1]}')}), connected(path) as peer:
        assert (await peer.call("status.get"))["result"] == {"a": [1]}


async def test_notifications_follow_the_reply(tmp_path):
    def subscribe(session, _params):
        async def pump():
            for n in range(3):
                await session.drained()
                session.notify("event", Raw(b'{"cursor":%d}' % n))
            await session.closed.wait()

        return Reply({"cursor": 0}, then=pump)

    path = tmp_path / "s"
    async with serving(path, STATUS | {"events.subscribe": subscribe}) as server:
        async with connected(path) as peer:
            assert (await peer.call("events.subscribe"))["result"] == {"cursor": 0}
            for n in range(3):
                assert await peer.read() == {"jsonrpc": "2.0", "method": "event", "params": {"cursor": n}}
            assert (await peer.call("status.get"))["result"] == "status"
        await until(lambda: server.connections == 0)


async def test_notifications_of_a_batch_follow_its_reply(tmp_path):
    def subscribe(session, _params):
        async def pump():
            session.notify("event", {})

        return Reply({"cursor": 0}, then=pump)

    path = tmp_path / "s"
    async with serving(path, STATUS | {"events.subscribe": subscribe}), connected(path) as peer:
        await peer.send([{"jsonrpc": "2.0", "id": 1, "method": "events.subscribe"}])
        assert isinstance(await peer.read(), list)
        assert (await peer.read())["method"] == "event"


async def test_a_broken_pump_is_logged_and_ends_nothing(tmp_path, log_entries):
    async def pump():
        raise ZeroDivisionError

    path = tmp_path / "s"
    handlers = STATUS | {"events.subscribe": lambda _s, _p: Reply({}, then=pump)}
    async with serving(path, handlers), connected(path) as peer:
        await peer.call("events.subscribe")
        await until(lambda: log_entries)
        assert (await peer.call("status.get"))["result"] == "status"
    assert [entry["event"] for entry in log_entries] == ["notifications_failed"]
    log_entries.clear()


# -- hanging up


async def test_a_wait_ends_with_its_client(tmp_path):
    gate, path = Gate(), tmp_path / "s"
    async with serving(path, {"operation.wait": gate}):
        async with connected(path) as peer:
            await peer.send(request("operation.wait", params={"id": "1"}))
            await until(lambda: gate.began)
        await until(lambda: gate.cancelled)


async def test_a_change_goes_on_without_its_client(tmp_path):
    gate, path = Gate(), tmp_path / "s"
    async with serving(path, {"mode.switch": gate}) as server:
        async with connected(path) as peer:
            await peer.send(request("mode.switch", params={"id": "rag", "wait": True}))
        await until(lambda: gate.began and server.connections == 0)
        gate.go.set()
        await until(lambda: gate.finished)
    assert not gate.cancelled


async def test_a_change_without_its_client_is_given_up_in_the_end(tmp_path):
    gate, path = Gate(), tmp_path / "s"
    async with serving(path, {"mode.switch": gate}, limits=Limits(abandon_s=0.1)):
        async with connected(path) as peer:
            await peer.send(request("mode.switch", params={"id": "rag", "wait": True}))
        await until(lambda: gate.began and gate.cancelled)


async def test_a_client_may_finish_sending_and_still_wait(tmp_path):
    gate, path = Gate(), tmp_path / "s"
    async with serving(path, {"operation.wait": gate}), connected(path) as peer:
        await peer.send(request("operation.wait", params={"id": "1"}))
        peer.writer.write_eof()
        await until(lambda: gate.began)
        with anyio.move_on_after(0.7):  # longer than it takes to notice one that is gone
            await peer.reader.read(1)
        gate.go.set()
        assert (await peer.read())["result"] == "done"
        assert await peer.ended()


async def test_a_client_that_finished_sending_and_then_went(tmp_path):
    gate, path = Gate(), tmp_path / "s"
    async with serving(path, {"operation.wait": gate}) as server:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.sendall(request("operation.wait", params={"id": "1"}))
        client.shutdown(socket.SHUT_WR)
        await until(lambda: gate.began)
        client.close()
        await until(lambda: gate.cancelled and server.connections == 0)


async def test_the_end_of_the_daemon_answers_those_who_wait(tmp_path):
    gate, path = Gate(), tmp_path / "s"
    async with serving(path, {"mode.switch": gate}) as server:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request("mode.switch", id="w", params={"id": "rag", "wait": True}))
        await until(lambda: gate.began)
    reply = json.loads(await reader.readline())
    assert reply["id"] == "w"
    assert reply["error"]["data"]["code"] == "conflict"
    assert await reader.read() == b""
    assert server.connections == 0
    writer.close()


async def test_the_end_of_the_daemon_waits_for_no_deaf_client(tmp_path):
    path = tmp_path / "s"
    deaf = socket.socket(socket.AF_UNIX)
    deaf.setblocking(False)
    served = []

    def status(_session, _params):
        served.append(1)
        return "x" * 900_000

    with anyio.fail_after(PATIENCE_S):
        async with serving(path, {"status.get": status}, limits=Limits(linger_s=0.1)) as server:
            deaf.connect(str(path))
            deaf.send(request() * 3)
            await until(lambda: served)
    await until(lambda: server.connections == 0)
    deaf.close()


# -- rights


def whoami(session, _params):
    return [session.access.name, session.client, session.actor.startswith("pid "), session.actor]


async def test_a_role_lowers_the_rights_for_good(tmp_path):
    path = tmp_path / "s"
    handlers = {
        "status.get": whoami,
        "mode.switch": lambda _s, _p: "switched",
        "mode.delete": lambda _s, _p: "deleted",
    }
    async with serving(path, handlers), connected(path) as peer:
        assert (await peer.call("status.get"))["result"][:3] == ["ADMIN", "", True]
        hello = await peer.call("daemon.hello", {"client": "mcp", "actor": "robot", "role": "operate"})
        assert hello["result"]["role"] == "operate"
        assert (await peer.call("status.get"))["result"] == ["OPERATE", "mcp", False, "robot"]
        assert (await peer.call("mode.switch", ["rag"]))["result"] == "switched"
        assert (await peer.call("mode.delete", ["rag"]))["error"]["code"] == -32001
        assert (await peer.call("daemon.hello", {"role": "admin"}))["error"]["code"] == -32001
        await peer.call("daemon.hello", {"role": "read"})
        refusal = (await peer.call("mode.switch", ["rag"]))["error"]
        assert refusal["data"]["code"] == "permission_denied"
        assert (await peer.call("status.get"))["result"][0] == "READ"
        async with connected(path) as other:
            assert (await other.call("mode.delete", ["rag"]))["result"] == "deleted"


async def test_an_unknown_role(tmp_path):
    path = tmp_path / "s"
    async with serving(path, STATUS), connected(path) as peer:
        assert (await peer.call("daemon.hello", {"role": "root"}))["error"]["code"] == -32602


def test_handlers_must_be_declared():
    from gpumodd.api.dispatch import Dispatcher
    from tests.support.rpc import IDENTITY

    with pytest.raises(ValueError, match="nonsense"):
        Dispatcher({"nonsense": whoami}, IDENTITY)


def test_access_is_ordered():
    assert Access.READ < Access.OPERATE < Access.ADMIN
