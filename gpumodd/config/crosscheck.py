"""What only shows when all files are seen together: names, circles of dependencies, ports, aliases.

Owns the rules between files. A file that is broken by itself is known by its name here, so that it causes no
second problem elsewhere.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from gpumodd.config import schema
from gpumodd.config.document import Document, Place
from gpumodd.config.errors import ConfigProblem, Severity, did_you_mean, shown
from gpumodd.config.validate import problem_at

MAX_CYCLES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """All services: those that could be read, and the names of all that have a file."""

    models: Mapping[str, schema.Service]
    documents: Mapping[str, Document]
    known: Set[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """All modes that could be read."""

    models: Mapping[str, schema.Mode]
    documents: Mapping[str, Document]


def check(services: Services, modes: Modes) -> list[ConfigProblem]:
    return [
        *_members(services, modes),
        *_blank(modes),
        *_dependencies(services),
        *_cycles(services),
        *_aliases(services),
        *_ports(services, modes),
        *_not_built(services),
    ]


def _named(document: Document, key: str, names: tuple[str, ...], known: Set[str]) -> Iterable[ConfigProblem]:
    """Every name in this list is a service, and stands there once."""
    for index, name in enumerate(names):
        place: Place = (key, index)
        if name in names[:index]:
            yield problem_at(document, place, f"the service {shown(name)} is named twice")
        elif name not in known:
            message = f"cannot find the service {shown(name)}"
            yield problem_at(document, place, message, hint=did_you_mean(name, known))


def _members(services: Services, modes: Modes) -> Iterable[ConfigProblem]:
    for id, mode in modes.models.items():
        yield from _named(modes.documents[id], "services", mode.services, services.known)


def _blank(modes: Modes) -> Iterable[ConfigProblem]:
    blank = modes.models.get("blank")
    if blank is not None and blank.services:
        message = "the mode blank cannot have services: it is the one that stops everything"
        yield problem_at(modes.documents["blank"], ("services",), message, hint="give it another id")


def _dependencies(services: Services) -> Iterable[ConfigProblem]:
    for id, service in services.models.items():
        yield from _named(services.documents[id], "depends_on", service.depends_on, services.known)


def _cycles(services: Services) -> Iterable[ConfigProblem]:
    """Each circle once, at the first of its members; told by taking one edge out and looking again."""
    graph = {id: set(service.depends_on) for id, service in sorted(services.models.items())}
    for _ in range(MAX_CYCLES):
        try:
            TopologicalSorter(graph).prepare()
            return
        except CycleError as error:
            circle = list(reversed(error.args[1]))[1:]
        start = circle.index(min(circle))
        circle = [*circle[start:], *circle[:start]]
        first, second = circle[0], [*circle, circle[0]][1]
        graph[first].discard(second)
        document = services.documents[first]
        place: Place = ("depends_on", services.models[first].depends_on.index(second))
        chain = " -> ".join([*circle, first])
        yield problem_at(document, place, f"cannot start any of these first: {chain}", hint="break the circle")


def _aliases(services: Services) -> Iterable[ConfigProblem]:
    taken = {id: f"the service {id}" for id in services.known}
    for id, service in sorted(services.models.items()):
        for index, alias in enumerate(service.aliases):
            if alias in taken:
                message = f"cannot use the alias {shown(alias)}: it is the name of {taken[alias]}"
                yield problem_at(services.documents[id], ("aliases", index), message)
            else:
                taken[alias] = f"the service {id}, too"


def _ports(services: Services, modes: Modes) -> Iterable[ConfigProblem]:
    """Services that can run together need addresses of their own; others may share one."""
    pinned = [id for id, service in services.models.items() if service.pinned]
    together = [_closure(services, [*mode.services, *pinned]) for mode in modes.models.values()]
    together += [_closure(services, [id, *pinned]) for id in services.models]
    seen = set()
    for group in together:
        by_port: dict[int, list[str]] = {}
        for id in sorted(group):
            if (port := services.models[id].port) is not None:
                by_port.setdefault(port, []).append(id)
        for port, ids in by_port.items():
            for index, second in enumerate(ids):
                for first in ids[:index]:
                    hosts = services.models[first].host, services.models[second].host
                    if (first, second) not in seen and _overlap(*hosts):
                        seen.add((first, second))
                        message = f"cannot use port {port}: {first} has it and can run at the same time"
                        yield problem_at(services.documents[second], ("port",), message)


def _not_built(services: Services) -> Iterable[ConfigProblem]:
    """Keys that are part of the configuration and that this version does not act on."""
    for id, service in services.models.items():
        wishes = {"sleep": service.sleep != "none", "on_leave": service.on_leave == "sleep", "idle": service.idle}
        if keys := [key for key, wish in wishes.items() if wish]:
            message = f"nothing sleeps in this version: {', '.join(keys)} has no effect"
            place: Place = (keys[0],)
            yield problem_at(services.documents[id], place, message, code="not_built", severity=Severity.WARNING)


def _closure(services: Services, ids: Iterable[str]) -> set[str]:
    """These services and all they depend on."""
    found: set[str] = set()
    left = list(ids)
    while left:
        id = left.pop()
        if id not in found and id in services.models:
            found.add(id)
            left += services.models[id].depends_on
    return found


def _overlap(first: str, second: str) -> bool:
    """Would listening on both addresses collide on one port?"""
    same = {"localhost": "127.0.0.1"}
    first, second = same.get(first.lower(), first.lower()), same.get(second.lower(), second.lower())
    return first == second or "0.0.0.0" in (first, second) or "::" in (first, second)
