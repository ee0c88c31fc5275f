"""systemd's quoting rules, and what cannot be said in them.

Pure functions from a value to the text that means exactly this value in a unit file (systemd.service(5), COMMAND
LINES; systemd.syntax(7)) or in an environment file (systemd.exec(5)). A value that has no such text raises
ValueError. Nothing here lets a line break out: no value can become a directive.
"""

import re
from collections.abc import Mapping, Sequence

_SAFE = re.compile(r"[A-Za-z0-9_/.,:=@+-]+")
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\\": r"\\", '"': r"\""}
_PREFIXES = "@-:+!|"  # before a program these are switches of ExecStart=
_BEFORE_QUOTE = re.compile(r'["\\`$]')  # what a backslash goes before in an environment file
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def argument(text: str) -> str:
    """One word of a command line. `$$` is a dollar and `%%` a percent; neither variables nor specifiers work."""
    return _quoted(text).replace("$", "$$")


def program(text: str) -> str:
    """The first word of a command line: there, systemd expands no variables, so a dollar stays single."""
    if not text or text[0] in _PREFIXES:
        raise ValueError(f"cannot start {text!r}: a program cannot be named like this")
    return _quoted(text)


def command(argv: Sequence[str]) -> str:
    """A whole command line for ExecStart=."""
    return " ".join([program(argv[0]), *map(argument, argv[1:])])


def line(text: str) -> str:
    """Free text for Description= and the like, on one line and without outer spaces."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    # At the end of a line a backslash would join the next line to this one.
    return words.rstrip("\\ ").replace("%", "%%")


def path(text: str) -> str:
    """A path for WorkingDirectory=, where there is no quoting at all."""
    if not text.startswith("/") or not text.isprintable() or text != text.strip() or text.endswith("\\"):
        raise ValueError(f"cannot write the path {text!r} into a unit file")
    return text.replace("%", "%%")


def glob_path(text: str) -> str:
    """A path for EnvironmentFile=, which takes patterns: their signs are escaped."""
    return path(re.sub(r"([\\*?\[\]])", r"\\\1", text))


def seconds(value: float) -> str:
    """A time span to the millisecond, as systemd writes them."""
    return f"{max(1, round(value * 1000))}ms"


def environment(env: Mapping[str, str]) -> str:
    """The text of an environment file; every value comes back byte for byte, line breaks included."""
    lines = []
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"cannot use {name!r} as the name of an environment variable")
        if "\0" in value:
            raise ValueError(f"cannot put a NUL byte into the environment variable {name}")
        escaped = _BEFORE_QUOTE.sub(r"\\\g<0>", value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def _quoted(text: str) -> str:
    """The word as it is if nothing in it means anything, else in double quotes with C escapes."""
    if "\0" in text:
        raise ValueError("cannot put a NUL byte into a command line")
    if _SAFE.fullmatch(text):
        return text
    return '"' + "".join(_escaped(c) for c in text).replace("%", "%%") + '"'


def _escaped(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character < " " or character == "\x7f":
        return f"\\x{ord(character):02x}"
    return character
