"""Admission: from what somebody asks, or the engine's own wish to repair, to an operation or a refusal.

Owns what becomes of an intent. Nothing is in force before its facts are in and speak for it.
"""

from dataclasses import replace

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core import fold, outcomes, releases, requests, setbacks, simulation, story, world
from gpumodd.core.course import Course
from gpumodd.core.desired import Desired, closure, undone
from gpumodd.core.facts import InspectFact
from gpumodd.core.intents import Intent
from gpumodd.core.operations import Kind, Operation, State, Step, StepState, Verb
from gpumodd.core.outbox import Outbox
from gpumodd.core.plans import Plan
from gpumodd.core.problems import Reason
from gpumodd.core.state import State as EngineState


class Admission:
    """Judges wishes and puts them in force."""

    def __init__(self, state: EngineState, outbox: Outbox, course: Course) -> None:
        self._state = state
        self._outbox = outbox
        self._course = course

    def requested(self, event: ev.SwitchRequested | ev.ServiceRequested) -> None:
        """Somebody asks: join what already leads there, or put the wish on trial."""
        if isinstance(event, ev.SwitchRequested):
            if self._joins(event):
                return
            intent = requests.for_switch(self._state, event)
        else:
            intent = requests.for_service(self._state, event)
        if isinstance(intent, fx.Refusal):
            self._outbox.emit(fx.Reply(request=event.request, refusal=intent))
            return
        self.inspect(intent)

    def _joins(self, event: ev.SwitchRequested) -> bool:
        """Does the newest switch, on trial or under way, lead there anyway?"""
        trials = [intent for intent in self._state.intents if intent.kind is Kind.SWITCH]
        if trials:
            newest = trials[-1]
            same = (newest.target, newest.force, newest.quiesce) == (event.mode, event.force, event.quiesce)
            if same:
                self._state.exchange(newest, replace(newest, requests=(*newest.requests, event.request)))
            return same
        for op in self._state.active_operations():
            if op.kind is Kind.SWITCH and op.target == event.mode and op.returning is None:
                self._outbox.emit(fx.Reply(request=event.request, operation=op.id))
                return True
        return False

    def inspect(self, intent: Intent) -> None:
        """Put it on trial: gather the facts it is judged on."""
        self._state.intents += (self._inquire(intent),)

    def _inquire(self, intent: Intent) -> Intent:
        wanted = intent.wish(self._state.desired, self._state.catalog).services(self._state.catalog.services)
        inquiry = self._outbox.number()
        self._outbox.emit(fx.Inspect(id=inquiry, services=tuple(s for s in sorted(wanted) if intent.covers(s))))
        return replace(intent, inquiry=inquiry)

    def inspected(self, event: ev.Inspected) -> None:
        """The facts are in."""
        fold.host(self._state, event.host)
        releases.sampled(self._state, event.devices)
        for intent in self._state.intents:
            if intent.inquiry == event.effect and event.devices.at < self._state.resumed_at:
                self._state.exchange(intent, self._inquire(intent))  # the machine slept since
            elif intent.inquiry == event.effect:
                self._state.exchange(intent, replace(intent, facts=event.services))
        self.judge()

    def judge(self) -> None:
        """Decide what is on trial in the order it was asked, however fast its facts came: the newest wish must win."""
        while self._state.intents and not self._state.observing:
            oldest, *others = self._state.intents
            if oldest.facts is None:
                return
            self._state.intents = tuple(others)
            self._decide(oldest, oldest.facts)

    def _decide(self, intent: Intent, facts: tuple[InspectFact, ...]) -> None:
        """Refuse, or begin."""
        wish, proposed = requests.plan_of(self._state, intent)
        if not intent.requests and not requests.starts_of(intent, proposed):
            return  # a repair, and nothing is broken any more
        reasons = requests.reasons_against(self._state, intent, proposed, facts)
        if self._state.unsaved:
            reasons.append(outcomes.unsaved(self._state.unsaved))
        if reasons:
            self._refuse(intent, proposed, reasons)
            return
        op = self._begin(intent, wish, proposed)
        self._outbox.emit(*(fx.Reply(request=request, operation=op.id) for request in intent.requests))

    def _refuse(self, intent: Intent, proposed: Plan, reasons: list[Reason]) -> None:
        what = f"{intent.kind} {intent.target}"
        if intent.requests:
            refusal = requests.refusal(reasons, what, simulation.would_fit(self._state, intent))
            self._outbox.emit(*(fx.Reply(request=request, refusal=refusal) for request in intent.requests))
            story.refused(self._state, requests.starts_of(intent, proposed), reasons, what, intent.actor)
        else:  # nobody asked: the engine's own repair waits and plans again
            named = {reason.service: reason for reason in reversed(reasons)}
            for service in requests.starts_of(intent, proposed):
                setbacks.put_off(self._state, self._state.track(service), named.get(service, reasons[0]))

    def _begin(self, intent: Intent, wish: Desired, proposed: Plan) -> Operation:
        """Put a wish in force: what contradicts it ends, and its operation starts."""
        state = self._state
        specs = state.catalog.services
        goals = frozenset(s for s in wish.services(specs) if intent.covers(s))
        before = state.desired
        if intent.requests:  # somebody asks anew: a switch clears the slate, a service request its own services'
            for service in sorted(state.tracks if intent.kind is Kind.SWITCH else goals):
                track = state.track(service)
                setbacks.forgive(track)
                if track.stopped_outside:  # to undo this is to leave it stopped
                    track.stopped_outside = False
                    before = replace(before, stopped=tuple(sorted({*before.stopped, service})))
        else:
            goals -= world.held_back(state, wish)
        for op in state.active_operations():
            if self._contradicts(op, intent, wish, goals):
                before = undone(before, before=op.before, after=op.wish)  # what ran before, not what never did
                self._course.supersede(op, f"{intent.kind} {intent.target}")
        restarts = requests.restarts_of(state, intent)
        op_id = str(state.next_operation)
        state.next_operation += 1
        inspect = Step(
            id=f"{op_id}.1",
            verb=Verb.INSPECT,
            service="",
            state=StepState.DONE,
            why="everything that can be judged up front is judged before anything is touched",
            started_at=state.at,
            finished_at=state.at,
        )
        op = Operation(
            id=op_id,
            kind=intent.kind,
            target=intent.target,
            created_at=state.at,
            before=before,
            wish=wish,
            actor=intent.actor,
            on_failure=intent.on_failure,
            force=intent.force,
            quiesce=intent.quiesce,
            scope=intent.scope,
            goals=tuple(sorted(goals)),
            restarts=tuple(sorted(restarts)),
            kept=tuple(s for s in proposed.kept if intent.covers(s)),
            abandoned=tuple(s for s in sorted(state.quarantined()) if intent.covers(s)),
            passed=tuple(r for r in proposed.passed if r.service in goals),
            steps=(inspect,),
        )
        state.desired = wish
        self._state.put(op)
        return op

    def _contradicts(self, op: Operation, intent: Intent, wish: Desired, goals: frozenset[str]) -> bool:
        """Can this running operation no longer arrive once the wish is in force? The newest wish wins."""
        if op.kind in (Kind.SWITCH, Kind.RESTORE) and intent.kind is Kind.SWITCH:
            return True
        if op.kind is Kind.STOP and not goals.isdisjoint(op.scope or ()):
            return True
        return not wish.services(self._state.catalog.services).issuperset(op.goals)

    def cancelled(self, event: ev.CancelRequested) -> None:
        """Somebody cancels: the operation leads back to what was desired before it."""
        op = self._state.operations.get(event.operation)
        if op is None:
            refusal = requests.not_found("operation", event.operation, self._state.operations)
        elif not op.state.open:
            refusal = fx.Refusal(code="conflict", message=f"cannot cancel operation {op.id}: it has already {op.state}")
        else:
            reason = Reason(
                code="conflict", message=f"{op.kind} {op.target} was cancelled by {event.actor or 'a client'}"
            )
            self._course.turn_back(op, State.CANCELLED, reason)
            self._outbox.emit(fx.Reply(request=event.request, operation=op.id))
            return
        self._outbox.emit(fx.Reply(request=event.request, refusal=refusal))

    def repair(self, kind: Kind, target: str, services: tuple[str, ...]) -> None:
        """Nobody asks, but what is desired does not run: put bringing it back on trial."""
        scope = closure(services, self._state.catalog.services)
        self.inspect(
            Intent(
                kind=kind,
                target=target,
                on_failure=self._state.catalog.policy.on_failure,
                scope=tuple(sorted(scope)),
            )
        )
