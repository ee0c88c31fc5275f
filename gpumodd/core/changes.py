"""Changes: what could be different about a wish that does not fit, and what would then be planned.

Owns the shapes and their words. Which changes make it fit is found out in `alternatives`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from itertools import groupby

from gpumodd.core.desired import closure, dependents
from gpumodd.core.facts import ProcessFact
from gpumodd.core.plans import PlanInput
from gpumodd.core.specs import ServiceSpec


class Kind(StrEnum):
    """What a change does; the gentlest first. To put a service to sleep would stand before to stop it."""

    CONTEXT = "context"  # run a service with less context
    MOVE = "move"  # run a service on other devices
    STOP = "stop"  # end what runs on somebody else's behalf
    REMOVE = "remove"  # leave out a part of what is asked for
    END = "end"  # end a foreign process


GENTLENESS = tuple(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that could be different."""

    kind: Kind
    service: str = ""
    devices: tuple[str, ...] = ()  # where it moves; empty: wherever there is room
    context: int = 0
    vram_mib: int = 0  # with that context
    pid: int = 0

    @property
    def what(self) -> tuple[Kind, str, int]:
        """What is done to whom, whatever the figure."""
        return self.kind, self.service, self.pid

    @property
    def takes_away(self) -> bool:
        """Will a service not run that would?"""
        return self.kind in (Kind.STOP, Kind.REMOVE)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A wish that does not fit. `asked` are the services it names, `others` those that run on somebody else's behalf
    (whose, in words), `strangers` the listed foreign processes per device."""

    given: PlanInput
    asked: frozenset[str]
    others: Mapping[str, str] = field(default_factory=dict)
    strangers: Mapping[str, tuple[ProcessFact, ...]] = field(default_factory=dict)

    @cached_property
    def specs(self) -> Mapping[str, ServiceSpec]:
        """What is configured."""
        return {s: v.spec for s, v in self.given.services.items() if v.spec is not None}

    def held_mib(self, service: str) -> int:
        """What a service holds on all devices."""
        return sum(budget.held.get(service, 0) for budget in self.given.budgets.values())

    def taken_by(self, pid: int) -> Mapping[str, int]:
        """What a foreign process holds, by device."""
        return {
            uuid: process.used_mib
            for uuid, processes in self.strangers.items()
            for process in processes
            if process.pid == pid and process.used_mib
        }


# -- applying -------------------------------------------------------------------------------------------------


def changed(question: Question, changes: Iterable[Change]) -> PlanInput:
    """What would be planned with these changes."""
    given = question.given
    budgets = dict(given.budgets)
    dropped: set[str] = set()
    specs: dict[str, ServiceSpec] = {}
    for change in changes:
        if change.takes_away:
            dropped.add(change.service)
        elif change.kind is Kind.END:
            for uuid, mib in question.taken_by(change.pid).items():
                budgets[uuid] = replace(budgets[uuid], foreign_mib=max(0, budgets[uuid].foreign_mib - mib))
        else:
            specs[change.service] = _respecified(question, change)
    return replace(redefined(given, specs), budgets=budgets, wanted=_wanted(question, dropped))


def redefined(given: PlanInput, specs: Mapping[str, ServiceSpec]) -> PlanInput:
    """Services defined otherwise: what runs has to go before it comes like that, and with it what depends on it."""
    if not specs:
        return given
    again = running_with(given, specs)
    views = {
        s: replace(v, spec=specs.get(s, v.spec), restart=v.restart or s in again) for s, v in given.services.items()
    }
    return replace(given, services=views)


def running_with(given: PlanInput, services: Iterable[str]) -> frozenset[str]:
    """Those of these services that run, and what runs and depends on them."""
    specs = {s: v.spec for s, v in given.services.items() if v.spec is not None}
    running = {s for s in services if not (given.services[s].gone or given.services[s].stopping)}
    above = {s for s in dependents(running, specs) if not given.services[s].gone} if running else set()
    return frozenset(running | above & given.wanted)


def _wanted(question: Question, dropped: set[str]) -> frozenset[str]:
    wanted, specs = question.given.wanted, question.specs
    if not dropped:
        return wanted
    roots = {*question.asked, *question.others} - dropped - dependents(dropped, specs)
    unconfigured = wanted - specs.keys() - dropped
    return closure(roots, specs) & wanted | unconfigured


def _respecified(question: Question, change: Change) -> ServiceSpec:
    spec = question.specs[change.service]
    if change.kind is Kind.CONTEXT:
        return replace(spec, context=change.context, vram_mib=change.vram_mib)
    # What it was seen to hold it will hold elsewhere, too.
    held_mib = question.held_mib(spec.id)
    return replace(spec, devices=change.devices or None, vram_mib=max(spec.vram_mib or 0, held_mib))


# -- what is possible -----------------------------------------------------------------------------------------


def possible(question: Question, coming: frozenset[str]) -> Iterator[Change]:
    """Every change that is ours to make, contexts from the largest down."""
    given = question.given
    for service in sorted(given.wanted & given.services.keys()):
        view = given.services[service]
        if view.spec is not None and (service in coming or view.ready):  # what loads just now is left alone
            yield from _other_sizes(view.spec)
            elsewhere = len(given.budgets) > view.spec.device_count
            if elsewhere and view.spec.vram_mib and (service not in coming or view.spec.devices):
                yield Change(kind=Kind.MOVE, service=service)
        if service in question.others and service not in question.asked:
            yield Change(kind=Kind.STOP, service=service)
        if service in question.asked and service not in question.others and len(question.asked) > 1:
            yield Change(kind=Kind.REMOVE, service=service)


def _other_sizes(spec: ServiceSpec) -> Iterator[Change]:
    for context, vram_mib in sorted(spec.sizes, reverse=True):
        if spec.context is None or context < spec.context:
            yield Change(kind=Kind.CONTEXT, service=spec.id, context=context, vram_mib=vram_mib)


def endable(question: Question) -> list[Change]:
    """Foreign processes whose memory is known, the largest first."""
    pids = {p.pid for processes in question.strangers.values() for p in processes if p.used_mib}
    by_size = sorted(pids, key=lambda pid: (-sum(question.taken_by(pid).values()), pid))
    return [Change(kind=Kind.END, pid=pid) for pid in by_size]


# -- telling --------------------------------------------------------------------------------------------------


def told(question: Question, changes: Iterable[Change]) -> str:
    """The changes in words, as something to do."""
    by_kind = groupby(sorted(changes, key=lambda c: GENTLENESS.index(c.kind)), key=lambda c: c.kind)
    return "; ".join(f"{_VERBS[kind]} {_listed(_words(question, c) for c in same)}" for kind, same in by_kind)


_VERBS = {
    Kind.CONTEXT: "run",
    Kind.MOVE: "move",
    Kind.STOP: "stop",
    Kind.REMOVE: "leave out",
    Kind.END: "end the foreign process",
}


def _words(question: Question, change: Change) -> str:
    view = question.given.services.get(change.service)
    spec = view.spec if view is not None else None
    match change.kind:
        case Kind.CONTEXT:
            before = f" instead of {spec.context}" if spec is not None and spec.context else ""
            return f"{change.service} with a context of {change.context}{before} ({change.vram_mib} MiB)"
        case Kind.MOVE:
            numbers = [str(question.given.budgets[u].index) for u in change.devices]
            bound = spec is not None and spec.devices is not None
            how = f"`devices:` in services/{change.service}.yaml" if bound else "stop it first, then it starts there"
            return f"{change.service} to device{'s' if len(numbers) > 1 else ''} {_listed(numbers)} ({how})"
        case Kind.STOP:
            return f"{change.service} ({question.others[change.service]})"
        case Kind.REMOVE:
            return change.service
        case Kind.END:
            names = [p.name for held in question.strangers.values() for p in held if p.pid == change.pid and p.name]
            mib = sum(question.taken_by(change.pid).values())
            return f"{change.pid} ({', '.join([*names[:1], f'{mib} MiB'])})"


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
