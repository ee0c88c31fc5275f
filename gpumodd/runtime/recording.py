"""The recording's format: the lines that an event log consists of, written and read.

The head of a file holds the engine's complete state, so each file replays by itself. A `batch` line holds events as
the engine was given them and, in short, what it wanted done; a `mark` holds the parts of the state that have changed
since the head or the mark before it. Owns the codec; it opens no file.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeAlias

import msgspec

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.state import State

LOG = "gpumodd events"
FORMAT = 1
SPLIT = ("tracks", "operations")  # the parts of the state that are marked entry by entry

Tagged: TypeAlias = tuple[str, msgspec.Raw]


class Unreadable(Exception):
    """A line, or a whole file, that is no recording this version can read."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Head(msgspec.Struct, kw_only=True, frozen=True):
    """The first line of a file."""

    log: str = LOG
    format: int = FORMAT
    version: str = "?"  # of gpumodd
    boot_id: str = ""
    epoch: float = 0.0  # wall-clock time at boot time zero
    n: int = 0  # batches that the engine had handled before
    state: msgspec.Raw


class Batch(msgspec.Struct, kw_only=True, frozen=True, tag_field="kind", tag="batch"):
    """One batch of events. `effects` is null when the engine broke on it."""

    n: int
    events: list[Tagged]
    effects: list[Tagged] | None


class Mark(msgspec.Struct, kw_only=True, frozen=True, tag_field="kind", tag="mark"):
    """What the state had become after batch `n`: the parts that differ from what was written before."""

    n: int
    parts: dict[str, msgspec.Raw]
    gone: list[str] = []


# -- writing --------------------------------------------------------------------------------------------------


def _plain(value: object) -> object:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise TypeError(f"cannot record {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_canonical = msgspec.json.Encoder(enc_hook=_plain, order="deterministic")  # sets have an order of their own


def head(state: State, *, version: str, boot_id: str, epoch: float, n: int) -> bytes:
    """The line a file begins with."""
    raw = msgspec.Raw(_encoder.encode(state))
    return _encoder.encode(Head(version=version, boot_id=boot_id, epoch=epoch, n=n, state=raw)) + b"\n"


def batch(n: int, events: Iterable[ev.Event], effects: Iterable[fx.Effect] | None) -> bytes:
    """The line for one batch."""
    told = [[type(event).__name__, event] for event in events]
    wanted = None if effects is None else [in_short(effect) for effect in effects]
    return _encoder.encode({"kind": "batch", "n": n, "events": told, "effects": wanted}) + b"\n"


def mark(n: int, parts: Mapping[str, bytes], gone: Iterable[str]) -> bytes:
    """The line that says what has become of these parts of the state."""
    raw = {name: msgspec.Raw(part) for name, part in parts.items()}
    return _encoder.encode(Mark(n=n, parts=raw, gone=list(gone))) + b"\n"


def pieces(state: State) -> Iterator[tuple[str, object]]:
    """The parts of the state, by name."""
    for each in fields(state):
        value = getattr(state, each.name)
        if each.name in SPLIT:
            yield from ((f"{each.name}.{key}", entry) for key, entry in value.items())
        else:
            yield each.name, value


def part(piece: object) -> bytes:
    """A part, encoded; equal ones are encoded alike."""
    return _canonical.encode(piece)


def parts(state: State) -> dict[str, bytes]:
    """All parts, encoded."""
    return {name: part(piece) for name, piece in pieces(state)}


def in_short(effect: fx.Effect) -> tuple[str, object]:
    """An effect's name and what tells it from others. Operations are not repeated in full with every step: the state
    that a mark compares holds them."""
    match effect:
        case fx.Save():
            return "Save", {"operations": [op.id for op in effect.operations]}
        case fx.Announce(change=fx.PhaseChanged() as change):
            return "PhaseChanged", change
        case fx.Announce(change=fx.ModeChanged() as change):
            return "ModeChanged", change
        case fx.Announce(change=fx.OperationChanged(operation=op)):
            return "OperationChanged", {"operation": op.id, "kind": op.kind, "target": op.target, "state": op.state}
        case fx.Announce(change=fx.StepChanged(operation=op, step=step)):
            told = {"step": step.id, "verb": step.verb, "service": step.service, "state": step.state}
            return "StepChanged", {"operation": op.id, **told}
        case _:
            return type(effect).__name__, effect


def shown(effects: Iterable[fx.Effect]) -> list[Any]:
    """Effects in short, as plain values that compare with what was read."""
    return [msgspec.json.decode(_encoder.encode(in_short(effect))) for effect in effects]


# -- reading --------------------------------------------------------------------------------------------------

EVENTS = {
    name: msgspec.json.Decoder(kind)
    for name, kind in vars(ev).items()
    if isinstance(kind, type) and issubclass(kind, ev.Event)
}
_heads = msgspec.json.Decoder(Head)
_states = msgspec.json.Decoder(State)
_entries = msgspec.json.Decoder(Batch | Mark)
BAD = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)


class _Label(msgspec.Struct):
    """What every version's head says of itself."""

    log: str
    format: int
    version: str = "?"


def read_head(line: bytes) -> tuple[Head, State]:
    """The head and the state it holds; raises Unreadable."""
    try:
        label = msgspec.json.decode(line, type=_Label)
    except BAD:
        raise Unreadable("it is not an event log of gpumodd", "they are in the folder `events` of the state") from None
    if label.log != LOG:
        raise Unreadable(f"it is not an event log of gpumodd but of {label.log[:40]!r}")
    if label.format != FORMAT:
        raise Unreadable(
            f"its format is {label.format}, this version reads {FORMAT}",
            f"gpumodd {label.version[:40]} wrote it; replay it with that version",
        )
    try:
        found = _heads.decode(line)
        return found, _states.decode(found.state)
    except BAD as error:
        raise Unreadable(f"its head is damaged: {error}", f"gpumodd {label.version[:40]} wrote it") from None


def read_entry(line: bytes) -> Batch | Mark:
    """Any line but the first; raises Unreadable."""
    try:
        entry: Batch | Mark = _entries.decode(line)
    except BAD as error:
        raise Unreadable(f"it is no line of an event log: {error}") from None
    return entry


def read_events(entry: Batch) -> tuple[ev.Event, ...]:
    """The events of a batch; raises Unreadable."""
    found: list[ev.Event] = []
    for name, raw in entry.events:
        decoder = EVENTS.get(name)
        if decoder is None:
            raise Unreadable(f"no event is called {name[:40]!r}")
        try:
            found.append(decoder.decode(raw))
        except BAD as error:
            raise Unreadable(f"its event {name} is damaged: {error}") from None
    return tuple(found)
