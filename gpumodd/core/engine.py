"""The engine: events in, effects out. The only place that changes the daemon's state.

Level-triggered: all events of a batch are folded into the state, then one plan is made from scratch and whatever
may begin and is not in flight is dispatched. A switch, a repair after a crash and the recovery of a restarted
daemon are the same few lines, `Engine._advance`. Time is `event.at`; nothing here looks at a clock.
"""

from dataclasses import replace

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core import fold, operations, ops, outcomes, requests, world
from gpumodd.core.desired import Desired, closure
from gpumodd.core.operations import Kind, Operation, PlannedStep, State, Step, StepKey, StepState, Verb
from gpumodd.core.phase import Phase
from gpumodd.core.planner import Plan, plan
from gpumodd.core.problems import Reason
from gpumodd.core.requests import Intent
from gpumodd.core.state import State as EngineState
from gpumodd.core.state import Track

KEEP_OPERATIONS = 100  # ended ones kept in memory; the state file has more
RETRY_SAVE_S = 2.0  # while the state file cannot be written
KILL_GRACE_S = 5.0  # past a unit's own stop timeout before the engine reaches for SIGKILL
SURVIVOR_S = 10.0  # a process that outlives SIGKILL this long is reported


class Engine:
    """Owns the state. `handle` is the only mutator; everything else here and in `core.world` is a query."""

    def __init__(self) -> None:
        self.state = EngineState()
        self.generation = 0  # grows with every change a view could show
        self._intents: dict[int, Intent] = {}
        self._effects: list[fx.Effect] = []
        self._saved: object = None
        self._retry_save_at: float | None = None
        self._saved_operations: dict[str, Operation] = {}
        self._announced: dict[str, Operation] = {}

    # -- the one mutator --------------------------------------------------------------------------------------

    def handle(self, *batch: ev.Event) -> tuple[fx.Effect, ...]:
        """Fold these events, decide once, and return what is to be done, in order."""
        self._effects = []
        changed = False
        for event in batch:
            self.state.at = max(self.state.at, event.at)
            changed |= self._fold(event)
        if changed:
            self.generation += 1
            if not self.state.observing:
                self._deadlines()
                self._advance()
                self._heal()
            self._phases()
            self._save_and_announce()
        return tuple(self._effects)

    def next_deadline(self) -> float | None:
        """When a Ticked event is due, if nothing else happens before."""
        times: list[float] = []
        policy = self.state.catalog.policy
        for service, track in self.state.tracks.items():
            times += [t for t in (track.backoff_until,) if t is not None]
            times += [t for _, t in self._stop_deadlines(service, track)]
            startup = self._startup_deadline(service, track)
            times += [startup] if startup is not None else []
        for window in self.state.windows.values():
            for entry in window.leaving.values():
                if entry.ended_at is not None:
                    late = entry.ended_at + policy.release_timeout_s
                    times += [late, late + world.STALE_S]
        if world.quiesce_left(self.state) > 0:
            times.append(self.state.at + world.quiesce_left(self.state))
        for op in self.state.active_operations():
            if op.blocked_since is not None:
                times.append(op.blocked_since + policy.release_timeout_s)
        if self._retry_save_at is not None:
            times.append(self._retry_save_at)
        return min((t for t in times if t > self.state.at), default=None)

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
                before = state.tracks[event.fact.service].health if event.fact.service in state.tracks else None
                fold.probe(state, event.fact)
                return event.fact.service in state.tracks and state.tracks[event.fact.service].health != before
            case ev.DevicesSampled():
                state.host = event.host or state.host
                return fold.devices(state, event.fact)
            case ev.CatalogLoaded():
                state.catalog = event.catalog
            case ev.UnitStarted() | ev.UnitStopped() | ev.UnitKilled():
                self._job_ended(event)
            case ev.Inspected():
                self._inspected(event)
            case ev.LogsRead():
                self._logs_read(event)
            case ev.SaveFailed():
                state.unsaved = event.message
                self._saved = None
                self._saved_operations.clear()
                self._retry_save_at = state.at + RETRY_SAVE_S
            case ev.SaveWorked():
                state.unsaved = ""
            case ev.SwitchRequested() | ev.ServiceRequested():
                self._requested(event)
            case ev.CancelRequested():
                self._cancel(event)
            case ev.Recovered():
                self._recovered(event)
            case ev.ObservationCompleted():
                self._observed()
            case ev.Ticked():
                pass
            case _:
                raise AssertionError(f"no rule for {event!r}")
        return True

    def _effect_id(self) -> int:
        self.state.next_effect += 1
        return self.state.next_effect - 1

    def _job_ended(self, event: ev.UnitStarted | ev.UnitStopped | ev.UnitKilled) -> None:
        track = self.state.track(event.service)
        match event:
            case ev.UnitStarted() if event.effect == track.start_effect:
                track.start_effect = None
                unwanted = track.command is not ops.Command.STARTING
                fold.job_ended(self.state, track, ops.Asked.START_ENDED)
                if event.result not in ("done", "lost") and not unwanted:
                    track.unseen_since = None
                    if track.failure is None:  # its end may have been seen before its job's
                        fold.failed(self.state, event.service, outcomes.start_failed(event))
            case ev.UnitStopped() if event.effect == track.stop_effect:
                track.stop_effect = None
                fold.job_ended(self.state, track, ops.Asked.STOP_ENDED)
                if event.error:
                    track.unseen_since = None
                    track.failure = outcomes.stop_refused(event)
                    track.failed_at = self.state.at
            case ev.UnitKilled() if event.effect == track.kill_effect:
                track.kill_effect = None

    def _logs_read(self, event: ev.LogsRead) -> None:
        for op in list(self.state.operations.values()):
            if op.logs_of == event.service:
                failure = replace(op.failure, log=event.lines) if op.failure is not None else None
                self._put(replace(op, logs_of=None, failure=failure))

    # -- requests ---------------------------------------------------------------------------------------------

    def _requested(self, event: ev.SwitchRequested | ev.ServiceRequested) -> None:
        state = self.state
        if isinstance(event, ev.SwitchRequested):
            for op in state.active_operations():
                if op.kind is Kind.SWITCH and op.target == event.mode and op.returning is None:
                    self._effects.append(fx.Reply(request=event.request, operation=op.id))
                    return
            for pending in self._intents.values():
                if pending.kind is Kind.SWITCH and pending.target == event.mode:
                    pending.requests.append(event.request)
                    return
            intent = requests.for_switch(state, event)
        else:
            intent = requests.for_service(state, event)
        if isinstance(intent, fx.Refusal):
            self._effects.append(fx.Reply(request=event.request, refusal=intent))
            return
        self._inspect(intent)

    def _inspect(self, intent: Intent) -> None:
        """Gather the facts an intent is judged on."""
        wanted = intent.wish(self.state.desired).services(self.state.catalog.services)
        if intent.scope is not None:
            wanted &= set(intent.scope)
        effect = self._effect_id()
        self._intents[effect] = intent
        self._effects.append(fx.Inspect(id=effect, services=tuple(sorted(wanted))))

    def _inspected(self, event: ev.Inspected) -> None:
        intent = self._intents.pop(event.effect, None)
        self.state.host = event.host
        fold.devices(self.state, event.devices)
        if intent is None or self.state.observing:
            return
        wish, proposed = requests.plan_of(self.state, intent)
        reasons = requests.reasons_against(self.state, intent, proposed, event)
        if self.state.unsaved:
            reasons.append(outcomes.unsaved(self.state.unsaved))
        if reasons:
            self._refuse(intent, reasons)
            return
        op = self._begin(intent, wish, proposed)
        self._effects += [fx.Reply(request=request, operation=op.id) for request in intent.requests]

    def _refuse(self, intent: Intent, reasons: list[Reason]) -> None:
        what = f"{intent.kind} {intent.target}"
        for request in intent.requests:
            self._effects.append(fx.Reply(request=request, refusal=requests.refusal(reasons, what)))
        if not intent.requests:  # nobody asked: the engine's own repair waits and plans again
            for reason in reasons:
                for service in [reason.service] if reason.service else intent.scope or ():
                    fold.failed(self.state, service, reason)

    def _begin(self, intent: Intent, wish: Desired, proposed: Plan) -> Operation:
        """Put a wish in force: what contradicts it ends, and its operation starts."""
        state = self.state
        specs = state.catalog.services
        goals = wish.services(specs)
        if intent.scope is not None:
            goals &= set(intent.scope)
        for op in state.active_operations():
            if self._contradicts(op, intent, wish, goals):
                self._end_superseded(op, intent)
        if intent.requests:  # somebody asks anew: a switch clears the slate, a service request its own services'
            for service in sorted(state.tracks if intent.kind is Kind.SWITCH else goals):
                fold.forgive(state.track(service))
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
            before=state.desired,
            actor=intent.actor,
            on_failure=intent.on_failure,
            force=intent.force,
            quiesce=intent.quiesce,
            scope=intent.scope,
            goals=tuple(sorted(goals)),
            restarts=tuple(sorted(restarts)),
            kept=tuple(s for s in proposed.kept if intent.scope is None or s in intent.scope),
            steps=(inspect,),
        )
        state.desired = wish
        self._put(op)
        return op

    def _contradicts(self, op: Operation, intent: Intent, wish: Desired, goals: frozenset[str]) -> bool:
        """Can this running operation no longer arrive once the wish is in force? The newest wish wins."""
        if op.kind in (Kind.SWITCH, Kind.RESTORE) and intent.kind is Kind.SWITCH:
            return True
        if op.kind is Kind.STOP and not goals.isdisjoint(op.scope or ()):
            return True
        return not wish.services(self.state.catalog.services).issuperset(op.goals)

    def _end_superseded(self, op: Operation, intent: Intent) -> None:
        reason = Reason(code="conflict", message=f"{op.kind} {op.target} was replaced by {intent.kind} {intent.target}")
        self._end(replace(op, failure=op.failure or operations.Failure(reason=reason)), State.CANCELLED)

    def _cancel(self, event: ev.CancelRequested) -> None:
        op = self.state.operations.get(event.operation)
        if op is None:
            refusal = requests.not_found("operation", event.operation, self.state.operations)
        elif not op.state.open:
            refusal = fx.Refusal(code="conflict", message=f"cannot cancel operation {op.id}: it has already {op.state}")
        else:
            reason = Reason(code="conflict", message=f"{op.kind} {op.target} was cancelled by a client")
            self._return(op, State.CANCELLED, op.before, reason)
            self._effects.append(fx.Reply(request=event.request, operation=op.id))
            return
        self._effects.append(fx.Reply(request=event.request, refusal=refusal))

    # -- recovery ---------------------------------------------------------------------------------------------

    def _recovered(self, event: ev.Recovered) -> None:
        state = self.state
        state.started_at = event.at
        for op in event.operations:
            state.operations[op.id] = self._saved_operations[op.id] = self._announced[op.id] = op
        if event.snapshot is None:
            return
        kept = event.snapshot
        state.desired, state.reached_mode = kept.desired, kept.reached_mode
        state.next_operation = max(state.next_operation, kept.next_operation)
        for service in {*kept.gave_up, *kept.stopped_outside, *kept.placements, *kept.fingerprints}:
            track = state.track(service)
            track.gave_up = service in kept.gave_up
            track.stopped_outside = service in kept.stopped_outside
            track.devices = tuple(kept.placements.get(service, ()))
            track.fingerprint = kept.fingerprints.get(service, "")
        if event.same_boot:
            state.baselines = dict(kept.baselines)

    def _observed(self) -> None:
        """The world has been seen in full: open operations go on, and what is desired is restored if policy says so."""
        state = self.state
        state.observing = False
        policy = state.catalog.policy
        missing = [s for s in sorted(self._wanted()) if state.track(s).gone]
        if state.active_operations() or not missing:
            return
        if policy.restore_mode_at_start:
            self._inspect(self._repair(Kind.RESTORE, state.desired.mode or ",".join(missing), tuple(missing)))
        else:
            stopped = tuple(sorted({*state.desired.stopped, *missing}))
            state.desired = replace(state.desired, stopped=stopped)

    def _wanted(self) -> frozenset[str]:
        desired = self.state.desired
        return desired.services(self.state.catalog.services) - world.held_back(self.state, desired)

    def _repair(self, kind: Kind, target: str, services: tuple[str, ...]) -> Intent:
        scope = closure(services, self.state.catalog.services)
        return Intent(
            kind=kind,
            target=target,
            wish=lambda before: before,
            on_failure=self.state.catalog.policy.on_failure,
            scope=tuple(sorted(scope)),
        )

    def _heal(self) -> None:
        """A desired service that is down, and whose time has come, is started again."""
        state = self.state
        if state.catalog.policy.drift != "heal" or state.units_lost:
            return
        busy = {s for op in state.active_operations() for s in (op.scope or state.tracks)}
        busy |= {s for intent in self._intents.values() for s in (intent.scope or state.tracks)}
        for service in sorted(self._wanted() - busy):
            track = state.track(service)
            if track.gone and not track.command.coming and track.unseen_since is None:
                given = world.plan_input(state, state.desired)
                blocked = {r.service for r in plan(given).blocked if r.code != "telemetry_stale"}  # Inspect mends that
                if service not in blocked and not fold.releasing(state, service):
                    self._inspect(self._repair(Kind.HEAL, service, (service,)))
                    return

    # -- deadlines --------------------------------------------------------------------------------------------

    def _startup_deadline(self, service: str, track: Track) -> float | None:
        spec = self.state.catalog.services.get(service)
        waiting = world.phase_of(self.state, service) in (Phase.STARTING, Phase.LOADING)
        if spec is None or not waiting or track.started_at is None or track.failure is not None:
            return None
        return track.started_at + spec.startup_timeout_s

    def _stop_deadlines(self, service: str, track: Track) -> list[tuple[str, float]]:
        if track.stop_asked_at is None or not (track.command.leaving or not track.gone):
            return []
        spec = self.state.catalog.services.get(service)
        kill_at = track.stop_asked_at + (spec.stop_timeout_s if spec else 90.0) + KILL_GRACE_S
        if track.killed_at is None:
            return [("kill", kill_at)]
        return [("survivor", track.killed_at + SURVIVOR_S)] if track.failure is None else []

    def _deadlines(self) -> None:
        """Turn deadlines that have passed into facts."""
        state = self.state
        for service, track in sorted(state.tracks.items()):
            if track.backoff_until is not None and track.backoff_until <= state.at:
                track.backoff_until = None
            startup = self._startup_deadline(service, track)
            if startup is not None and startup <= state.at:
                fold.failed(state, service, outcomes.not_ready(state, service, track))
            for what, when in self._stop_deadlines(service, track):
                if when > state.at:
                    continue
                if what == "kill":
                    track.killed_at = state.at
                    track.kill_effect = self._effect_id()
                    track.tell(state.at, "did not end in time: SIGKILL")
                    self._effects.append(fx.KillUnit(id=track.kill_effect, service=service))
                else:
                    track.failure = outcomes.survivor(service)
                    track.failed_at = state.at
        timeout_s = state.catalog.policy.release_timeout_s
        for uuid, window in sorted(state.windows.items()):
            ends = [e.ended_at for e in window.leaving.values() if e.ended_at is not None]
            if any(end + timeout_s <= state.at for end in ends):
                self._effects.append(fx.SampleDevices())  # a fresh sample decides, whatever it shows …
            if any(end + timeout_s + world.STALE_S <= state.at for end in ends):
                fold.abandon_release(state, uuid)  # … and when none can be had, nobody waits for ever
        if self._retry_save_at is not None and self._retry_save_at <= state.at:
            self._retry_save_at = None

    # -- advancing --------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Plan, merge, fail, dispatch, end: until nothing changes any more."""
        for _ in range(2 * len(self.state.tracks) + 10):
            active = self.state.active_operations()
            if not active:
                return
            if self._fail_operations():
                continue
            self._drop_done_restarts()
            proposed = self._plan()
            for op in self.state.active_operations():
                mine = [s for s in proposed.steps if op.covers(s.service)]
                self._put(operations.merge(op, mine, over=self._over, at=self.state.at))
            if self._fail_blocked(proposed) or self._dispatch(proposed) or self._end_operations(proposed):
                continue
            return
        raise AssertionError("the plan does not settle")

    def _plan(self) -> Plan:
        active = self.state.active_operations()
        return plan(
            world.plan_input(
                self.state,
                self.state.desired,
                restarts=world.must_restart(active),
                unbounded=any(op.force for op in active),
                quiesce=all(op.quiesce for op in active),
            )
        )

    def _drop_done_restarts(self) -> None:
        """A service that was to go and is gone is from now on one that is to come."""
        for op in self.state.active_operations():
            left = tuple(s for s in op.restarts if not self._over((Verb.STOP, s)))
            if left != op.restarts:
                self._put(replace(op, restarts=left))

    def _over(self, key: StepKey) -> bool:
        """Is the purpose of this step fulfilled?"""
        verb, service = key
        track = self.state.tracks.get(service)
        phase = world.phase_of(self.state, service)
        match verb:
            case Verb.STOP:
                return track is None or (track.gone and not track.command.leaving and phase is not Phase.STARTING)
            case Verb.WAIT_RELEASE:
                return (track is None or track.gone) and not fold.releasing(self.state, service)
            case Verb.START:
                return phase in (Phase.LOADING, Phase.READY, Phase.DEGRADED)
            case Verb.WAIT_READY:
                return phase in (Phase.READY, Phase.DEGRADED)
            case _:
                return True

    def _dispatch(self, proposed: Plan) -> bool:
        """Give the commands of the steps that may begin."""
        if self.state.units_lost or self.state.unsaved:
            return False
        active = self.state.active_operations()
        given = False
        for step in proposed.ready():
            owners = [op for op in active if op.covers(step.service)]
            if owners and step.verb in (Verb.STOP, Verb.START):
                given |= self._command(step, proposed, owners)
        return given

    def _command(self, step: PlannedStep, proposed: Plan, owners: list[Operation]) -> bool:
        state = self.state
        track = state.track(step.service)
        if step.verb is Verb.STOP:
            if track.command is ops.Command.STARTING_UNWANTED or track.unseen_since is not None:
                return False
            track.command = ops.step(track.command, ops.Asked.STOP)
            track.stop_asked_at, track.killed_at = state.at, None
            track.stop_effect = self._effect_id()
            fold.open_releases(state, step.service)
            self._effects.append(fx.StopUnit(id=track.stop_effect, service=step.service))
            return True
        if track.command is not ops.Command.IDLE or track.unseen_since is not None:
            return False
        spec = state.catalog.services[step.service]
        track.command = ops.step(track.command, ops.Asked.START)
        track.devices = proposed.placements.get(step.service, ())
        track.fingerprint = spec.fingerprint
        track.started_at, track.stop_asked_at, track.killed_at = state.at, None, None
        track.run_expected = True
        track.failure = track.failed_at = track.backoff_until = None
        track.start_effect = self._effect_id()
        self._effects.append(fx.StartUnit(id=track.start_effect, service=step.service, devices=track.devices))
        for op in owners:
            current = state.operations[op.id]
            self._put(replace(current, attempted=tuple(sorted({*current.attempted, step.service}))))
        return True

    # -- how operations end -----------------------------------------------------------------------------------

    def _fail_operations(self) -> bool:
        """Act on the first service that went wrong under an operation's hands."""
        for op in self.state.active_operations():
            for service in sorted(self.state.tracks):
                reason = outcomes.spoils(self.state, op, service)
                if reason is not None:
                    self._fail(op, service, reason)
                    return True
        return False

    def _fail_blocked(self, proposed: Plan) -> bool:
        """Act on an operation that could not go on for too long."""
        for op in self.state.active_operations():
            reason = outcomes.blocked_too_long(self.state, op, proposed)
            if reason is not None:
                self._fail(op, reason.service or "", reason)
                return True
        return False

    def _fail(self, op: Operation, service: str, reason: Reason) -> None:
        """One service went wrong: say so, and go where the operation's policy leads."""
        track = self.state.track(service) if service else Track()
        verbs = (Verb.START, Verb.WAIT_READY) if service in op.goals else (Verb.STOP, Verb.WAIT_RELEASE)
        op = operations.fail_step(op, service, verbs, reason.message, self.state.at)
        if op.failure is None:
            op = replace(op, failure=operations.Failure(reason=reason))
            if service in op.attempted:
                op = replace(op, logs_of=service)
                self._effects.append(fx.ReadLogs(id=self._effect_id(), service=service))
        else:
            key = "rollback_failed" if op.returning is State.ROLLED_BACK else f"also_{service}"
            op = replace(op, details={**op.details, key: reason.message})
        track.failure = None  # this operation has taken note; the story keeps it
        policy = outcomes.policy_of(op)
        if op.returning is not None or policy is None or policy == "keep":
            # Nowhere to go back to: the rest goes on, this service is left alone, and the end is a failure.
            if service in op.goals:
                track.failure = reason
                track.gave_up = track.gave_up or op.kind not in (Kind.HEAL, Kind.RESTORE)
            end = State.CANCELLED if op.returning is State.CANCELLED else State.FAILED
            goals = tuple(g for g in op.goals if g != service)
            self._put(replace(op, returning=end, goals=goals, blocked_since=None))
        elif policy == "rollback":
            self._return(op, State.ROLLED_BACK, op.before, reason)
        else:
            kept = Desired(claims=outcomes.claims_on(op.kept, self.state.desired))
            self._return(op, State.FAILED, kept, reason)

    def _return(self, op: Operation, end: State, wish: Desired, reason: Reason) -> None:
        """From now on the operation leads to this wish, and ends so once it is fulfilled."""
        state = self.state
        state.desired = wish
        goals = wish.services(state.catalog.services)
        for service in goals:
            fold.forgive(state.track(service))
        if op.kind in (Kind.HEAL, Kind.RESTORE):
            for service in op.scope or ():
                state.track(service).gave_up = True
        self._put(
            replace(
                op,
                returning=end,
                failure=op.failure or operations.Failure(reason=reason),
                goals=tuple(sorted(goals if op.scope is None else goals & set(op.scope))),
                attempted=(),
                restarts=(),
                blocked_since=None,
            )
        )

    def _end_operations(self, proposed: Plan) -> bool:
        """End what has arrived; note since when an operation can do nothing."""
        ended = False
        for op in self.state.active_operations():
            mine = [s for s in proposed.steps if op.covers(s.service)]
            stuck = bool(mine) and all(s.blocked or s.after for s in mine)
            waits = stuck and world.quiesce_left(self.state) == 0
            if not mine and op.logs_of is None:
                self._end(op, op.returning or State.SUCCEEDED)
                ended = True
            elif stuck and waits and op.returning is not None and op.logs_of is None:
                self._end(replace(op, details={**op.details, "unrestored": outcomes.names(mine)}), State.FAILED)
                ended = True
            elif waits and op.blocked_since is None:
                self._put(replace(op, blocked_since=self.state.at))
            elif not waits and op.blocked_since is not None:
                self._put(replace(op, blocked_since=None))
        return ended

    def _end(self, op: Operation, end: State) -> None:
        state = self.state
        left = StepState.CANCELLED if end is State.CANCELLED else StepState.SKIPPED
        op = operations.close(op, left, state.at)
        self._put(replace(op, state=end, finished_at=state.at, blocked_since=None, logs_of=None))
        if op.kind is Kind.SWITCH:
            state.reached_mode = outcomes.mode_after(op, end, state.reached_mode)
        ended = [o.id for o in state.operations.values() if not o.state.open]
        for old in ended[: max(0, len(ended) - KEEP_OPERATIONS)]:
            del state.operations[old]
            self._saved_operations.pop(old, None)
            self._announced.pop(old, None)

    def _put(self, op: Operation) -> None:
        self.state.operations[op.id] = op

    # -- telling ----------------------------------------------------------------------------------------------

    def _phases(self) -> None:
        """Derive every phase anew and tell what changed."""
        for service, track in sorted(self.state.tracks.items()):
            phase = world.phase_of(self.state, service)
            if phase is track.phase:
                continue
            before, track.phase = track.phase, phase
            track.since = self.state.at
            track.tell(self.state.at, f"{before} → {phase}")
            if phase is Phase.READY and track.ready_at is None:
                track.ready_at = self.state.at
            change = fx.PhaseChanged(service=service, before=before.value, now=phase.value)
            self._effects.append(fx.Announce(change=change))

    def _save_and_announce(self) -> None:
        """Put a Save before everything else of this batch if something durable changed."""
        snapshot = self.state.snapshot()
        durable = replace(snapshot, baselines={})  # these drift with every sample and only ride along
        changed = [op for op in self.state.operations.values() if self._saved_operations.get(op.id) is not op]
        if not self.state.observing and self._retry_save_at is None and (durable != self._saved or changed):
            self._saved = durable
            self._saved_operations.update({op.id: op for op in changed})
            self._effects.insert(0, fx.Save(snapshot=snapshot, operations=tuple(changed)))
        for op in changed:
            before = self._announced.get(op.id)
            self._announced[op.id] = op
            self._effects += outcomes.announcements(before, op)

    # -- queries ----------------------------------------------------------------------------------------------

    def simulate(self, intent: Intent, facts: ev.Inspected | None) -> tuple[Plan, list[Reason]]:
        """What this wish would lead to, judged as the real thing would be; touches nothing."""
        _, proposed = requests.plan_of(self.state, intent)
        if facts is None:
            return proposed, list(proposed.blocked)
        return proposed, requests.reasons_against(self.state, intent, proposed, facts)
