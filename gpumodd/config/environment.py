"""`GPUMODD_<SECTION>__<KEY>`: every key of gpumodd.yaml as an environment variable, which wins over the file.

Owns the names and the merging. Values are YAML, judged by the same schema; a problem names the variable.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpumodd.config import document
from gpumodd.config.document import Document, Mark, Place
from gpumodd.config.errors import ConfigProblem, Severity, did_you_mean
from gpumodd.config.schema import Settings

PREFIX = "GPUMODD_"
MAX_VALUE = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One variable that sets one key."""

    variable: str
    place: Place
    document: Document


def overrides(environ: Mapping[str, str]) -> tuple[list[Override], list[ConfigProblem]]:
    """The variables that set keys; others of ours (`GPUMODD_SOCKET`, …) are not looked at."""
    found, problems = [], []
    for variable in sorted(environ):
        place = _place(variable)
        if place is None:
            continue
        if place[0] not in Settings.model_fields:
            hint = did_you_mean(str(place[0]), Settings.model_fields)
            problems.append(
                ConfigProblem(
                    file=f"${variable}",
                    path=document.dotted(place),
                    message="this variable sets nothing",
                    hint=hint,
                    severity=Severity.WARNING,
                )
            )
            continue
        text = environ[variable]
        if len(text) > MAX_VALUE:
            message = f"cannot use this: it is longer than {MAX_VALUE // 1024} KiB"
            problems.append(ConfigProblem(file=f"${variable}", path=document.dotted(place), message=message))
            continue
        value, wrong = document.parse(text.encode("utf-8", "replace").decode(), f"${variable}")
        problems += [replace(problem, path=document.dotted(place)) for problem in wrong]
        if not wrong:
            found.append(Override(variable=variable, place=place, document=value))
    return found, problems


def merge(base: Document, found: Iterable[Override]) -> Document:
    """`base` with the overrides put in; a section that the file lacks appears."""
    if base.value is not None and not isinstance(base.value, dict):
        return base  # not settings at all, which the schema will say
    value: dict[str, Any] = dict(base.value or {})
    marks, keys, raw, origins = dict(base.marks), dict(base.keys), dict(base.raw), dict(base.origins)
    for override in sorted(found, key=lambda o: len(o.place)):
        node, here = value, override.place
        for depth, step in enumerate(here[:-1], start=1):
            inner = node.get(str(step))
            node[str(step)] = dict(inner) if isinstance(inner, dict) else {}
            node = node[str(step)]
            if not isinstance(inner, dict):
                marks[here[:depth]] = keys[here[:depth]] = Mark()
                origins[here[:depth]] = f"${override.variable}"
        node[str(here[-1])] = override.document.value
        marks.update({(*here, *place): mark for place, mark in override.document.marks.items()})
        keys.update({(*here, *place): mark for place, mark in override.document.keys.items()})
        raw.pop(here, None)
        raw.update({(*here, *place): text for place, text in override.document.raw.items()})
        keys[here] = Mark()
        origins[here] = f"${override.variable}"
    return replace(base, value=value, marks=marks, keys=keys, raw=raw, origins=origins)


def _place(variable: str) -> Place | None:
    """`GPUMODD_DRIVERS__VLLM__COMMAND` as (drivers, vllm, command); None when it is no such name."""
    if not variable.startswith(PREFIX) or "__" not in variable.removeprefix(PREFIX):
        return None
    return tuple(part.lower() for part in variable.removeprefix(PREFIX).split("__"))
