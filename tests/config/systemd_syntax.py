"""What systemd makes of a unit file and of an environment file, for tests that read back what was written.

Written from systemd.syntax(7), systemd.service(5) and systemd.exec(5). It understands what the renderer may write
and raises for anything else, so a test cannot pass by luck.
"""

import re

ESCAPES = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "\\": "\\",
    '"': '"',
    "'": "'",
    "s": " ",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
}


def directives(text: str) -> list[tuple[str, str, str]]:
    """(section, key, value) of every assignment; lines that end in a backslash go on in the next one."""
    found, section = [], ""
    for raw in re.sub(r"\\\n", " ", text).split("\n"):
        line = raw.strip(" \t\r")
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            assert line.endswith("]"), line
            section = line[1:-1]
            continue
        key, equals, value = line.partition("=")
        assert equals, f"not an assignment: {line!r}"
        found.append((section, key.rstrip(" \t"), value.lstrip(" \t")))
    return found


def one(text: str, key: str) -> str:
    """The value of a key that must be there exactly once."""
    values = [value for _, name, value in directives(text) if name == key]
    assert len(values) == 1, (key, values)
    return values[0]


def specifiers(text: str) -> str:
    """`%%` is a percent; no other specifier may be left in what we write."""
    assert not re.search(r"(?<!%)(%%)*%(?!%)", text), text
    return text.replace("%%", "%")


def command_line(value: str) -> list[str]:
    """The words of ExecStart=: unquoted, unescaped, specifiers and variables expanded."""
    words = _words(value)
    assert words, "no program"
    program = specifiers(words[0])
    assert program[0] not in "@-:+!|", program
    return [program, *(_variables(specifiers(word)) for word in words[1:])]


def _words(value: str) -> list[str]:
    words, position = [], 0
    while position < len(value):
        if value[position] in " \t":
            position += 1
            continue
        if re.match(r"\\?;(?=[ \t]|$)", value[position:]):
            raise AssertionError("a bare ; separates command lines")
        word, position = _word(value, position)
        words.append(word)
    return words


def _word(value: str, position: int) -> tuple[str, int]:
    text, quote = "", ""
    while position < len(value):
        character = value[position]
        position += 1
        if character == "\\":
            part, position = _escape(value, position)
            text += part
        elif quote:
            if character == quote:
                quote = ""
            else:
                text += character
        elif character in "\"'":
            quote = character
        elif character in " \t":
            return text, position
        else:
            text += character
    assert not quote, "an open quote"
    return text, position


def _escape(value: str, position: int) -> tuple[str, int]:
    kind = value[position]
    if kind == "x":
        code = int(value[position + 1 : position + 3], 16)
        assert code, "a NUL byte"
        assert code < 0x80, "a byte that is no character"
        return chr(code), position + 3
    return ESCAPES[kind], position + 1


def _variables(word: str) -> str:
    """`$$` is a dollar; anything else with a dollar would be replaced by a variable."""
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", word), word
    return word.replace("$$", "$")


def environment(text: str) -> dict[str, str]:
    """An environment file: KEY="…" with backslash before what means something, line breaks as they are."""
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="').match(text, position)
        assert match, text[position : position + 40]
        position, value = match.end(), ""
        while text[position] != '"':
            if text[position] == "\\":
                position += 1
                if text[position] == "\n":  # a continued line
                    position += 1
                    continue
                if text[position] not in '"\\`$':
                    value += "\\"
            value += text[position]
            position += 1
        assert text[position + 1] == "\n"
        position += 2
        found[match[1]] = value
    return found
