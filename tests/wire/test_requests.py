"""Reading requests: whatever bytes come, an answer and never an exception."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gpumodd.wire.codec import LINE_LIMIT, encode_error, encode_notification, encode_request, encode_result
from gpumodd.wire.envelope import Call, Invalid, read_line
from gpumodd.wire.errors import NUMBERS, RpcError
from gpumodd.wire.methods import METHODS, NOTIFICATIONS, Access

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = st.fixed_dictionaries(
    {}, optional={"jsonrpc": st.just("2.0") | JSON, "method": st.just("status.get") | JSON, "params": JSON, "id": JSON}
)


def flat(read):
    return read if isinstance(read, list) else [read]


@given(st.binary(max_size=200))
def test_any_bytes(line):
    for item in flat(read_line(line)):
        assert isinstance(item, (Call, Invalid))


@given(JSON)
def test_any_json(value):
    for item in flat(read_line(json.dumps(value).encode())):
        if isinstance(item, Invalid):
            json.loads(encode_error(item.id, item.error))


@given(MEMBERS)
def test_anything_like_a_request(request):
    read = read_line(json.dumps(request).encode())
    fine = (
        request.get("jsonrpc") == "2.0"
        and isinstance(request.get("method"), str)
        and isinstance(request.get("params", {}), (dict, list))
        and not isinstance(request.get("id"), (bool, dict, list))
    )
    assert isinstance(read, Call) == fine
    if isinstance(read, Call):
        assert bool(read.id) == ("id" in request)
        assert json.loads(bytes(read.id) or b"null") == request.get("id")
    else:
        assert read.error.code in ("invalid_request", "parse_error")


@given(st.text(max_size=20), JSON)
def test_a_request_survives_the_way(method, params):
    line = encode_request(7, method, params if isinstance(params, (dict, list)) else [params])
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    read = read_line(line[:-1])
    assert isinstance(read, Call)
    assert (read.method, bytes(read.id)) == (method, b"7")


# -- what goes out


@pytest.mark.parametrize("size", [10, LINE_LIMIT - 100, LINE_LIMIT, LINE_LIMIT * 3])
def test_no_line_is_longer_than_the_limit(size):
    text = "x" * size
    assert len(encode_result(Raw(b"1"), text)) <= LINE_LIMIT
    assert len(encode_error(Raw(b"1"), RpcError("failed", text, hint=text, details={"log": [text]}))) <= LINE_LIMIT
    assert len(encode_error(Raw(json.dumps(text).encode()), RpcError("failed", text))) <= LINE_LIMIT
    for encode in (lambda: encode_notification("event", text), lambda: encode_request(1, "status.get", text)):
        try:
            assert len(encode()) <= LINE_LIMIT
        except RpcError as error:
            assert error.code == "too_large"
            assert size > LINE_LIMIT - 200


def test_an_error_that_does_not_fit_keeps_its_code_and_its_id():
    line = encode_error(Raw(b'"me"'), RpcError("failed", "cannot go on", details={"log": ["x" * LINE_LIMIT]}))
    reply = json.loads(line)
    assert (reply["id"], reply["error"]["code"], reply["error"]["message"]) == ("me", -32011, "cannot go on")


def test_an_error_in_full():
    error = RpcError("not_found", "cannot find 'x'", hint="there are: a", details={"id": "x"})
    assert json.loads(encode_error(Raw(b"1"), error)) == {
        "jsonrpc": "2.0",
        "id": 1,
        "error": {
            "code": -32004,
            "message": "cannot find 'x'",
            "data": {"code": "not_found", "hint": "there are: a", "details": {"id": "x"}},
        },
    }


def test_an_undeclared_code_is_a_bug():
    with pytest.raises(KeyError):
        RpcError("nonsense", "cannot")


# -- the table


def test_the_published_methods():
    assert set(METHODS) == {
        "daemon.hello",
        "daemon.reload",
        "daemon.shutdown",
        "status.get",
        "device.list",
        "service.list",
        "service.get",
        "service.start",
        "service.stop",
        "service.restart",
        "service.logs",
        "service.explain",
        "mode.list",
        "mode.get",
        "mode.create",
        "mode.delete",
        "mode.simulate",
        "mode.switch",
        "operation.list",
        "operation.get",
        "operation.wait",
        "operation.cancel",
        "events.subscribe",
        "model.inspect",
        "config.check",
    }
    assert set(NOTIFICATIONS) == {"event", "progress"}


def test_what_only_reads_needs_no_rights():
    changing = {name for name, method in METHODS.items() if method.access > Access.READ}
    assert changing == {
        "daemon.reload",
        "daemon.shutdown",
        "service.start",
        "service.stop",
        "service.restart",
        "mode.create",
        "mode.delete",
        "mode.switch",
        "operation.cancel",
    }


def test_the_published_numbers():
    assert NUMBERS["permission_denied"] == -32001
    assert NUMBERS["not_found"] == -32004
    assert NUMBERS["invalid_config"] == -32005
    assert NUMBERS["timeout"] == -32008
    assert NUMBERS["conflict"] == -32009
    assert NUMBERS["refused"] == -32010
    assert NUMBERS["failed"] == -32011
    assert NUMBERS["too_large"] == NUMBERS["too_many_connections"] == NUMBERS["rate_limited"] == -32013


@pytest.mark.parametrize("name", METHODS)
@given(params=JSON)
def test_any_parameters_are_taken_or_refused(name, params):
    if not isinstance(params, (dict, list)):
        params = [params]
    try:
        METHODS[name].decode_params(Raw(json.dumps(params).encode()))
    except RpcError as error:
        assert error.code == "invalid_params"
        assert error.message.startswith(f"cannot call {name}: ")


def test_a_simulation_is_of_a_mode_or_of_services():
    simulate = METHODS["mode.simulate"]
    assert simulate.decode_params(Raw(b'{"id":"rag","add":["x"]}')).add == ["x"]
    assert simulate.decode_params(Raw(b'{"services":[]}')).services == []
    for wrong in (b"{}", b'{"id":"rag","services":[]}', b'{"id":null}'):
        with pytest.raises(RpcError, match="either"):
            simulate.decode_params(Raw(wrong))


def test_contexts_are_tokens_by_service():
    simulate = METHODS["mode.simulate"]
    assert simulate.decode_params(Raw(b'{"id":"rag","context":{"x":4096}}')).context == {"x": 4096}
    assert simulate.decode_params(Raw(b'["rag",null,[],[],{"x":1}]')).context == {"x": 1}
    for wrong in (b"8", b"null", b"[]", b'{"":1}', b'{"x":0}', b'{"x":-1}', b'{"x":1.5}', b'{"x":true}', b'{"x":1e99}'):
        with pytest.raises(RpcError, match=r"cannot call mode\.simulate: .*context"):
            simulate.decode_params(Raw(b'{"id":"rag","context":' + wrong + b"}"))


def test_deep_parameters_are_refused():
    with pytest.raises(RpcError, match="nested too deeply"):
        METHODS["service.get"].decode_params(Raw(b"[" * 100_000 + b"]" * 100_000))
