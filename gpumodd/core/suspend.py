"""Suspend: the machine slept, and while it did, nothing that anybody waits for went on.

The engine's clock counts sleep, the processes it waits for do not notice it. So every running deadline is moved by as
long as the machine slept, and what was seen before is out of date: figures have to be taken anew before anything is
started on them. Times that people read stay as they are.
"""

from dataclasses import replace

from gpumodd.core import effects as fx
from gpumodd.core.outbox import Outbox
from gpumodd.core.state import State, Track

# The times of a track: what a deadline, a pause or a measurement counts from, and what people read.
COUNTED_FROM = (
    "active_at",
    "deactivating_since",
    "killed_at",
    "loading_from",
    "ready_at",
    "started_at",
    "stop_asked_at",
    "unseen_since",
)
AHEAD = ("backoff_until",)  # still to come
FOR_PEOPLE = ("failed_at", "since")


def resumed(state: State, slept_s: float, outbox: Outbox) -> None:
    """The machine is awake again: move what is under way, and look at everything anew."""
    state.resumed_at = state.at
    for track in state.tracks.values():
        _move(state, track, slept_s)
    for window in state.windows.values():
        for entry in window.leaving.values():
            entry.ended_at = _later(state, entry.ended_at, slept_s)
    for op in state.active_operations():
        if op.blocked_since is not None:
            state.put(replace(op, blocked_since=_later(state, op.blocked_since, slept_s)))
    state.quiesce_from = _later(state, state.quiesce_from, slept_s)
    outbox.emit(
        fx.SampleDevices(), fx.RefreshUnits(services=tuple(s for s, t in sorted(state.tracks.items()) if t.unit))
    )


def _move(state: State, track: Track, slept_s: float) -> None:
    for name in COUNTED_FROM:
        setattr(track, name, _later(state, getattr(track, name), slept_s))
    for name in AHEAD:
        if getattr(track, name) is not None:
            setattr(track, name, getattr(track, name) + slept_s)
    if track.probe is not None:  # bad answers in a row are those of one stretch of being awake
        track.probe = replace(track.probe, good=0, bad=0)
    if not track.gone:
        track.tell(state.at, f"the machine slept for {slept_s:.0f} s")


def _later(state: State, at: float | None, slept_s: float) -> float | None:
    """This time, moved; what has happened stays in the past, whatever the clocks say."""
    return None if at is None else min(at + slept_s, state.at)
