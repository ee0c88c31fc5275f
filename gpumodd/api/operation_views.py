"""Views of operations, steps and reasons: the core's records as the wire shows them. Part of `views`."""

from collections.abc import Callable

from gpumodd.core import story
from gpumodd.core.operations import Operation, Verb
from gpumodd.core.operations import Step as CoreStep
from gpumodd.core.problems import Reason
from gpumodd.core.timeline import Timing, timeline
from gpumodd.wire import types as t


class OperationViews:
    """Reads operations. `time` writes a boot-clock time as the wire has it, `now` is that clock."""

    def __init__(self, time: Callable[[float], str], now: Callable[[], float]) -> None:
        self._time = time
        self._now = now

    def operation(self, op: Operation) -> t.Operation:
        """One operation with its steps."""
        now = self._now()
        end = op.finished_at if op.finished_at is not None else now
        timings = timeline(op, now)
        return t.Operation(
            id=op.id,
            kind=op.kind.value,
            target=op.target,
            state=op.state.value,
            started=list(op.done(Verb.START)),
            woken=list(op.done(Verb.WAKE)),
            stopped=list(op.done(Verb.STOP)),
            slept=list(op.done(Verb.SLEEP)),
            kept=sorted(op.kept),
            left=sorted(op.abandoned),
            steps=[self._step(step, op, timings[step.id]) for step in op.steps],
            error=self.error(op),
            created_at=self._time(op.created_at),
            finished_at=self._time_or_none(op.finished_at),
            seconds=_rounded(max(0.0, end - op.created_at)),
            forced=op.force,
            passed=[reason(r) for r in op.passed],
            why=story.asked(op),
            back=self._way_back(op),
        )

    def error(self, op: Operation) -> t.OperationError | None:
        """Why it did not reach its target."""
        if op.failure is None:
            return None
        why = op.failure.reason
        details = {**why.details, **op.details}
        if why.service:
            details["service"] = why.service
        return t.OperationError(
            code=why.code, message=why.message, hint=why.hint, details=details, log=list(op.failure.log)
        )

    def step(self, step: CoreStep, op: Operation) -> t.Step:
        """One step of this operation."""
        return self._step(step, op, timeline(op, self._now())[step.id])

    def _step(self, step: CoreStep, op: Operation, timing: Timing) -> t.Step:
        return t.Step(
            id=step.id,
            verb=step.verb.value,
            service=step.service or None,
            after=list(step.after),
            state=step.state.value,
            why=step.why,
            started_at=self._time_or_none(step.started_at),
            finished_at=self._time_or_none(step.finished_at),
            error=t.OperationError(code=step.code or "failed", message=step.error) if step.error else None,
            seconds=_rounded(timing.seconds),
            gate=timing.gate,
            critical=timing.critical,
            back=step.back,
            cause=_cause(step, op),
        )

    def _way_back(self, op: Operation) -> t.WayBack | None:
        if op.turned_at is None:
            return None
        unrestored = op.details.get("unrestored")
        return t.WayBack(
            began_at=self._time(op.turned_at),
            started=list(op.done(Verb.START, back=True)),
            woken=list(op.done(Verb.WAKE, back=True)),
            stopped=list(op.done(Verb.STOP, back=True)),
            slept=list(op.done(Verb.SLEEP, back=True)),
            unrestored=sorted(map(str, unrestored)) if isinstance(unrestored, (list, tuple)) else [],
        )

    def _time_or_none(self, at: float | None) -> str | None:
        return None if at is None else self._time(at)


def reason(why: Reason) -> t.Reason:
    """One thing that stands in the way."""
    return t.Reason(
        code=why.code,
        message=why.message,
        hint=why.hint,
        service=why.service,
        device=why.device,
        details=dict(why.details),
    )


def _cause(step: CoreStep, op: Operation) -> str:
    if step.back and op.failure is not None:
        return f"the way back: {op.failure.reason.message}"
    why = story.asked(op)
    return f"{op.kind} {op.target}" + (f", {why}" if why else "")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
