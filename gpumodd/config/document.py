"""One YAML document with the place of everything in it.

Owns reading: size, depth and node limits, encoding, duplicate keys, and what of YAML is allowed. The parser's
events are walked directly, so that hostile input is refused while it is read and not after it was built.
The result is plain data. What it means is the schema's business.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from gpumodd.config.errors import ConfigProblem, reason

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_NODES = 10_000  # keys and values, aliases counted each time they are used

Place = tuple[str | int, ...]

# YAML 1.2's core schema; ruamel's own resolver would follow a %YAML 1.1 line and read `no` as false.
_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
UNUSABLE = re.compile("[\0\ud800-\udfff]")  # an escape such as "\\ud800" can still bring them in
_CORE_TAGS = frozenset({None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"})


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file, both counted from 1."""

    line: int = 1
    column: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a file says. `marks` has the place of every value, `keys` of every key, by path; `raw` the text of
    unquoted scalars that are not text (`0.90`, `true`), for where a text is wanted; `origins` what does not come
    from the file itself."""

    file: str
    value: Any = None
    marks: Mapping[Place, Mark] = field(default_factory=dict)
    keys: Mapping[Place, Mark] = field(default_factory=dict)
    raw: Mapping[Place, str] = field(default_factory=dict)
    origins: Mapping[Place, str] = field(default_factory=dict)

    def mark(self, place: Place) -> Mark:
        """Where the value at `place` stands; for one that is not there, the nearest that encloses it."""
        while place and place not in self.marks:
            place = place[:-1]
        return self.marks.get(place, Mark())

    def key_mark(self, place: Place) -> Mark:
        return self.keys.get(place) or self.mark(place)

    def origin(self, place: Place) -> str:
        """The file, or what stands in for it, that says what is at this place."""
        while place and place not in self.origins:
            place = place[:-1]
        return self.origins.get(place, self.file)


class Unreadable(Exception):
    """A document that cannot be had; carries its one problem."""

    def __init__(self, problem: ConfigProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def read(path: Path, file: str) -> str:
    """A file's text; raises Unreadable. A pipe, a device or a directory is refused without being waited for."""
    try:
        # O_NONBLOCK: opening a pipe for reading would otherwise wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _refused(file, "cannot read this: it is not a regular file")
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refused(file, f"cannot read this file: {reason(error)}") from None
    if len(data) > MAX_BYTES:
        raise _refused(file, f"cannot use this file: it is larger than {MAX_BYTES // 1024} KiB")
    return decode(data, file)


def decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        mark = Mark(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        message = f"cannot decode byte 0x{data[error.start]:02x}: the file is not UTF-8"
        raise _refused(file, message, mark) from None


def parse(text: str, file: str) -> tuple[Document, list[ConfigProblem]]:
    """The document in `text` and what is wrong with it as YAML; never raises, whatever the text."""
    reader = _Reader(file)
    try:
        root = reader.root(text)
        return reader.flatten(root), reader.problems
    except Unreadable as error:
        return Document(file=file), [*reader.problems, error.problem]


@dataclass(frozen=True, slots=True)
class _Scalar:
    mark: Mark
    text: str
    plain: bool


@dataclass(frozen=True, slots=True)
class _List:
    mark: Mark
    items: list["_Node"]


@dataclass(frozen=True, slots=True)
class _Map:
    mark: Mark
    pairs: list[tuple[_Scalar, "_Node"]]


_Node = _Scalar | _List | _Map


class _Reader:
    """Builds a node tree from parser events, then plain data from the tree."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[ConfigProblem] = []
        self.anchors: dict[str, _Node] = {}
        self.nodes = 0

    # ---- events to nodes

    def root(self, text: str) -> _Node:
        try:
            events = self._checked(YAML(typ="safe", pure=True).parse(text))
            next(events)  # stream start
            node: _Node = _Scalar(Mark(), "", True)
            if isinstance(start := next(events), DocumentStartEvent):
                if start.version is not None or start.tags:
                    self._note(_at(start.start_mark), "cannot use % directives: write plain YAML 1.2")
                node = self._node(next(events), events)
                next(events)  # document end
                if isinstance(second := next(events), DocumentStartEvent):
                    self._note(_at(second.start_mark), "cannot use a second document: one file holds one")
            return node
        except MarkedYAMLError as error:
            place = _at(error.problem_mark or error.context_mark)
            raise _refused(self.file, f"cannot parse: {_words(error)}", place) from None
        except ReaderError as error:
            before = text[: error.position]
            place = Mark(before.count("\n") + 1, error.position - before.rfind("\n"))
            raise _refused(self.file, "cannot use this character in YAML", place) from None
        except Unreadable:
            raise
        except Exception as error:  # ruamel lets ValueError, IndexError and others out on some malformed input
            raise _refused(self.file, f"cannot parse: {type(error).__name__}") from None

    def _checked(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, stopped at the limits: the parser itself slows down with the square of the depth."""
        depth = 0
        for event in events:
            if isinstance(event, (MappingStartEvent, SequenceStartEvent)):
                depth += 1
            elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
                depth -= 1
            if depth > MAX_DEPTH:
                message = f"cannot use this: nested deeper than {MAX_DEPTH} levels"
                raise _refused(self.file, message, _at(event.start_mark))
            if isinstance(event, NodeEvent):
                self._count(_at(event.start_mark))
            yield event

    def _node(self, event: Event, events: Iterator[Event]) -> _Node:
        mark = _at(event.start_mark)
        if isinstance(event, AliasEvent):
            if event.anchor in self.anchors:
                return self.anchors[event.anchor]
            raise _refused(self.file, f"cannot find the anchor &{event.anchor}", mark)
        tag = getattr(event, "tag", None)
        if tag is not None and str(tag) not in _CORE_TAGS:
            self._note(mark, f"cannot use the tag {tag}: write plain values")
        node: _Node
        if isinstance(event, ScalarEvent):
            text = UNUSABLE.sub("?", event.value)
            if text != event.value:
                self._note(mark, "cannot use this text: it holds a character no program can be given")
            node = _Scalar(mark, text, bool(event.implicit[0]))
        elif isinstance(event, SequenceStartEvent):
            node = _List(mark, [])
            while not isinstance(item := next(events), SequenceEndEvent):
                node.items.append(self._node(item, events))
        else:
            node = _Map(mark, [])
            while not isinstance(item := next(events), MappingEndEvent):
                key = self._node(item, events)
                value = self._node(next(events), events)
                if isinstance(key, _Scalar):
                    node.pairs.append((key, value))
                else:
                    self._note(key.mark, "cannot use this as a key: a key is one word")
        if isinstance(event, NodeEvent) and event.anchor is not None:
            self.anchors[event.anchor] = node  # only now: a node cannot hold itself
        return node

    # ---- nodes to data

    def flatten(self, root: _Node) -> Document:
        self.nodes = 0
        self.marks: dict[Place, Mark] = {}
        self.keys: dict[Place, Mark] = {}
        self.raw: dict[Place, str] = {}
        value = self._value(root, ())
        return Document(file=self.file, value=value, marks=self.marks, keys=self.keys, raw=self.raw)

    def _value(self, node: _Node, place: Place) -> Any:
        self._count(node.mark)
        if len(place) > MAX_DEPTH:
            raise _refused(self.file, f"cannot use this: nested deeper than {MAX_DEPTH} levels", node.mark)
        self.marks[place] = node.mark
        match node:
            case _Scalar():
                value = _scalar(node)
                if not isinstance(value, str) and value is not None:
                    self.raw[place] = node.text
                return value
            case _List():
                return [self._value(item, (*place, index)) for index, item in enumerate(node.items)]
            case _Map():
                return self._mapping(node, place)

    def _mapping(self, node: _Map, place: Place) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in node.pairs:
            here = (*place, key.text)
            if key.plain and key.text == "<<":
                self._note(key.mark, "cannot use the merge key <<: write the keys out", place)
            elif key.text in data:
                message = f"the key {key.text} is given twice: first in line {self.keys[here].line}"
                self._note(key.mark, message, here)
            else:
                self.keys[here] = key.mark
                data[key.text] = self._value(value, here)
        return data

    def _count(self, mark: Mark) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _refused(self.file, f"cannot use this: more than {MAX_NODES} keys and values", mark)

    def _note(self, mark: Mark, message: str, place: Place = ()) -> None:
        self.problems.append(_problem(self.file, message, mark, dotted(place)))


def dotted(place: Place) -> str:
    """A path for people: `health.path`, `args[2]`, `.` for the whole document."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text[1:] if text.startswith(".") else text or "."


def _scalar(node: _Scalar) -> Any:
    text = node.text
    if not node.plain:
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if len(text) <= 60 and _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _at(mark: StringMark | None) -> Mark:
    return Mark() if mark is None else Mark(mark.line + 1, mark.column + 1)


def _words(error: MarkedYAMLError) -> str:
    """ruamel's own reason without its picture of the line."""
    parts = [str(part).strip() for part in (error.context, error.problem) if part]
    return " ".join(", ".join(parts).split())[:200] or "not YAML"


def _problem(file: str, message: str, mark: Mark, path: str = ".") -> ConfigProblem:
    return ConfigProblem(file=file, line=mark.line, column=mark.column, path=path, message=message)


def _refused(file: str, message: str, mark: Mark | None = None) -> Unreadable:
    return Unreadable(_problem(file, message, mark or Mark()))
