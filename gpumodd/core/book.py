"""Books: one device's memory (or the host's) over the time a plan takes, and in which order it is handed out.

A book knows what is free now and what each release will give back, soonest first. Who gets any of it is decided
elsewhere; here it is decided who has to wait how long for it.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from gpumodd.core.operations import StepKey

ROUNDING_S = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """So much memory, that step's to give back, likely at that time; without a step it is free now."""

    mib: int
    step: StepKey | None = None
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A start's share of one book, with its head and its tail (`core.timing`)."""

    service: str
    mib: int
    head_s: float
    tail_s: float


class Book:
    """What can be had, and when."""

    def __init__(self, free_mib: int, releases: Iterable[Credit]) -> None:
        owed_mib = max(0, -free_mib)  # somebody else grew: the soonest releases pay for that
        debt: list[StepKey] = []
        self._credits = [Credit(mib=max(0, free_mib))]
        for credit in sorted(releases, key=lambda c: c.at_s):
            paid_mib = min(owed_mib, credit.mib)
            owed_mib -= paid_mib
            if paid_mib and credit.step is not None:
                debt.append(credit.step)
            if credit.mib > paid_mib:
                self._credits.append(Credit(mib=credit.mib - paid_mib, step=credit.step, at_s=credit.at_s))
        self._debt = frozenset(debt)
        self._sums = list(accumulate(c.mib for c in self._credits))

    @property
    def total_mib(self) -> int:
        """All there will be."""
        return self._sums[-1]

    def when_s(self, mib: int) -> float:
        """When this much in all can have been handed out."""
        return self._credits[bisect_left(self._sums, mib)].at_s

    def soonest_end_s(self, demands: Iterable[Demand]) -> float:
        """When everything can be ready, as far as this book is concerned: the longest tail gets memory first.

        No order is better. Were one with a shorter tail served right before one with a longer, the longer would wait
        for both shares; swapped, only the shorter does, and from then on it has less to do.
        """
        drawn_mib, end_s = 0, 0.0
        for demand in sorted(demands, key=lambda d: -d.tail_s):
            drawn_mib += demand.mib
            end_s = max(end_s, self.when_s(drawn_mib) + demand.tail_s)
        return end_s

    def in_turn(self, demands: Sequence[Demand], end_s: float) -> list[Demand]:
        """Who is served when, so that nothing ends after `end_s` and otherwise as many as possible start soon.

        From the back: of those who may come last and still be done in time, who has to wait longest for others
        anyway, then who needs most.
        """
        rest = sorted(range(len(demands)), key=lambda i: (-demands[i].tail_s, i))  # the shortest tail at the end
        in_time: list[tuple[float, int, float, int]] = []  # a heap; whoever comes last stands first
        left_mib = sum(d.mib for d in demands)
        turns: list[Demand] = []
        while rest or in_time:
            at_s = self.when_s(left_mib)
            while rest and (not in_time or at_s + demands[rest[-1]].tail_s <= end_s + ROUNDING_S):
                i = rest.pop()
                heapq.heappush(in_time, (-demands[i].head_s, -demands[i].mib, demands[i].tail_s, -i))
            last = demands[-heapq.heappop(in_time)[-1]]
            turns.append(last)
            left_mib -= last.mib
        return turns[::-1]

    def hand_out(self, demands: Iterable[Demand]) -> dict[str, frozenset[StepKey]]:
        """Give each its share, in this order, and say which steps it has to wait for. All of it must be there."""
        drawn: dict[str, frozenset[StepKey]] = {}
        credits = iter(self._credits)
        credit = next(credits)
        left_mib = credit.mib
        for demand in demands:
            steps = set(self._debt)
            needed_mib = demand.mib
            while needed_mib:
                if not left_mib:
                    credit = next(credits)
                    left_mib = credit.mib
                taken_mib = min(needed_mib, left_mib)
                needed_mib -= taken_mib
                left_mib -= taken_mib
                if taken_mib and credit.step is not None:
                    steps.add(credit.step)
            drawn[demand.service] = frozenset(steps)
        return drawn
