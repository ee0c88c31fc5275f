"""The client's half: what it sends can be read, what it reads is matched, rubbish is a fault and nothing worse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gpumodd.wire.codec import LINE_LIMIT, encode_error, encode_notification, encode_result
from gpumodd.wire.envelope import Call, read_line
from gpumodd.wire.errors import RpcError
from gpumodd.wire.session import ClientSession, Notification, ProtocolFault, Reply


def feed(data):
    return list(ClientSession().feed(data))


def test_requests_are_numbered_and_readable():
    session = ClientSession()
    for expected in (1, 2):
        id, line = session.request("mode.switch", {"id": "rag"})
        call = read_line(line.rstrip())
        assert isinstance(call, Call)
        assert (id, bytes(call.id), call.method) == (expected, b"%d" % expected, "mode.switch")


def test_results_errors_and_notifications():
    refusal = RpcError("refused", "cannot", hint="try", details={"reasons": [1]}, retry_after_s=2.5)
    result, error, event = feed(
        encode_result(Raw(b"1"), {"a": 1}) + encode_error(Raw(b"2"), refusal) + encode_notification("event", {"b": 2})
    )
    assert isinstance(result, Reply)
    assert (result.id, bytes(result.result), result.error_object()) == (1, b'{"a":1}', None)
    assert isinstance(error, Reply)
    told = error.error_object()
    assert (told.code, told.message, told.data.code, told.data.retry_after_s) == (-32010, "cannot", "refused", 2.5)
    assert isinstance(event, Notification)
    assert (event.method, bytes(event.params)) == ("event", b'{"b":2}')


@pytest.mark.parametrize("id", [b"null", b'"1"', b"1.5"])
def test_an_id_that_is_none_of_ours_matches_nothing(id):
    (reply,) = feed(encode_result(Raw(id), 1))
    assert reply.id is None


def test_a_null_result_is_a_result():
    (reply,) = feed(encode_result(Raw(b"1"), None))
    assert (reply.id, bytes(reply.result), reply.error_object()) == (1, b"null", None)


@pytest.mark.parametrize("error", [b'{"code":"x"}', b"17", b'"bad"', b"[]", b'{"code":1,"message":"m","data":7}'])
def test_a_malformed_error_is_still_an_error(error):
    (reply,) = feed(b'{"jsonrpc":"2.0","id":1,"error":%b}\n' % error)
    told = reply.error_object()
    assert told is not None
    assert told.message


def test_a_foreign_error_without_data():
    (reply,) = feed(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"Method not found"}}\n')
    assert reply.error_object().data.code == ""


@given(st.binary(max_size=100))
def test_any_bytes_are_messages_or_a_fault(data):
    try:
        for message in feed(data + b"\n"):
            assert isinstance(message, (Reply, Notification))
    except ProtocolFault:
        pass


@pytest.mark.parametrize(
    "line", [b"x" * (LINE_LIMIT + 1), b"[" * 200_000 + b"\n", b'{"jsonrpc":"2.0","id":1,"result":"\xff"}\n', b"[]\n"]
)
def test_faults(line):
    with pytest.raises(ProtocolFault):
        feed(line)
