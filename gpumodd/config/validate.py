"""From a document to a model: pydantic does the judging, this module says it in words and places.

Owns the translation of pydantic's errors into configuration problems, and the one leniency there is: in
`args`, `env` and `options` an unquoted number or `true` is the text that was written, because that is what
the program on the other side gets to see.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from gpumodd.config.document import Document, Place, dotted
from gpumodd.config.errors import ConfigProblem, did_you_mean, shown

M = TypeVar("M")

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}  # building one costs a millisecond

_NEEDED = {
    "int_type": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "finite_number": "a finite number is needed",
    "bool_type": "true or false is needed",
    "string_type": "text is needed",
    "list_type": "a list is needed",
    "tuple_type": "a list is needed",
    "dict_type": "a mapping is needed",
    "model_type": "a mapping is needed",
    "dataclass_type": "a mapping is needed",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "{expected} is needed",
    "string_pattern_mismatch": "it must match {pattern}",
    "string_too_short": "it must not be empty",
    "string_too_long": "at most {max_length} characters are allowed",
    "too_short": "it must not be empty",
    "too_long": "at most {max_length} entries are allowed",
}


def model(
    kind: type[M], document: Document, value: object, place: Place = (), *, as_written: Iterable[Place] = ()
) -> tuple[M | None, list[ConfigProblem]]:
    """`value`, which stands at `place` in `document`, as a model or dataclass of this kind, or why it is none.

    Below the places in `as_written`, text is wanted and taken as it was written.
    """
    try:
        return _validated(kind, value), []
    except ValidationError as error:
        findings = _findings(kind, error, document, place)
        written = {f.place for f in findings if f.wants_text(document, tuple(as_written))}
        if not written:
            return None, _clearest(findings)
    try:
        return _validated(kind, _rewritten(value, place, written, document)), []
    except ValidationError as error:
        return None, _clearest(_findings(kind, error, document, place))


def problem_at(
    document: Document, place: Place, message: str, *, hint: str = "", key: bool = False, **more: Any
) -> ConfigProblem:
    """A problem with the value (or the key) at this place."""
    mark = document.key_mark(place) if key else document.mark(place)
    return ConfigProblem(
        file=document.origin(place),
        line=mark.line,
        column=mark.column,
        path=dotted(place),
        message=message,
        hint=hint,
        **more,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One pydantic error, at the place in the document it is about."""

    place: Place
    kind: str
    needed: str
    problem: ConfigProblem

    def wants_text(self, document: Document, below: tuple[Place, ...]) -> bool:
        inside = any(self.place[: len(top)] == top for top in below)
        return inside and self.kind == "string_type" and self.place in document.raw


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """A driver's plain dataclass gets our strictness in a subclass, so that the driver's own stays as it was."""
    if kind not in _ADAPTERS:
        strict = kind
        if not issubclass(kind, BaseModel):
            body = {"__slots__": (), "__module__": kind.__module__, "__pydantic_config__": _STRICT}
            strict = type(kind.__name__, (kind,), body)
        _ADAPTERS[kind] = TypeAdapter(strict)
    return _ADAPTERS[kind]


def _validated(kind: type[M], value: object) -> Any:
    # Through JSON, because its strict rules are YAML's: a list is a tuple, a mapping a dataclass, "8" no number.
    return _adapter(kind).validate_json(json.dumps(_said(kind, value)), strict=True)


def _said(kind: type[Any], value: Any) -> Any:
    """A key with nothing behind it says nothing: what people leave of a section whose keys they comment out."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not issubclass(kind, BaseModel):
        return value
    inner = {name: info.annotation for name, info in kind.model_fields.items()}
    sections = {name: kind for name, kind in inner.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}
    return {k: _said(sections[k], v) if k in sections else v for k, v in value.items() if v is not None}


def _rewritten(value: Any, place: Place, written: set[Place], document: Document) -> Any:
    if place in written:
        return document.raw[place]
    if isinstance(value, dict):
        return {key: _rewritten(item, (*place, key), written, document) for key, item in value.items()}
    if isinstance(value, list):
        return [_rewritten(item, (*place, index), written, document) for index, item in enumerate(value)]
    return value


def _findings(kind: type[Any], error: ValidationError, document: Document, start: Place) -> list[_Finding]:
    return [_finding(kind, item, document, start) for item in error.errors(include_url=False)]


def _finding(kind: type[Any], error: ErrorDetails, document: Document, start: Place) -> _Finding:
    code = error["type"]
    place, on_key = _place(error, document, start)
    name = str(place[-1]) if place else ""
    needed = _NEEDED.get(code, error["msg"]).format_map(_Context(error.get("ctx", {})))
    if code == "missing":
        problem = problem_at(document, place, f"the key {name} is missing")
    elif code in ("extra_forbidden", "unexpected_keyword_argument"):
        hint = did_you_mean(name, _keys(_adapter(kind).json_schema(), error["loc"][:-1]))
        problem = problem_at(document, place, f"unknown key {shown(name)}", hint=hint, key=True)
    else:
        problem = problem_at(document, place, f"cannot use {shown(error.get('input'))}: {needed}", key=on_key)
    return _Finding(place=place, kind=code, needed=needed, problem=problem)


def _keys(schema: dict[str, Any], steps: tuple[int | str, ...]) -> list[str]:
    """The keys a mapping may have, found by walking the JSON Schema."""
    node = schema
    for step in (*steps, None):
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        for option in node.get("anyOf", ()):
            if option.get("type") == "object" or "$ref" in option:
                node = option
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        if step is not None:
            node = node.get("properties", {}).get(step) or node.get("additionalProperties") or {}
            node = node if isinstance(node, dict) else {}
    return list(node.get("properties", ()))


def _place(error: ErrorDetails, document: Document, start: Place) -> tuple[Place, bool]:
    """Where an error is. A union's member names (`tuple[str, ...]`) are in pydantic's path but not in the file."""
    place, on_key = start, False
    steps = error["loc"]
    for index, step in enumerate(steps):
        if step == "[key]":
            on_key = True
        elif (*place, step) in document.marks or (error["type"] == "missing" and index == len(steps) - 1):
            place = (*place, step)
    return place, on_key


def _clearest(findings: list[_Finding]) -> list[ConfigProblem]:
    """One problem per place. Where the members of a union failed, the one that got deepest speaks."""
    best: dict[Place, ConfigProblem] = {}
    for finding in findings:
        place = finding.place
        if place not in best:
            if not any(place == other.place[: len(place)] != other.place for other in findings):
                best[place] = finding.problem
        elif not best[place].message.endswith(finding.needed):
            message = f"{best[place].message.removesuffix(' is needed')} or {finding.needed}"
            best[place] = replace(best[place], message=message)
    return list(best.values())


class _Context(dict[str, object]):
    """Keeps a message whole when pydantic gives less than the table expects."""

    def __missing__(self, key: str) -> str:
        return "…"
