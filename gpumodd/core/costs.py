"""Costs: what loading, stopping and releasing a service took the last few times, in seconds.

Owns the figures and how a new one is taken in. Each is the median of its last few runs, so that one odd run (a cold
cache, a suspended machine) does not bend it. Nothing here decides; who chooses an order or an alternative reads it.
"""

from dataclasses import dataclass, replace

RUNS = 5  # remembered of each kind: enough to outvote two odd ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """One service's newest runs, oldest first: start command to ready, stop command to gone, gone to memory back."""

    loads: tuple[float, ...] = ()
    stops: tuple[float, ...] = ()
    releases: tuple[float, ...] = ()

    @property
    def load_s(self) -> float | None:
        """From the start command until it is ready; None: never measured."""
        return _typical(self.loads)

    @property
    def stop_s(self) -> float | None:
        """From the stop command until its last process is gone; None: never measured."""
        return _typical(self.stops)

    @property
    def release_s(self) -> float | None:
        """From there until its memory is back; None: never measured."""
        return _typical(self.releases)

    def loaded(self, seconds: float) -> "Costs":
        """With one more load."""
        return replace(self, loads=_with(self.loads, seconds))

    def stopped(self, seconds: float) -> "Costs":
        """With one more stop."""
        return replace(self, stops=_with(self.stops, seconds))

    def released(self, seconds: float) -> "Costs":
        """With one more release."""
        return replace(self, releases=_with(self.releases, seconds))


UNKNOWN = Costs()  # of a service that was never measured


def _typical(runs: tuple[float, ...]) -> float | None:
    return sorted(runs)[(len(runs) - 1) // 2] if runs else None


def _with(runs: tuple[float, ...], seconds: float) -> tuple[float, ...]:
    return (*runs, round(max(0.0, seconds), 3))[-RUNS:]
