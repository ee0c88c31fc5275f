"""Timing: how long the parts of a plan are likely to take, so that what the rest waits for longest can go first.

Durations are measured costs, with a guess for what was never measured. Nothing here says what may happen, only what
is worth happening sooner: a wrong duration makes a plan slower, never unsafe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpumodd.core.plans import ServiceView

# Guesses for what was never measured: an average disk, and a runtime that starts up in a few seconds.
LOAD_S = 3.0
LOAD_S_PER_GIB = 1.0
STOP_S = 1.0
RELEASE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds from now, by service, if nothing but what is said here holds anything up.

    `gone_s` and `back_s`: when a leaving service has ended and when its memory is back. `head_s`: when the services
    that a coming one depends on are ready, if memory is no obstacle. `tail_s`: from its start command until it and
    all that waits for it is ready.
    """

    gone_s: Mapping[str, float]
    back_s: Mapping[str, float]
    head_s: Mapping[str, float]
    tail_s: Mapping[str, float]


def expected(
    leaving: Sequence[ServiceView], stops: Mapping[str, Sequence[str]], rising: Sequence[ServiceView]
) -> Timing:
    """What to expect. `stops` has, for each service that is to stop, those that have to stop before it, which stand
    first; `rising` is what is not ready yet, each after what it depends on."""
    views = {v.id: v for v in leaving}
    gone_s = {v.id: 0.0 for v in leaving if v.id not in stops}
    for service, before in stops.items():
        view = views[service]
        waits_s = 0.0 if view.stopping else max((gone_s[s] for s in before), default=0.0)
        gone_s[service] = waits_s + stop_s(view)
    loads_s = {v.id: load_s(v) for v in rising}
    head_s: dict[str, float] = {}
    for view in rising:
        head_s[view.id] = max((head_s[d] + loads_s[d] for d in _needs(view) if d in head_s), default=0.0)
    tail_s: dict[str, float] = {}
    longest_after: dict[str, float] = {}
    for view in reversed(rising):
        tail_s[view.id] = loads_s[view.id] + longest_after.get(view.id, 0.0)
        for needed in _needs(view):
            longest_after[needed] = max(longest_after.get(needed, 0.0), tail_s[view.id])
    return Timing(
        gone_s=gone_s,
        back_s={s: seconds + release_s(views[s]) for s, seconds in gone_s.items()},
        head_s=head_s,
        tail_s=tail_s,
    )


def load_s(view: ServiceView) -> float:
    """From its start command until it is ready."""
    known = view.costs.load_s
    return known if known is not None else LOAD_S + LOAD_S_PER_GIB * view.needed_mib / 1024


def stop_s(view: ServiceView) -> float:
    """From its stop command until it is gone."""
    known = view.costs.stop_s
    return known if known is not None else STOP_S


def release_s(view: ServiceView) -> float:
    """From then until its memory is back."""
    known = view.costs.release_s
    return known if known is not None else RELEASE_S


def _needs(view: ServiceView) -> Sequence[str]:
    return view.spec.depends_on if view.spec is not None else ()
