"""Figures: what a benchmark found, with its spread, its goal and the words that say how it was measured."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of some samples, and how far they lie apart."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> "Spread":
        values = sorted(samples)
        return cls(median=statistics.median(values), low=values[0], high=values[-1], count=len(values))

    @classmethod
    def ratio(cls, measured: Sequence[float], baseline: Sequence[float]) -> "Spread":
        """Median against median; the ends are of the neighbours, which were measured one right after the other."""
        pairs = [one / other for one, other in zip(measured, baseline, strict=True)]
        middle = statistics.median(measured) / statistics.median(baseline)
        return cls(median=middle, low=min(pairs), high=max(pairs), count=len(pairs))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the report. Without a goal it is for information."""

    benchmark: str
    name: str
    spread: Spread
    unit: str
    how: str
    goal: float | None = None
    at_least: bool = False  # the goal is a floor, else a ceiling
    digits: int = 2

    @property
    def met(self) -> bool | None:
        """Does the median keep the goal? None when there is no goal."""
        if self.goal is None:
            return None
        return self.spread.median >= self.goal if self.at_least else self.spread.median <= self.goal
