"""Configuration problems: what is wrong, and exactly where.

Owns the wording. A problem is one line, `file:line:column: path: message (hint)`, whatever stood in the file:
nothing that was read can break out of its line.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath


class Severity(StrEnum):
    """An error keeps a configuration from being used; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ConfigProblem:
    """One thing a person should change; sorts by place."""

    file: str  # relative to the configuration directory, or `$GPUMODD_…`
    line: int = 1
    column: int = 1
    path: str = "."  # the YAML path, `.` for the whole file
    message: str
    hint: str = ""
    code: str = "invalid_config"
    severity: Severity = Severity.ERROR

    def text(self, directory: str = "") -> str:
        """The problem as one line; `directory` goes before the file's name."""
        inside = directory and not self.file.startswith("$")
        file = str(PurePath(directory) / self.file) if inside else self.file
        mark = "warning: " if self.severity is Severity.WARNING else ""
        hint = f" ({self.hint})" if self.hint else ""
        return one_line(f"{file}:{self.line}:{self.column}: {self.path}: {mark}{self.message}{hint}")


def one_line(text: str) -> str:
    """Control characters, line breaks and undecodable bytes as escapes, everything else as it is."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, limit: int = 60) -> str:
    """A value as a message quotes it: short, and in YAML's words."""
    if isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, (int, float)):
        text = str(value) if isinstance(value, float) or abs(value) < 10**20 else "a very long number"
    else:
        text = {dict: "a mapping", list: "a list", type(None): "null"}.get(type(value), type(value).__name__)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word[:64].lower(), names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    if not names:
        return "there are none"
    more = ", …" if len(names) > 20 else ""
    return f"known: {', '.join(names[:20])}{more}"


def reason(error: OSError) -> str:
    """What the system said, in lower case."""
    return (error.strerror or type(error).__name__).lower()
