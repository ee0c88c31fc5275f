"""Timelines: of an operation's steps, what each waited for, and which ones its length is made of.

Pure reading of what an operation recorded. The critical path is the chain that leads from the end back to the
beginning, each step held up by the one before it: to shorten anything else would not have ended it sooner.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gpumodd.core.operations import Operation, Step, StepState


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One step's place in time. `gate` is the id of the step it waited for last, which decided when it could begin."""

    seconds: float | None = None
    gate: str | None = None
    critical: bool = False


def timeline(op: Operation, now: float) -> Mapping[str, Timing]:
    """The timing of every step, by its id."""
    steps = {step.id: step for step in op.steps}
    gates = {step.id: _gate(step, steps) for step in op.steps}
    critical = _critical(op, steps, gates)
    return {
        step.id: Timing(seconds=_seconds(step, now), gate=gates[step.id], critical=step.id in critical)
        for step in op.steps
    }


def _seconds(step: Step, now: float) -> float | None:
    if step.started_at is None:
        return None
    return max(0.0, (now if step.finished_at is None else step.finished_at) - step.started_at)


def _gate(step: Step, steps: Mapping[str, Step]) -> str | None:
    """The last of those it stands behind: the one that still runs, or that ended last."""
    before = [steps[id] for id in step.after if id in steps]
    if not before:
        return None
    return max(before, key=lambda s: (s.state.open, s.finished_at or 0.0, s.id)).id


def _critical(op: Operation, steps: Mapping[str, Step], gates: Mapping[str, str | None]) -> frozenset[str]:
    ran = [s for s in op.steps if s.started_at is not None and s.state is not StepState.SKIPPED]
    if not ran:
        return frozenset()
    step: Step | None = max(ran, key=lambda s: (s.state.open, s.finished_at or 0.0, s.started_at or 0.0))
    path: set[str] = set()
    while step is not None and step.id not in path:
        path.add(step.id)
        gate = gates[step.id]
        step = steps[gate] if gate is not None else _turning_point(op, step)
    return frozenset(path)


def _turning_point(op: Operation, step: Step) -> Step | None:
    """The first steps of a way back waited for what went wrong; the first steps of all for the inspection."""
    if step.back:
        wrong = [s for s in op.steps if not s.back and s.state is StepState.FAILED and s.finished_at is not None]
        return max(wrong, key=lambda s: s.finished_at or 0.0) if wrong else None
    first = op.steps[0]
    return first if first is not step and first.finished_at is not None and not first.after else None
