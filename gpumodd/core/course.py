"""The course of operations: plan, merge, fail, dispatch, end. The few lines that a switch, a repair after a crash
and the recovery of a restarted daemon have in common.

Owns how operations advance and how they end. It gives commands only for steps that a plan made just now allows.
"""

from dataclasses import replace

from gpumodd.core import effects as fx
from gpumodd.core import operations, ops, outcomes, releases, setbacks, story, world
from gpumodd.core.desired import dependents
from gpumodd.core.operations import Kind, Operation, PlannedStep, State, StepKey, StepState, Verb
from gpumodd.core.outbox import Outbox
from gpumodd.core.phase import Phase
from gpumodd.core.planner import plan
from gpumodd.core.plans import Plan
from gpumodd.core.problems import Reason
from gpumodd.core.state import State as EngineState
from gpumodd.core.state import Track


class Course:
    """Moves the open operations along."""

    def __init__(self, state: EngineState, outbox: Outbox) -> None:
        self._state = state
        self._outbox = outbox

    def advance(self) -> None:
        """Plan, merge, fail, dispatch, end: until nothing changes any more."""
        self._state.awaits_sample = False
        for _ in range(2 * len(self._state.tracks) + 10):
            active = self._state.active_operations()
            if not active:
                return
            if self._fail_operations():
                continue
            self._drop_done_restarts()
            proposed = self._plan()
            for op in self._state.active_operations():
                mine = [s for s in proposed.steps if op.concerns(*s.key)]
                self._state.put(operations.merge(op, mine, over=self._over, at=self._state.at))
            if self._fail_blocked(proposed) or self._dispatch(proposed) or self._end_operations(proposed):
                continue
            return
        raise AssertionError("the plan does not settle")

    def _plan(self) -> Plan:
        active = self._state.active_operations()
        return plan(
            world.plan_input(
                self._state,
                self._state.desired,
                reach=world.reach_of(self._state, active),
                restarts=world.must_restart(active),
                lenient=world.forced(active),
                quiesce=all(op.quiesce for op in active),
            )
        )

    def _drop_done_restarts(self) -> None:
        """A service that was to go and is gone is from now on one that is to come."""
        for op in self._state.active_operations():
            left = tuple(s for s in op.restarts if not self._over((Verb.STOP, s)))
            if left != op.restarts:
                self._state.put(replace(op, restarts=left))

    def _over(self, key: StepKey) -> bool:
        """Is the purpose of this step fulfilled?"""
        verb, service = key
        track = self._state.tracks.get(service)
        phase = world.phase_of(self._state, service)
        match verb:
            case Verb.STOP:
                return track is None or (track.gone and not track.command.leaving and phase is not Phase.STARTING)
            case Verb.WAIT_RELEASE:
                return (track is None or track.gone) and not releases.releasing(self._state, service)
            case Verb.START:
                return phase in (Phase.LOADING, Phase.READY, Phase.DEGRADED)
            case Verb.WAIT_READY:
                return phase in (Phase.READY, Phase.DEGRADED)
            case _:
                return True

    def _dispatch(self, proposed: Plan) -> bool:
        """Give the commands of the steps that may begin."""
        if self._state.units_lost or self._state.unsaved:
            return False
        active = self._state.active_operations()
        given = False
        for step in proposed.ready():
            owners = [op for op in active if op.concerns(*step.key)]
            if owners and step.verb in (Verb.STOP, Verb.START):
                given |= self._command(step, proposed, owners)
        return given

    def _command(self, step: PlannedStep, proposed: Plan, owners: list[Operation]) -> bool:
        state = self._state
        track = state.track(step.service)
        if step.verb is Verb.STOP:
            if track.command is ops.Command.STARTING_UNWANTED or track.unseen_since is not None:
                return False
            track.command = ops.step(track.command, ops.Asked.STOP)
            track.stop_asked_at, track.killed_at = state.at, None
            track.stop_effect = self._outbox.number()
            releases.open_releases(state, step.service)
            story.stop_asked(state, step.service, owners)
            self._outbox.emit(fx.StopUnit(id=track.stop_effect, service=step.service))
            return True
        if track.command is not ops.Command.IDLE or track.unseen_since is not None:
            return False
        spec = state.catalog.services[step.service]
        track.command = ops.step(track.command, ops.Asked.START)
        track.devices = proposed.placements.get(step.service, ())
        track.fingerprint = spec.fingerprint
        track.address = (spec.host, spec.port) if spec.port is not None else None
        track.started_at, track.stop_asked_at, track.killed_at = state.at, None, None
        track.loading_from = state.at
        track.run_expected, track.judged = True, False
        track.failure = track.failed_at = track.backoff_until = None
        track.start_effect = self._outbox.number()
        story.start_asked(state, step.service, owners)
        self._outbox.emit(fx.StartUnit(id=track.start_effect, service=step.service, devices=track.devices))
        passed = [r for r in proposed.passed if r.service == step.service]
        for op in owners:
            current = operations.let_through(state.operations[op.id], passed)
            self._state.put(replace(current, attempted=tuple(sorted({*current.attempted, step.service}))))
        return True

    def _fail_operations(self) -> bool:
        """Act on the first service that went wrong under an operation's hands."""
        for op in self._state.active_operations():
            for service in sorted(self._state.tracks):
                reason = outcomes.spoils(self._state, op, service)
                if reason is not None:
                    self._fail(op, service, reason)
                    return True
        return False

    def _fail_blocked(self, proposed: Plan) -> bool:
        """Act on an operation that could not go on for too long."""
        for op in self._state.active_operations():
            reason = outcomes.blocked_too_long(self._state, op, proposed)
            if reason is None:
                continue
            if op.returning is None:
                self._fail(op, reason.service or "", reason)
            else:
                lost = outcomes.names(s for s in proposed.steps if op.concerns(*s.key))
                told = replace(op, details={"rollback_failed": reason.message, **op.details})
                self.end(outcomes.unrestored(told, lost), State.FAILED)
            return True
        return False

    def _fail(self, op: Operation, service: str, reason: Reason) -> None:
        """One service went wrong: say so, and go where the operation's policy leads."""
        track = self._state.track(service) if service else Track()
        verbs = (Verb.STOP, Verb.WAIT_RELEASE) if outcomes.leaves(reason) else (Verb.START, Verb.WAIT_READY)
        op = operations.fail_step(op, service, verbs, reason, self._state.at)
        if op.failure is None:
            op = replace(op, failure=operations.Failure(reason=reason))
            if service in op.attempted:
                op = replace(op, logs_of=service)
                self._outbox.emit(fx.ReadLogs(id=self._outbox.number(), service=service))
        else:
            key = "rollback_failed" if op.returning is State.ROLLED_BACK else f"also_{service}"
            op = replace(op, details={**op.details, key: reason.message})
        track.failure = None  # this operation has taken note; the story keeps it
        if reason.code == "stop_failed":  # what will not end cannot be brought back either: the rest goes on around it
            self._go_on_without(op, service, reason)
        elif op.returning is None and outcomes.policy_of(op) == "rollback":
            self.turn_back(op, State.ROLLED_BACK, reason)
        elif op.returning is None and outcomes.policy_of(op) == "stop":
            self.turn_back(op, State.FAILED, reason)
        else:
            self._go_on_without(op, service, reason)

    def _go_on_without(self, op: Operation, service: str, reason: Reason) -> None:
        """There is nowhere to go back to: the rest goes on, this service is left alone, and the end is a failure."""
        track = self._state.track(service) if service else Track()
        if service not in op.goals:
            op = replace(op, abandoned=tuple(sorted({*op.abandoned, service} - {""})))
        elif not track.stopped_outside:
            track.failure = reason
            track.gave_up = track.gave_up or op.kind not in (Kind.HEAL, Kind.RESTORE)
        end = State.CANCELLED if op.returning is State.CANCELLED else State.FAILED
        out_of_reach = {service, *dependents([service], self._state.catalog.services)}
        goals = tuple(g for g in op.goals if g not in out_of_reach)
        op = outcomes.unrestored(op, out_of_reach.intersection(op.goals))
        self._state.put(replace(op, returning=end, goals=goals, blocked_since=None))

    def turn_back(self, op: Operation, end: State, reason: Reason) -> None:
        """Undo what the operation has asked for; once that is fulfilled it ends so."""
        state = self._state
        specs = state.catalog.services
        state.desired = outcomes.wish_after(op, end, state.desired)
        wanted = state.desired.services(specs)
        goals = {s for s in wanted if op.covers(s)}
        for service in sorted(goals):
            setbacks.forgive(state.track(service))
        goals = {s for s in goals if world.left_alone(state, s) is None}
        if op.kind in (Kind.HEAL, Kind.RESTORE):  # nothing was asked for, so what it was to bring back is left alone
            for service in sorted(s for s in goals if not self._over((Verb.WAIT_READY, s))):
                state.track(service).gave_up = True
            goals.clear()
        failure = op.failure or operations.Failure(reason=reason)
        op = replace(op, returning=end, failure=failure, goals=tuple(sorted(goals)), attempted=(), restarts=())
        turned_at = op.turned_at if op.turned_at is not None else state.at
        state.put(replace(op, turned_at=turned_at, blocked_since=None))
        for other in state.active_operations():
            if other.id != op.id and not wanted.issuperset(other.goals):
                self.supersede(other, f"the return of {op.kind} {op.target}")

    def supersede(self, op: Operation, by: str) -> None:
        """Something newer leads elsewhere."""
        reason = Reason(code="conflict", message=f"{op.kind} {op.target} was replaced by {by}")
        self.end(replace(op, failure=op.failure or operations.Failure(reason=reason)), State.CANCELLED)

    def _end_operations(self, proposed: Plan) -> bool:
        """End what has arrived; note since when an operation can do nothing."""
        ended = False
        for op in self._state.active_operations():
            mine = [s for s in proposed.steps if op.concerns(*s.key)]
            stuck = bool(mine) and all(s.blocked or s.after for s in mine)
            waits = stuck and world.quiesce_left(self._state) == 0
            if op.logs_of is not None:
                continue
            if not mine and not self._lacking(op):
                if world.lacks_sample(self._state, op):
                    self._state.awaits_sample = True
                    self._outbox.emit(fx.SampleDevices())
                    continue
                self.end(op, op.returning or State.SUCCEEDED)
                ended = True
            elif waits and op.blocked_since is None:
                self._state.put(replace(op, blocked_since=self._state.at))
            elif not waits and op.blocked_since is not None:
                self._state.put(replace(op, blocked_since=None))
        return ended

    def _lacking(self, op: Operation) -> list[str]:
        """Goals that are still wanted and not reached, though no step leads there: they wait out a backoff."""
        wanted = self._state.desired.services(self._state.catalog.services)
        return [s for s in op.goals if s in wanted and not self._over((Verb.WAIT_READY, s))]

    def end(self, op: Operation, end: State) -> None:
        state = self._state
        left = StepState.CANCELLED if end is State.CANCELLED else StepState.SKIPPED
        op = operations.close(op, left, state.at)
        self._state.put(replace(op, state=end, finished_at=state.at, blocked_since=None, logs_of=None))
        if op.kind is Kind.SWITCH:
            state.reached_mode = outcomes.mode_after(op, end, state.reached_mode)
