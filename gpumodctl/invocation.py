"""One run of gpumodctl: its options, its output streams, its connection.

Commands print through this and nothing else: it knows the width, the encoding, the colours and the broken pipes.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO, TypeVar

import msgspec
from msgspec import Raw

from gpumodctl import text
from gpumodctl.client import Client

T = TypeVar("T")

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


class Stream:
    """stdout or stderr: survives a closed pipe and an encoding that cannot say everything."""

    def __init__(self, stream: TextIO | None) -> None:
        # Python has no stream at all when it was started with the descriptor closed.
        self._stream: TextIO = stream if stream is not None else open(os.devnull, "w")  # noqa: SIM115, PTH123
        self.closed = stream is None
        reconfigure = getattr(self._stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="replace")
        self.terminal = self._stream.isatty()
        self.unicode = _can_say(self._stream, "…█░✓")
        self.colours = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.redraws = self.terminal and os.environ.get("TERM", "dumb") != "dumb"

    @property
    def columns(self) -> int:
        """How many columns a line may have."""
        return _size(self._stream)[0]

    @property
    def rows(self) -> int:
        """How many lines the terminal shows."""
        return _size(self._stream)[1]

    def write(self, data: str) -> None:
        """Write and flush."""
        self._guarded(lambda: self._stream.write(data))

    def write_bytes(self, data: bytes) -> None:
        """Write UTF-8, whatever the stream's encoding."""
        self._guarded(lambda: self._stream.buffer.write(data))

    def paint(self, words: str, style: str) -> str:
        """`words` in a style, where colours are wanted."""
        return f"\x1b[{_STYLES[style]}m{words}\x1b[0m" if self.colours and style else words

    def _guarded(self, write: Any) -> None:
        if self.closed:
            return
        try:
            write()
            self._stream.flush()
        except (OSError, ValueError) as error:
            # Python would complain once more when it flushes at exit.
            self.closed = True
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise  # a full disk; a reader that has left is no error


class Invocation:
    """What every command gets."""

    def __init__(self) -> None:
        self.json = False
        self.socket: str | None = None
        self.out = Stream(sys.stdout)
        self.err = Stream(sys.stderr)

    def connect(self, *, timeout_s: float | None = None) -> Client:
        """A fresh connection."""
        return Client(self.socket, timeout_s=timeout_s)

    def ask(self, method: str, params: Any = None) -> Raw:
        """One query on a connection of its own."""
        with self.connect() as client:
            return client.call(method, params)

    def order(self, method: str, params: Any = None) -> Raw:
        """One request that changes something, on a connection of its own, under this program's name."""
        with self.connect() as client:
            client.introduce()
            return client.call(method, params)

    # -- results go to stdout, messages to stderr

    def document(self, result: Any) -> None:
        """One JSON document."""
        raw = result if isinstance(result, Raw) else Raw(msgspec.json.encode(result))
        self.out.write_bytes(msgspec.json.format(bytes(raw), indent=2) + b"\n")

    def document_line(self, result: Any) -> None:
        """One JSON document of a stream of them."""
        self.out.write_bytes((bytes(result) if isinstance(result, Raw) else msgspec.json.encode(result)) + b"\n")

    def say(self, *lines: str) -> None:
        """Lines of the result, already clean."""
        self.out.write("".join(f"{line}\n" for line in lines))

    def note(self, *lines: str) -> None:
        """Lines for the person who watches, already clean."""
        self.err.write("".join(f"{line}\n" for line in lines))

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()) -> None:
        """A table of the result."""
        head, *body = text.table(
            heads, rows, columns=self.out.columns, numbers=numbers, ellipsis="…" if self.out.unicode else "..."
        )
        self.say(self.out.paint(head, "bold"), *body)

    def panel(self, fields: Iterable[tuple[str, object]]) -> None:
        """Labels and values, one below the other; a value that is None is left out, a list is wrapped."""
        shown = [(label, value) for label, value in fields if value is not None]
        indent = max((len(label) for label, _ in shown), default=0) + 2
        for label, value in shown:
            words = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            first, *more = text.wrap(words or "-", self.out.columns - indent) or [""]
            self.say(self.out.paint(text.pad(f"{label}:", indent), "bold") + first)
            self.say(*(" " * indent + line for line in more))


def ago(at: str | None) -> str:
    """How long ago an RFC 3339 time was, roughly; a dash when it is not known."""
    then = seconds_of(at)
    return "-" if then is None else duration(max(time.time() - then, 0.0))


def seconds_of(at: str | None) -> float | None:
    """An RFC 3339 time in seconds since the epoch; None when it is not one."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(at).timestamp() if at else None
    except (ValueError, OverflowError, OSError):
        return None


def clock(at: str | None) -> str:
    """An RFC 3339 time on this machine's clock, to the tenth of a second; with its date when that is not today."""
    from datetime import datetime

    then = seconds_of(at)
    if then is None:
        return text.clean(at or "-")
    moment = datetime.fromtimestamp(then)
    date = "" if moment.date() == datetime.now().date() else f"{moment:%Y-%m-%d} "
    return f"{date}{moment:%H:%M:%S}.{moment.microsecond // 100000}"


def duration(seconds: float) -> str:
    """A duration in one or two units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def _can_say(stream: TextIO, sample: str) -> bool:
    try:
        sample.encode(stream.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def _size(stream: TextIO) -> tuple[int, int]:
    columns, rows = 80, 24
    with contextlib.suppress(OSError, ValueError):
        columns, rows = os.get_terminal_size(stream.fileno())
    chosen = os.environ.get("COLUMNS", "")
    if chosen.isascii() and chosen.isdigit():
        columns = int(chosen)
    return max(columns or 80, 20), max(rows or 24, 5)
