"""Replaying an event log: a fresh engine is given what the recorded one was given, and both are compared.

Owns the reading of files that may be cut short, damaged or somebody else's, and the comparison. It prints nothing.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.runtime import recording
from gpumodd.runtime.recording import Batch, Mark, Unreadable

LINE_LIMIT = 64 << 20  # bytes; a head holds the whole state, and even a thousand services need a fraction of this
CHUNK = 1 << 16
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One batch, handled again."""

    n: int
    events: tuple[ev.Event, ...]
    effects: tuple[fx.Effect, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first place at which the replay is not what was recorded."""

    n: int
    where: str
    recorded: object
    replayed: object


class Replay:
    """One file. Go through `batches`; afterwards the rest says how it went."""

    def __init__(self, path: Path) -> None:
        """Reads the head; raises Unreadable."""
        self._lines = Lines(path)
        first = next(self._lines, None)
        if first is None:
            raise Unreadable("it is empty, or cut short in its first line")
        try:
            self.head, state = recording.read_head(first)
            self._expected = recording.parts(state)
        except Unreadable:
            raise
        except RecursionError:
            raise Unreadable("its head is nested too deeply") from None
        self.engine = Engine(state)
        self.n = self.head.n
        self.marks = 0
        self.difference: Difference | None = None
        self.broke = ""  # how the engine broke, when it broke as recorded

    @property
    def cut_short(self) -> bool:
        """The file has no proper end: its daemon was killed, or is still writing it."""
        return self._lines.cut_short

    def batches(self, *, until_n: int | None = None, until_at: float | None = None) -> Iterator[Replayed]:
        """Replay batch by batch, up to the first difference, this batch or this time; raises Unreadable."""
        for line in self._lines:
            try:
                entry = recording.read_entry(line)
                if isinstance(entry, Mark):
                    self._compare(entry)
                    replayed = None
                else:
                    events = recording.read_events(entry)
                    late = until_at is not None and any(event.at > until_at for event in events)
                    if late or (until_n is not None and entry.n > until_n):
                        return
                    replayed = self._handle(entry, events)
            except Unreadable as error:
                raise Unreadable(f"line {self._lines.number}: {error.message}", error.hint) from None
            except recording.BAD as error:  # what was taken over raw is damaged further in
                raise Unreadable(f"line {self._lines.number}: it is damaged: {error}") from None
            if replayed is not None:
                yield replayed
            if self.difference is not None or self.broke:
                return

    def _handle(self, entry: Batch, events: tuple[ev.Event, ...]) -> Replayed:
        if entry.n != self.n + 1:
            raise Unreadable(f"batch {entry.n} follows on batch {self.n}")
        self.n = entry.n
        try:
            effects = self.engine.handle(*events)
        except Exception as error:  # whatever it is, the recorded engine may have met it, too
            how = f"{type(error).__name__}: {error}"
            if entry.effects is None:
                self.broke = how
            else:
                self._differs("the engine", "works", f"breaks: {how}")
            return Replayed(n=entry.n, events=events, effects=())
        if entry.effects is None:
            self._differs("the engine", "breaks", "works")
        else:
            recorded = [[name, msgspec.json.decode(raw)] for name, raw in entry.effects]
            self._walk("effects", recorded, recording.shown(effects))
        return Replayed(n=entry.n, events=events, effects=effects)

    # -- comparing --------------------------------------------------------------------------------------------

    def _compare(self, mark: Mark) -> None:
        """The whole state: what was written before still holds where the mark says nothing else."""
        self.marks += 1
        for name in mark.gone:
            self._expected.pop(name, None)
        self._expected.update((name, bytes(raw)) for name, raw in mark.parts.items())
        replayed = recording.parts(self.engine.state)
        for name in sorted(self._expected.keys() | replayed.keys()):
            recorded, now = self._expected.get(name), replayed.get(name)
            if recorded != now:
                self._walk(name, _value(recorded), _value(now))

    def _walk(self, where: str, recorded: object, replayed: object) -> None:
        """Name the innermost place where these differ, if they do."""
        if self.difference is not None or recorded == replayed:
            return
        if isinstance(recorded, dict) and isinstance(replayed, dict):
            for key in sorted(recorded.keys() | replayed.keys()):
                self._walk(f"{where}.{key}", recorded.get(key), replayed.get(key))
        elif isinstance(recorded, list) and isinstance(replayed, list):
            for i in range(max(len(recorded), len(replayed))):
                both = (recorded[i : i + 1], replayed[i : i + 1])
                if all(both):
                    self._walk(f"{where}[{i}]", recorded[i], replayed[i])
                else:
                    self._differs(f"{where}[{i}]", *(item[0] if item else None for item in both))
        else:
            self._differs(where, recorded, replayed)

    def _differs(self, where: str, recorded: object, replayed: object) -> None:
        if self.difference is None:
            self.difference = Difference(n=self.n, where=where, recorded=recorded, replayed=replayed)


def _value(part: bytes | None) -> object:
    return None if part is None else msgspec.json.decode(part)


class Lines:
    """The whole lines of a file, packed or plain. What follows the last newline was never finished and is left out."""

    def __init__(self, path: Path) -> None:
        self.number = 0
        self.cut_short = False
        self._found = self._read(path)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = next(self._found)
        self.number += 1
        return line

    def _read(self, path: Path) -> Iterator[bytes]:
        rest = bytearray()
        for piece in self._unpacked(path):
            start = 0
            while (end := piece.find(b"\n", start)) >= 0:
                rest += piece[start:end]
                yield bytes(rest)
                rest.clear()
                start = end + 1
            rest += piece[start:]
            if len(rest) > LINE_LIMIT:
                raise Unreadable(f"line {self.number + 1}: it is longer than {LINE_LIMIT >> 20} MiB")
        self.cut_short |= bool(rest)

    def _unpacked(self, path: Path) -> Iterator[bytes]:
        """The content in pieces of bounded size, however far it was packed."""
        try:
            with path.open("rb") as file:
                piece = file.read(CHUNK)
                if not piece.startswith(GZIP):
                    while piece:
                        yield piece
                        piece = file.read(CHUNK)
                    return
                unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
                while piece and not unpacker.eof:
                    yield unpacker.decompress(piece, CHUNK)
                    piece = unpacker.unconsumed_tail or file.read(CHUNK)
        except OSError as error:
            raise Unreadable(f"it cannot be read: {(error.strerror or str(error)).lower()}") from None
        except zlib.error as error:
            raise Unreadable(f"line {self.number + 1}: it is damaged: {error}") from None
        self.cut_short = not unpacker.eof
