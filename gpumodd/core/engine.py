"""The engine: events in, effects out. The only place that changes the daemon's state.

Level-triggered: all events of a batch are folded into the state, then one plan is made from scratch and whatever
may begin and is not in flight is dispatched (`core.course`). Time is `event.at`; nothing here looks at a clock.
"""

from dataclasses import replace

from gpumodd.core import conditions, deadlines, drift, fold, ops, outcomes, releases, setbacks, suspend
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.admission import Admission
from gpumodd.core.course import Course
from gpumodd.core.journal import Journal
from gpumodd.core.outbox import Outbox
from gpumodd.core.state import State


class Engine:
    """Owns the state. `handle` is the only mutator; everything else here and in `core.world` is a query.

    Whatever a later decision reads is in the state: an engine that is given a copy goes on as this one would.
    """

    def __init__(self, state: State | None = None) -> None:
        self.state = state if state is not None else State()
        self.generation = 0  # grows with every change a view could show
        self._outbox = Outbox(self.state)
        self._course = Course(self.state, self._outbox)
        self._admission = Admission(self.state, self._outbox, self._course)
        self._journal = Journal(self.state, self._outbox)

    def handle(self, *batch: ev.Event) -> tuple[fx.Effect, ...]:
        """Fold these events, decide once, and return what is to be done, in order."""
        changed = False
        for event in batch:
            self.state.at = max(self.state.at, event.at)
            changed |= self._fold(event)
        # A deadline may pass with an event that changes nothing; that is a change.
        if changed or (self.state.due is not None and self.state.due <= self.state.at):
            self.generation += 1
            if not self.state.observing:
                deadlines.expire(self.state, self._outbox)
                self._course.advance()
                drift.heal(self.state, self._admission)
            conditions.note(self.state)
            self._journal.record()
            self.state.due = deadlines.following(self.state)
        return self._outbox.take()

    # -- queries ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When a Ticked event is due, if nothing else happens before."""
        return self.state.due

    # -- folding ----------------------------------------------------------------------------------------------

    def _fold(self, event: ev.Event) -> bool:
        """Take one event into the state; False when nothing a decision reads has changed."""
        state = self.state
        match event:
            case ev.UnitsObserved():
                fold.units(state, event.facts, complete=event.complete)
            case ev.UnitsLost():
                state.units_lost = event.reason
            case ev.Probed():
                return fold.probe(state, event.fact)
            case ev.DevicesSampled():
                told = fold.host(state, event.host)
                return releases.sampled(state, event.fact) or told or state.awaits_sample
            case ev.CatalogLoaded():
                fold.catalog(state, event.catalog)
                state.costs = {s: known for s, known in state.costs.items() if s in event.catalog.services}
            case ev.CatalogRejected():
                state.rejected = event.errors
            case ev.UnitStarted():
                self._start_ended(event)
            case ev.UnitStopped():
                self._stop_ended(event)
            case ev.UnitKilled():
                self._kill_ended(event)
            case ev.Inspected():
                self._admission.inspected(event)
            case ev.LogsRead():
                self._logs_read(event)
            case ev.SaveFailed():
                self._journal.failed(event.message)
            case ev.SaveWorked():
                self._journal.worked()
            case ev.SwitchRequested() | ev.ServiceRequested():
                self._admission.requested(event)
            case ev.CancelRequested():
                self._admission.cancelled(event)
            case ev.Recovered():
                self._recovered(event)
            case ev.ObservationCompleted():
                state.observing = False
                drift.after_start(state, self._admission)
                self._admission.judge()
            case ev.Resumed():
                suspend.resumed(state, event.slept_s, self._outbox)
            case ev.Ticked():
                pass
            case _:
                raise AssertionError(f"no rule for {event!r}")
        return True

    def _start_ended(self, event: ev.UnitStarted) -> None:
        track = self.state.track(event.service)
        if event.effect != track.start_effect:
            return
        track.start_effect = None
        unwanted = track.command is not ops.Command.STARTING
        fold.job_ended(self.state, track, ops.Asked.START_ENDED)
        if event.error or event.dropped:  # nothing was done, so there is nothing to be seen
            track.unseen_since, track.run_expected = None, False
        failed = event.result not in ("done", "lost") and not event.dropped
        if failed and not unwanted and not track.judged:
            setbacks.failed(self.state, event.service, outcomes.start_failed(event))

    def _stop_ended(self, event: ev.UnitStopped) -> None:
        track = self.state.track(event.service)
        if event.effect != track.stop_effect:
            return
        track.stop_effect = None
        fold.job_ended(self.state, track, ops.Asked.STOP_ENDED)
        if event.error or event.dropped:
            track.unseen_since = track.stop_asked_at = None
        if event.error:
            track.failure, track.failed_at = outcomes.stop_refused(event), self.state.at

    def _kill_ended(self, event: ev.UnitKilled) -> None:
        track = self.state.track(event.service)
        if event.effect == track.kill_effect:
            track.kill_effect = None
            if event.dropped:
                track.killed_at = None  # its deadline is still over: it is given again

    def _logs_read(self, event: ev.LogsRead) -> None:
        for op in list(self.state.operations.values()):
            if op.logs_of == event.service:
                failure = replace(op.failure, log=event.lines) if op.failure is not None else None
                self.state.put(replace(op, logs_of=None, failure=failure))

    def _recovered(self, event: ev.Recovered) -> None:
        """Take over what the last daemon left; open operations go on once the world has been seen."""
        state = self.state
        state.started_at = event.at
        for op in event.operations:
            # Whoever was to read a log or wait for room ended with the last daemon.
            state.operations[op.id] = replace(op, logs_of=None, blocked_since=None)
        if event.snapshot is not None:
            state.restore(event.snapshot, same_boot=event.same_boot)
