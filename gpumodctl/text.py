"""Text for terminals: cleaning what came over the wire, measuring, cutting, tables.

Pure: strings in, strings out. Everything a daemon, a service or a person named passes through `clean` before it
reaches a terminal.
"""

import re
from collections.abc import Iterable, Sequence

# CSI, OSC and other escape sequences, whole, so that no "[31m" is left behind.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Control characters, and the invisible ones that turn text around.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """One line without control characters and escape sequences."""
    if text.isprintable() and text.isascii():
        return text
    return _CONTROLS.sub("", _ESCAPES.sub("", text).replace("\t", " ").replace("\n", " "))


def width(text: str) -> int:
    """How many columns a terminal needs for clean text."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if char < "\u0300":
        return 1
    import unicodedata

    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, columns: int, ellipsis: str = "…") -> str:
    """`text` in at most that many columns."""
    if width(text) <= columns:
        return text
    room = columns - width(ellipsis)
    if room < 0:
        return ellipsis[:columns]
    used = 0
    for at, char in enumerate(text):
        used += _char_width(char)
        if used > room:
            return text[:at] + ellipsis
    return text


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """`text` filled with spaces to that many columns."""
    space = " " * (columns - width(text))
    return space + text if right else text + space


def wrap(text: str, columns: int, indent: str = "") -> list[str]:
    """Clean text in lines of at most that many columns; words longer than a line are kept whole and cut."""
    lines: list[str] = []
    line = ""
    for word in clean(text).split():
        longer = f"{line} {word}" if line else word
        if line and width(indent) + width(longer) > columns:
            lines.append(cut(indent + line, columns))
            longer = word
        line = longer
    if line:
        lines.append(cut(indent + line, columns))
    return lines


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    columns: int,
    numbers: Sequence[int] = (),
    ellipsis: str = "…",
) -> list[str]:
    """Lines of at most `columns` columns. The columns in `numbers` are set right and never cut; None is a dash."""
    cells = [["-" if cell is None else clean(str(cell)) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(heads, *cells, strict=True)]
    _shrink(widths, columns - 2 * (len(heads) - 1), fixed=set(numbers))
    lines = []
    for row in (list(heads), *cells):
        parts = [pad(cut(cell, widths[at], ellipsis), widths[at], right=at in numbers) for at, cell in enumerate(row)]
        lines.append(cut("  ".join(parts).rstrip(), columns, ellipsis))
    return lines


def _shrink(widths: list[int], room: int, *, fixed: set[int]) -> None:
    """Take from the widest columns until all fit."""
    flexible = [at for at in range(len(widths)) if at not in fixed]
    while sum(widths) > room and flexible:
        widest = max(flexible, key=lambda at: widths[at])
        if widths[widest] <= 3:
            return
        widths[widest] -= 1


def bar(part: int, whole: int, columns: int, *, full: str = "█", empty: str = "░") -> str:
    """A bar that is full when `part` reaches `whole`, and never looks empty or full when it is not."""
    if whole <= 0:
        return empty * columns
    filled = max(0, min(columns, round(columns * part / whole)))
    if part > 0 and filled == 0:
        filled = 1
    if part < whole and filled == columns:
        filled = columns - 1
    return full * filled + empty * (columns - filled)
