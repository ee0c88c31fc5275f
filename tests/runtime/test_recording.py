"""The recording's format: every event survives it, and what is no recording is refused with a reason."""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.state import State
from gpumodd.runtime import recording
from gpumodd.runtime.recording import Batch, Mark, Unreadable

some = settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**63), 2**63 - 1)
VALUES = st.none() | st.booleans() | WHOLE | NUMBERS | WORDS | st.lists(WORDS, max_size=2)


def strategy(hint: object) -> st.SearchStrategy:
    """Any value of this type, as the core's dataclasses declare them."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    simple = {bool: st.booleans(), int: WHOLE, float: NUMBERS, str: WORDS, object: VALUES, type(None): st.none()}
    if hint in simple:
        return simple[hint]
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(strategy, args))
    if origin is tuple and args[1:] == (...,):
        return st.lists(strategy(args[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(strategy, args))
    if origin in (dict, Mapping):
        return st.dictionaries(strategy(args[0]), strategy(args[1]), max_size=2)
    if origin in (set, frozenset):
        return st.sets(strategy(args[0]), max_size=2).map(origin)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    assert dataclasses.is_dataclass(hint), f"the codec's test does not know {hint}"
    hints = typing.get_type_hints(hint)
    return st.deferred(lambda: st.builds(hint, **{f.name: strategy(hints[f.name]) for f in dataclasses.fields(hint)}))


EVENTS = [kind for kind in vars(ev).values() if isinstance(kind, type) and issubclass(kind, ev.Event)]


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_event_comes_back_as_it_was(kind):
    @some
    @given(st.lists(strategy(kind), min_size=1, max_size=3))
    def comes_back(events):
        entry = recording.read_entry(recording.batch(7, events, []))
        assert isinstance(entry, Batch)
        assert recording.read_events(entry) == tuple(events)

    comes_back()


@some
@given(st.lists(st.one_of(*(strategy(kind) for kind in typing.get_args(fx.Effect))), max_size=4))
def test_every_effect_is_told_in_short(effects):
    entry = recording.read_entry(recording.batch(7, [], effects))
    told = [[name, msgspec.json.decode(raw)] for name, raw in entry.effects]
    assert told == recording.shown(effects)
    assert len(told) == len(effects)


@some
@given(strategy(State))
def test_every_state_comes_back_as_it_was(state):
    line = recording.head(state, version="1", boot_id="b", epoch=1.5, n=3)
    head, back = recording.read_head(line)
    assert (head.version, head.boot_id, head.epoch, head.n) == ("1", "b", 1.5, 3)
    assert back == state
    assert recording.parts(back) == recording.parts(state)


def test_a_state_has_no_closures_and_the_parts_of_it_are_all_of_it():
    whole = {field.name for field in dataclasses.fields(State)} - set(recording.SPLIT)
    assert set(recording.parts(State())) == whole


def test_a_mark_comes_back():
    entry = recording.read_entry(recording.mark(4, {"at": b"1.5", "tracks.a": b'{"unit":null}'}, ["tracks.b"]))
    assert isinstance(entry, Mark)
    assert (entry.n, {k: bytes(v) for k, v in entry.parts.items()}) == (4, {"at": b"1.5", "tracks.a": b'{"unit":null}'})
    assert entry.gone == ["tracks.b"]


STATE = recording.head(State(), version="1", boot_id="b", epoch=0.0, n=0).decode()
BAD_HEADS = {
    "": "not an event log",
    "hello": "not an event log",
    "[]": "not an event log",
    "{}": "not an event log",
    '"\\ud800': "not an event log",
    "[" * 100_000: "not an event log",
    '{"log": "somebody else\'s", "format": 1}': 'of "somebody else\'s"',
    STATE.replace('"format":1', '"format":2'): "its format is 2, this version reads 1",
    STATE.replace('"format":1', '"format":"1"'): "not an event log",
    STATE.replace('"n":0', '"n":"x"'): "its head is damaged",
    STATE.replace('"state":{', '"status":{'): "its head is damaged",
    STATE.replace('"at":0.0', '"at":"noon"'): "its head is damaged",
    STATE.replace('"tracks":{}', f'"tracks":{"[" * 100_000 + "]" * 100_000}'): "not an event log",
}


@pytest.mark.parametrize("line", BAD_HEADS, ids=range(len(BAD_HEADS)))
def test_what_is_no_head_is_refused(line):
    with pytest.raises(Unreadable) as caught:
        recording.read_head(line.encode())
    assert BAD_HEADS[line] in caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000),
        *(b'{"kind":"batch"}', b'{"kind":"party","n":1}', b'{"kind":"mark","n":1,"parts":[]}'),
        b'{"kind":"batch","n":1.5,"events":[],"effects":[]}',
    ],
)
def test_what_is_no_line_is_refused(line):
    with pytest.raises(Unreadable, match="no line of an event log"):
        recording.read_entry(line)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (["Exploded", {"at": 1.0}], "no event is called 'Exploded'"),
        (["Probed", {"at": 1.0}], "its event Probed is damaged: .*fact"),
        (["Ticked", {"at": "noon"}], "its event Ticked is damaged"),
        (["UnitsObserved", {"at": 1.0, "facts": [{"service": "a", "active": "asleep", "at": 1.0}]}], "asleep"),
    ],
)
def test_what_is_no_event_is_refused(event, told):
    line = msgspec.json.encode({"kind": "batch", "n": 1, "events": [event], "effects": []})
    with pytest.raises(Unreadable, match=told):
        recording.read_events(recording.read_entry(line))
