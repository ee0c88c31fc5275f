"""Reading requests: one line in, calls or errors out, by the JSON-RPC 2.0 specification.

Never raises for what a client sent, whatever it sent.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from gpumodd.wire.codec import NULL
from gpumodd.wire.errors import RpcError

BATCH_LIMIT = 256


class Call(Struct):
    """A well-formed request. `id` is its JSON text, echoed byte for byte; empty for a notification."""

    jsonrpc: str
    method: str
    params: Raw = Raw()
    id: Raw = Raw()


class Invalid(Struct):
    """Something that is answered with an error before any method is looked up."""

    id: Raw
    error: RpcError


_call = msgspec.json.Decoder(Call)
_members = msgspec.json.Decoder(list[Raw])
_anything = msgspec.json.Decoder()


def read_line(line: bytes) -> Call | Invalid | list[Call | Invalid]:
    """A single request, or a list for a batch."""
    try:
        if not line.isascii():
            # Raw fields skip over strings unseen, so broken UTF-8 in them would be echoed.
            line.decode()
        if line.lstrip()[:1] == b"[":
            return _read_batch(line)
        return _read_one(line)
    except UnicodeDecodeError as error:
        return _unreadable(f"byte {error.start} is not UTF-8")
    except RecursionError:
        return _unreadable("it is nested too deeply")
    except msgspec.DecodeError as error:
        return _unreadable(str(error))


def _read_batch(line: bytes) -> Invalid | list[Call | Invalid]:
    members = _members.decode(line)
    if not members:
        return _invalid(NULL, "the batch is empty")
    if len(members) > BATCH_LIMIT:
        error = RpcError(
            "too_large",
            f"cannot take a batch of {len(members)} requests: at most {BATCH_LIMIT} are allowed",
            hint="send several smaller batches",
        )
        return Invalid(NULL, error)
    return [_read_one(bytes(member)) for member in members]


def _read_one(data: bytes) -> Call | Invalid:
    try:
        call = _call.decode(data)
    except msgspec.ValidationError:
        return _diagnose(data)
    if call.jsonrpc != "2.0" or not _is_id(call.id) or not _is_structured(call.params):
        return _diagnose(data)
    return call


def _diagnose(data: bytes) -> Invalid:
    """What is wrong with a request that is JSON but not a request; slow, and only for those."""
    try:
        request: Any = _anything.decode(data)
    except msgspec.ValidationError:  # a number out of range
        return _invalid(NULL, "a number in it is out of range")
    if not isinstance(request, dict):
        return _invalid(NULL, "it is not an object")
    raw_id = msgspec.json.decode(data, type=dict[str, Raw]).get("id", NULL)
    if not _is_id(raw_id):
        return _invalid(NULL, "`id` must be a string, a number or null")
    if request.get("jsonrpc") != "2.0":
        return _invalid(raw_id, '`jsonrpc` must be "2.0"')
    if not isinstance(request.get("method"), str):
        return _invalid(raw_id, "`method` must be a string")
    return _invalid(raw_id, "`params` must be an object or an array")


def _is_id(raw: Raw) -> bool:
    return bytes(raw)[:1] in _ID_STARTS


_ID_STARTS = frozenset(bytes([c]) for c in b'"-0123456789n') | {b""}


def _is_structured(raw: Raw) -> bool:
    return bytes(raw)[:1] in (b"", b"{", b"[")


def _invalid(id: Raw, what: str) -> Invalid:
    hint = 'a request looks like {"jsonrpc": "2.0", "id": 1, "method": "status.get"}'
    return Invalid(id, RpcError("invalid_request", f"cannot accept the request: {what}", hint=hint))


def _unreadable(what: str) -> Invalid:
    hint = "send one JSON object per line, in UTF-8"
    return Invalid(
        NULL,
        RpcError("parse_error", f"cannot read the line as JSON: {what[:1].lower() + what[1:]}", hint=hint),
    )
