"""The JSON-RPC 2.0 specification, its own examples included, against a real server."""

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from gpumodd.wire.errors import RpcError
from tests.support.rpc import connected, serving


def get(_session, params):
    return {"id": params.id}


async def later(_session, params):
    await anyio.lowlevel.checkpoint()
    return {"id": params.id}


def create(_session, params):
    return {"id": params.id, "name": params.name, "services": params.services}


HANDLERS = {
    "service.get": get,
    "mode.get": later,
    "mode.create": create,
    "status.get": lambda _session, _params: "status",
}


async def ask(path: Path, line: str | bytes):
    """The reply to one line, and proof that the connection still works and nothing else was said."""
    async with serving(path, HANDLERS), connected(path) as peer:
        await peer.send((line if isinstance(line, bytes) else line.encode()) + b"\n")
        said = []
        for probe in ("one", "two"):  # a handler that waits is overtaken by the first, not by the second
            await peer.send({"jsonrpc": "2.0", "id": probe, "method": "status.get"})
            while not said or said[-1] != {"jsonrpc": "2.0", "id": probe, "result": "status"}:
                said.append(await peer.read())
        replies = [reply for reply in said if not isinstance(reply, dict) or reply["id"] not in ("one", "two")]
        assert len(replies) <= 1
        return replies[0] if replies else None


def code(reply) -> int:
    assert set(reply) == {"jsonrpc", "id", "error"}
    assert set(reply["error"]) == {"code", "message", "data"}
    assert reply["error"]["message"].startswith("cannot ")
    assert {"code", "hint", "details"} <= set(reply["error"]["data"])
    return reply["error"]["code"]


# -- the examples of the specification, with methods that exist here


async def test_positional_parameters(tmp_path):
    reply = await ask(tmp_path / "s", '{"jsonrpc": "2.0", "method": "service.get", "params": ["a"], "id": 1}')
    assert reply == {"jsonrpc": "2.0", "result": {"id": "a"}, "id": 1}


async def test_positional_parameters_follow_the_order_of_the_documentation(tmp_path):
    line = '{"jsonrpc":"2.0","method":"mode.create","params":["rag","RAG","both",["a","b"]],"id":2}'
    assert (await ask(tmp_path / "s", line))["result"] == {"id": "rag", "name": "RAG", "services": ["a", "b"]}


async def test_named_parameters(tmp_path):
    reply = await ask(tmp_path / "s", '{"jsonrpc":"2.0","method":"mode.get","params":{"id":"x"},"id":3}')
    assert reply == {"jsonrpc": "2.0", "result": {"id": "x"}, "id": 3}


@pytest.mark.parametrize("method", ["service.get", "mode.get", "no.such", "foobar"])
async def test_a_notification_has_no_reply_whatever_becomes_of_it(tmp_path, method):
    assert await ask(tmp_path / "s", f'{{"jsonrpc": "2.0", "method": "{method}", "params": {{}}}}') is None


async def test_an_unknown_method(tmp_path):
    reply = await ask(tmp_path / "s", '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}')
    assert code(reply) == -32601
    assert reply["id"] == "1"


async def test_invalid_json(tmp_path):
    reply = await ask(tmp_path / "s", '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]')
    assert code(reply) == -32700
    assert reply["id"] is None


async def test_an_invalid_request(tmp_path):
    reply = await ask(tmp_path / "s", '{"jsonrpc": "2.0", "method": 1, "params": "bar"}')
    assert code(reply) == -32600
    assert reply["id"] is None


async def test_a_batch_of_invalid_json(tmp_path):
    line = '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},{"jsonrpc": "2.0", "method"]'
    reply = await ask(tmp_path / "s", line)
    assert code(reply) == -32700
    assert reply["id"] is None


async def test_an_empty_batch(tmp_path):
    reply = await ask(tmp_path / "s", "[]")
    assert code(reply) == -32600
    assert reply["id"] is None


@pytest.mark.parametrize("count", [1, 3])
async def test_a_batch_of_numbers(tmp_path, count):
    reply = await ask(tmp_path / "s", str(list(range(1, count + 1))))
    assert [code(member) for member in reply] == [-32600] * count
    assert all(member["id"] is None for member in reply)


async def test_a_mixed_batch(tmp_path):
    reply = await ask(
        tmp_path / "s",
        '[{"jsonrpc": "2.0", "method": "service.get", "params": ["a"], "id": "1"},'
        '{"jsonrpc": "2.0", "method": "service.get", "params": ["notify"]},'
        '{"jsonrpc": "2.0", "method": "mode.get", "params": ["b"], "id": "2"},'
        '{"foo": "boo"},'
        '{"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},'
        '{"jsonrpc": "2.0", "method": "status.get", "id": "9"}]',
    )
    by_id = {member["id"]: member for member in reply}
    assert len(reply) == 5
    assert by_id["1"]["result"] == {"id": "a"}
    assert by_id["2"]["result"] == {"id": "b"}
    assert code(by_id[None]) == -32600
    assert code(by_id["5"]) == -32601
    assert by_id["9"]["result"] == "status"


async def test_a_batch_of_notifications_has_no_reply(tmp_path):
    line = (
        '[{"jsonrpc":"2.0","method":"service.get","params":["a"]},{"jsonrpc":"2.0","method":"mode.get","params":["b"]}]'
    )
    assert await ask(tmp_path / "s", line) is None


# -- ids


@pytest.mark.parametrize(
    "id",
    [
        "1",
        "-7",
        "1.5",
        "1e3",
        '"a"',
        '""',
        '"\\u00e9\\n"',
        '"é😀"',
        "null",
        "0",
        "123456789012345678901234567890",
        "1e999",
    ],
)
async def test_an_id_comes_back_as_it_was_written(tmp_path, id):
    path = tmp_path / "s"
    async with serving(path, HANDLERS), connected(path) as peer:
        await peer.send(f'{{"jsonrpc":"2.0","method":"status.get","id":{id}}}\n')
        assert await peer.line() == f'{{"jsonrpc":"2.0","id":{id},"result":"status"}}\n'.encode()


@pytest.mark.parametrize("id", ["true", "false", "{}", "[1]", '{"a":1}'])
async def test_ids_that_are_none(tmp_path, id):
    reply = await ask(tmp_path / "s", f'{{"jsonrpc":"2.0","method":"status.get","id":{id}}}')
    assert code(reply) == -32600
    assert reply["id"] is None


async def test_an_invalid_request_keeps_its_id(tmp_path):
    reply = await ask(tmp_path / "s", '{"jsonrpc":"2.0","method":7,"id":5}')
    assert code(reply) == -32600
    assert reply["id"] == 5


@pytest.mark.parametrize("version", ['"1.0"', "2.0", "null", '"2"'])
async def test_only_version_2_0(tmp_path, version):
    assert code(await ask(tmp_path / "s", f'{{"jsonrpc":{version},"method":"status.get","id":1}}')) == -32600


async def test_the_version_must_be_there(tmp_path):
    assert code(await ask(tmp_path / "s", '{"method":"status.get","id":1}')) == -32600


# -- parameters


@pytest.mark.parametrize("params", ['"bar"', "1", "null", "true"])
async def test_parameters_must_be_structured(tmp_path, params):
    line = f'{{"jsonrpc":"2.0","method":"status.get","id":1,"params":{params}}}'
    assert code(await ask(tmp_path / "s", line)) == -32600


@pytest.mark.parametrize(
    "params",
    ["{}", '{"id":1}', '{"id":null}', '{"id":""}', '{"id":"a","x":1}', '{"id":["a"]}', "[]", '["a","b"]', "[1]"],
)
async def test_wrong_parameters(tmp_path, params):
    reply = await ask(tmp_path / "s", f'{{"jsonrpc":"2.0","method":"service.get","id":1,"params":{params}}}')
    assert code(reply) == -32602
    assert reply["error"]["data"]["code"] == "invalid_params"
    assert reply["error"]["data"]["hint"] == "service.get takes: id"


@pytest.mark.parametrize("id", ["../etc", "Rag", "", "-a", "a" * 65, "a\\n", "é"])
async def test_a_new_mode_needs_a_good_id(tmp_path, id):
    line = f'{{"jsonrpc":"2.0","method":"mode.create","id":1,"params":{{"id":"{id}","services":[]}}}}'
    assert code(await ask(tmp_path / "s", line)) == -32602


async def test_no_parameters_at_all(tmp_path):
    for params in ("", ',"params":{}', ',"params":[]'):
        reply = await ask(tmp_path / "s", f'{{"jsonrpc":"2.0","method":"status.get","id":1{params}}}')
        assert reply["result"] == "status"


# -- errors of handlers


async def test_a_refusal_travels_whole(tmp_path):
    def refuse(_session, _params):
        raise RpcError("refused", "cannot start a", hint="stop b", details={"reasons": []}, retry_after_s=2)

    path = tmp_path / "s"
    async with serving(path, {"status.get": refuse}), connected(path) as peer:
        assert (await peer.call("status.get"))["error"] == {
            "code": -32010,
            "message": "cannot start a",
            "data": {"code": "refused", "hint": "stop b", "details": {"reasons": []}, "retry_after_s": 2},
        }


@pytest.mark.parametrize("waits", [False, True])
async def test_a_bug_is_logged_once_and_told_nobody(tmp_path, log_entries, waits):
    def crash(_session, _params):
        raise ZeroDivisionError("secret")

    async def crash_later(_session, _params):
        await anyio.lowlevel.checkpoint()
        raise ZeroDivisionError("secret")

    path = tmp_path / "s"
    async with serving(path, {"status.get": crash_later if waits else crash}), connected(path) as peer:
        reply = await peer.call("status.get")
    assert code(reply) == -32603
    assert "secret" not in str(reply)
    assert "ZeroDivisionError" not in str(reply)
    assert [entry["event"] for entry in log_entries] == ["handler_failed"]
    log_entries.clear()


async def test_a_result_that_cannot_be_encoded_is_a_bug(tmp_path, log_entries):
    path = tmp_path / "s"
    async with serving(path, {"status.get": lambda _s, _p: object()}), connected(path) as peer:
        assert code(await peer.call("status.get")) == -32603
    assert [entry["event"] for entry in log_entries] == ["handler_failed"]
    log_entries.clear()


async def test_not_a_number_becomes_null(tmp_path):
    path = tmp_path / "s"
    async with serving(path, {"status.get": lambda _s, _p: [float("nan")]}), connected(path) as peer:
        assert (await peer.call("status.get"))["result"] == [None]


# -- what there is


async def test_hello_names_what_is_served(tmp_path):
    path = tmp_path / "s"
    async with serving(path, HANDLERS), connected(path) as peer:
        hello = (await peer.call("daemon.hello", {"client": "test", "protocol": 1}))["result"]
    assert hello["capabilities"] == sorted([*HANDLERS, "daemon.hello"])
    assert (hello["protocol"], hello["version"], hello["pid"]) == (1, "1.2.3", 4711)
    assert hello["started_at"] == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize("method", ["service.sleep", "service.wake", "model.list", "mode.switch", "rpc.discover", ""])
async def test_what_is_not_served_does_not_exist(tmp_path, method):
    assert code(await ask(tmp_path / "s", f'{{"jsonrpc":"2.0","method":"{method}","id":1}}')) == -32601


async def test_a_typo_gets_a_hint(tmp_path):
    reply = await ask(tmp_path / "s", '{"jsonrpc":"2.0","method":"status.gett","id":1}')
    assert reply["error"]["data"]["hint"] == "did you mean status.get?"
