"""Alternatives: what would make a wish fit that does not. Pure, bounded, deterministic.

Every alternative offered was planned with `planner.plan` and fits, and none has a change that it could do without.
What keeps the services of higher priority comes first, then what takes the least time to load again. What is not
ours to do, ending foreign processes, comes last.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from gpumodd.core.changes import GENTLENESS, Change, Kind, Question, changed, endable, possible, running_with, told
from gpumodd.core.desired import dependents
from gpumodd.core.planner import plan
from gpumodd.core.plans import PASSABLE, Plan
from gpumodd.core.relief import Shortage
from gpumodd.core.timing import load_s

OFFERED = 5
TOGETHER = 3  # up to so many changes are combined by trying
COMBINED = 12  # the changes that are tried in combinations
LARGEST = 8  # a longer list of changes helps nobody
TRIES = 60
WORK = 1000  # services planned for, summed over all tries: this bounds the time

Changes = tuple[Change, ...]
Reliefs = Mapping[Change, Counter[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Changes that together make it fit. `cost_s` is the measured time to load again what they end; None: unknown."""

    changes: Changes
    message: str
    cost_s: float | None


def lacks_memory(proposed: Plan) -> bool:
    """Is the lack of memory in the way?"""
    return any(r.code in PASSABLE for r in proposed.blocked)


def alternatives(question: Question) -> tuple[Alternative, ...]:
    """What would make it fit, best first; nothing when memory is not what is in the way."""
    proposed = plan(question.given)
    return _Search(question, proposed).run() if lacks_memory(proposed) else ()


class _Search:
    """Tries changes, alone and together, until enough is found or enough was tried."""

    def __init__(self, question: Question, proposed: Plan) -> None:
        self._question = question
        self._views = question.given.services
        self._obstacles = {(r.code, r.service) for r in proposed.blocked}
        self._shortage = Shortage(question, proposed)
        self._left = max(8, min(TRIES, WORK // len(question.given.services)))
        self._plans: dict[frozenset[Change], Plan | None] = {}  # None: it does not fit

    def run(self) -> tuple[Alternative, ...]:
        coming = self._shortage.coming
        reliefs = {c: self._shortage.relief(c) for c in possible(self._question, coming)}
        ours = sorted((c for c in reliefs if any(mib > 0 for mib in reliefs[c].values())), key=self._order)
        found = self._few(ours, reliefs) or self._many(ours, reliefs)
        if len(found) < OFFERED:
            theirs = endable(self._question)
            self._left = max(self._left, LARGEST // 2)
            found += self._few(theirs, {c: self._shortage.relief(c) for c in theirs}, at_most=1)
        return tuple(self._alternative(changes) for changes in sorted(found, key=self._rank)[:OFFERED])

    # -- finding ----------------------------------------------------------------------------------------------

    def _few(self, changes: Sequence[Change], reliefs: Reliefs, *, at_most: int = 1000) -> list[Changes]:
        """Single changes that suffice, then pairs, then threes."""
        found: list[Changes] = []
        strongest = _strongest(changes, reliefs)
        for size in range(1, TOGETHER + 1):
            for chosen in combinations(strongest if size == 1 else _promising(strongest, reliefs), size):
                if self._left <= 0 or len(found) >= at_most:
                    return found
                if _pointless(chosen, found) or not self._shortage.may_end_with(reliefs[c] for c in chosen):
                    continue
                if self._plan(chosen) is None:
                    continue
                settled = self._settled(self._gentler(chosen, changes))
                if settled and self._needs_each(settled):
                    found.append(settled)
        return found

    def _many(self, changes: Sequence[Change], reliefs: Reliefs) -> list[Changes]:
        """As many changes as anybody would read, less those that it can do without."""
        self._left = max(self._left, LARGEST + 6)
        strongest = _strongest(changes, reliefs)
        by_size = sorted(strongest, key=lambda c: (self._rank((c,))[:3], -sum(reliefs[c].values())))
        for order in (strongest, by_size):
            chosen: Changes = ()
            for change in order:
                more = (*chosen, change)
                if len(chosen) < LARGEST and not _pointless(more, ()) and self._leaves_something(more):
                    chosen = more
            if self._plan(chosen) is None:
                continue
            for change in reversed(chosen):
                without = tuple(c for c in chosen if c is not change)
                if self._plan(without) is not None:
                    chosen = without
            settled = self._settled(self._gentler(chosen, changes))
            if settled and self._needs_each(settled):
                return [settled]
        return []

    def _gentler(self, chosen: Changes, changes: Sequence[Change]) -> Changes:
        """The same with the largest contexts that still do, the same for all as far as they have it."""
        shrunk = {c.service for c in chosen if c.kind is Kind.CONTEXT}
        sizes = sorted((c for c in changes if c.kind is Kind.CONTEXT and c.service in shrunk), key=lambda c: c.context)
        contexts = sorted({c.context for c in sizes})
        best, low, high = chosen, 0, len(contexts)
        while low < high:
            middle = (low + high) // 2
            most = {c.service: c for c in reversed(sizes)} | {
                c.service: c for c in sizes if c.context <= contexts[middle]
            }
            more = tuple(most[c.service] if c.kind is Kind.CONTEXT else c for c in chosen)
            if self._plan(more) is None:
                high = middle
            else:
                best, low = more, middle + 1
        return best

    def _needs_each(self, chosen: Changes) -> bool:
        self._left = max(self._left, len(chosen))  # what is offered is known to be needed
        return all(self._plan(c for c in chosen if c is not one) is None for one in chosen)

    def _settled(self, chosen: Changes) -> Changes:
        """The same with the devices that moves lead to; empty when it does not fit or a move leads nowhere else."""
        made = self._plan(chosen)
        if made is None:
            return ()
        to = {c.service: made.placements.get(c.service, ()) for c in chosen if c.kind is Kind.MOVE}
        if any(not devices or devices == self._views[service].devices for service, devices in to.items()):
            return ()
        settled = tuple(replace(c, devices=to.get(c.service, ())) for c in chosen)
        return settled if self._plan(settled) is not None else ()

    def _plan(self, chosen: Iterable[Change]) -> Plan | None:
        """The plan with these changes, if it fits and nothing new is in the way; None, too, when enough was tried."""
        key = frozenset(chosen)
        if key not in self._plans:
            if self._left <= 0:
                return None
            self._left -= 1
            made = plan(changed(self._question, sorted(key, key=self._order)))
            new = {(r.code, r.service) for r in made.blocked} - self._obstacles
            self._plans[key] = made if not lacks_memory(made) and not new and self._leaves_something(key) else None
        return self._plans[key]

    def _leaves_something(self, chosen: Iterable[Change]) -> bool:
        """Is some of what is asked for left? To want nothing is no alternative."""
        gone = {c.service for c in chosen if c.takes_away}
        return bool(self._question.asked - gone - dependents(gone, self._question.specs))

    # -- judging ----------------------------------------------------------------------------------------------

    def _rank(self, chosen: Changes) -> tuple[bool, bool, int, float, int, list[tuple[int, str]]]:
        """Less is better: not ours to do, what is lost and of which priority, seconds to load again, how gentle."""
        lost = self._lost(chosen)
        specs = self._question.specs
        priority = max((specs[s].priority for s in lost if s in specs), default=0)
        cost = sum(load_s(self._views[s]) for s in self._loads_again(chosen, lost))
        gentle = [(GENTLENESS.index(c.kind), c.service) for c in chosen]
        theirs = any(c.kind is Kind.END for c in chosen)
        return theirs, bool(lost), priority, cost, len(chosen), gentle

    def _order(self, change: Change) -> tuple[object, ...]:
        return *self._rank((change,)), -change.context, change.pid, change.devices

    def _lost(self, chosen: Iterable[Change]) -> frozenset[str]:
        """What would run and will not."""
        gone = {c.service for c in chosen if c.takes_away}
        return frozenset(gone | dependents(gone, self._question.specs) & self._question.given.wanted)

    def _loads_again(self, chosen: Changes, lost: frozenset[str]) -> frozenset[str]:
        """What has to be loaded once more: at once where it is restarted, one day where it is taken away."""
        changed_ones = {c.service for c in chosen if c.service and not c.takes_away}
        return running_with(self._question.given, changed_ones) | lost

    def _alternative(self, chosen: Changes) -> Alternative:
        again = self._loads_again(chosen, self._lost(chosen))
        measured = [self._views[s].costs.load_s for s in again]
        cost = None if None in measured else round(sum(s for s in measured if s is not None), 3)
        return Alternative(changes=chosen, message=told(self._question, chosen), cost_s=cost)


def _promising(changes: Sequence[Change], reliefs: Reliefs) -> list[Change]:
    """The changes worth combining, in their order: the best ones, and those that free most."""
    freeing = sorted(changes, key=lambda c: -sum(reliefs[c].values()))
    chosen = {*changes[: COMBINED // 2], *freeing[: COMBINED // 2]}
    return [c for c in changes if c in chosen]


def _strongest(changes: Sequence[Change], reliefs: Reliefs) -> list[Change]:
    """Of several of one kind for one service the one that frees most: the smallest context."""
    best: dict[tuple[Kind, str, int], Change] = {}
    for change in changes:
        known = best.setdefault(change.what, change)
        if sum(reliefs[change].values()) > sum(reliefs[known].values()):
            best[change.what] = change
    return [c for c in changes if best[c.what] is c]


def _pointless(chosen: Changes, found: Iterable[Changes]) -> bool:
    """Two changes to one service, or more than what is found already."""
    done = {c.what for c in chosen}
    return len({(c.service, c.pid) for c in chosen}) < len(chosen) or any(
        done >= {c.what for c in one} for one in found
    )
