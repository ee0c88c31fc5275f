"""Attention: how closely what has to be watched right now. Pure queries that the watchers follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpumodd.core import world
from gpumodd.core.operations import StepState, Verb
from gpumodd.core.phase import Health, Phase
from gpumodd.core.state import State

RELEASING_S = 0.010  # a start waits for exactly this
MOVING_S = 0.020  # something loads or stops
IDLE_S = 1.0
BACKOFF_CAP_S = 120.0

MOVING = frozenset({Phase.STARTING, Phase.LOADING, Phase.STOPPING, Phase.WAKING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """One service's health is to be asked: densely while it loads, else every `interval_s`."""

    invocation: str
    dense: bool
    interval_s: float
    address: tuple[str, int]  # a reload may move its port; this run goes on listening where it was started


def sampling_s(state: State) -> float:
    """Seconds between device samples."""
    if any(entry.ended_at is not None for window in state.windows.values() for entry in window.leaving.values()):
        return RELEASING_S
    return MOVING_S if any(t.phase in MOVING for t in state.tracks.values()) else IDLE_S


def may_sleep(state: State) -> bool:
    """Nothing of ours runs and nothing is under way: a GPU that the system powered down may stay so."""
    return not world.manages_anything(state) and not state.active_operations()


def probing(state: State) -> Mapping[str, Probing]:
    """The services whose health is to be asked, by id."""
    found: dict[str, Probing] = {}
    for service, track in state.tracks.items():
        spec = state.catalog.services.get(service)
        if spec is None or spec.port is None or track.gone or track.unit is None or not track.unit.invocation:
            continue
        if track.phase not in (Phase.LOADING, Phase.STARTING, Phase.READY, Phase.DEGRADED):
            continue
        interval = spec.health.interval_s
        if track.health is Health.DEGRADED and track.probe is not None:
            # It has failed often enough to be believed: ask less and less often, but never give up.
            worse = max(0, track.probe.bad - spec.health.failures)
            interval = min(BACKOFF_CAP_S, interval * 2.0 ** min(worse, 10)) if track.probe.bad else interval
        dense = track.health is Health.LOADING
        address = track.address or (spec.host, spec.port)
        found[service] = Probing(invocation=track.invocation, dense=dense, interval_s=interval, address=address)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A model whose start is only waiting for memory of others: it may be read ahead if it fits into `room_mib`."""

    service: str
    model: str  # the absolute path its driver requires
    room_mib: int = field(compare=False)  # of the host's memory that nobody has a claim on


def reading(state: State) -> Mapping[str, Reading]:
    """The models that may be read ahead, by service, in the order of their starts."""
    steps = (step for op in state.active_operations() for step in op.steps)
    waiting = [s.service for s in steps if s.verb is Verb.START and s.state is StepState.PENDING and s.after]
    specs = [spec for s in waiting if (spec := state.catalog.services.get(s)) is not None and spec.requires_file]
    host = world.host_budget(state) if specs else None
    if host is None or host.available_mib <= 0:
        return {}
    return {s.id: Reading(service=s.id, model=s.requires_file or "", room_mib=host.available_mib) for s in specs}
