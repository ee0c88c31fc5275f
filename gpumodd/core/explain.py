"""Explanations: why a service is in its phase, what would change that, and what happened to it.

Pure reading of the state, for people: numbers and names rather than codes. `now` is the boot clock's time; the
state itself knows only when it last heard something.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gpumodd.core import conditions, deadlines, story, world
from gpumodd.core.desired import closure
from gpumodd.core.operations import Operation, Step, StepState, Verb
from gpumodd.core.phase import AT_REST, Phase
from gpumodd.core.setbacks import GIVE_UP_AFTER
from gpumodd.core.state import Moment, State, Track

NEWEST = 40  # moments of a story that are told
OF_OTHERS = 6  # moments of each dependency that are told beside them


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`why` says what the phase means here; `because` what it rests on, most telling first."""

    why: str
    because: tuple[str, ...]
    would_change: tuple[str, ...]
    story: tuple[Moment, ...]


def explain(state: State, service: str, now: float) -> Explanation:
    """Everything there is to say about one service."""
    asked = _Asked(state, service, now)
    return Explanation(
        why=asked.why(),
        because=tuple(asked.because()),
        would_change=tuple(asked.changes()),
        story=tuple(_story(state, service, asked.phase)),
    )


class _Asked:
    """One service, looked at once."""

    def __init__(self, state: State, service: str, now: float) -> None:
        self._state = state
        self._service = service
        self._now = max(now, state.at)
        self._specs = state.catalog.services
        self._spec = self._specs.get(service)
        self._track = state.tracks.get(service) or Track(since=state.started_at)
        self._wanted = service in state.desired.services(self._specs)
        self.phase = world.phase_of(state, service)

    # -- why --------------------------------------------------------------------------------------------------

    def why(self) -> str:
        """The phase in words, with its numbers."""
        track, probe = self._track, self._track.probe
        pid = track.unit.main_pid if track.unit is not None and not track.unit.gone else None
        process = f"its process (pid {pid})" if pid else "its process"
        answer = f"; its last answer: {probe.told}" if probe is not None else ""
        match self.phase:
            case Phase.STOPPED:
                return "no process of it runs"
            case Phase.STARTING:
                return f"its unit is on the way up, asked to start {self._ago(track.started_at)} ago"
            case Phase.LOADING:
                port = self._spec is not None and self._spec.port is not None
                waits = f"its health does not answer well yet{answer}" if port else "it is watched for a moment"
                return f"{process} runs since {self._ago(track.active_at or track.started_at)}, and {waits}"
            case Phase.READY if probe is None:
                return f"{process} runs, and it has no port that could be asked"
            case Phase.READY:
                return f"{process} runs and answers, ready since {self._ago(track.ready_at or track.since)}"
            case Phase.DEGRADED:
                bad = f", {probe.bad} bad answers in a row" if probe is not None and probe.bad else ""
                return f"{process} runs, but its health answers badly{answer}{bad}"
            case Phase.SLEEPING:
                return f"{process} runs and has given its memory back"
            case Phase.WAKING:
                return f"{process} is taking its memory again"
            case Phase.STOPPING if track.stop_asked_at is None:
                return "it is on its way down, and gpumodd did not ask it to"
            case Phase.STOPPING:
                killed = f", was killed {self._ago(track.killed_at)} ago" if track.killed_at is not None else ""
                return f"it was asked to end {self._ago(track.stop_asked_at)} ago{killed} and has not ended yet"
            case Phase.RELEASING:
                return f"its process is gone, but its memory is not back: {self._missing()}"
            case Phase.BACKOFF:
                again = f"it is tried again in {self._left(track.backoff_until):.1f} s"
                return f"it is down, and {again} (failures in a row: {track.failures})"
            case Phase.FAILED:
                left = ", and is left alone" if track.gave_up else ""
                return f"it went wrong{left}"
        return f"the service manager cannot say: {self._state.units_lost or 'its unit is in no state it knows'}"

    def _missing(self) -> str:
        """What has not come back, by device."""
        held: list[str] = []
        budgets = world.budgets(self._state)
        for uuid, window in sorted(self._state.windows.items()):
            if self._service in window.leaving:
                mib = budgets[uuid].held.get(self._service, 0) if uuid in budgets else 0
                ended = self._ago(window.leaving[self._service].ended_at)
                held.append(f"{mib} MiB on {story.devices(self._state, [uuid])}, {ended} after its end")
        return "; ".join(held) or "no sample has shown it yet"

    # -- because ----------------------------------------------------------------------------------------------

    def because(self) -> Iterator[str]:
        """What the phase rests on, most telling first."""
        reasons = list(dict.fromkeys(self._reasons()))
        yield from reasons
        if self._wanted and self.phase in AT_REST and not reasons:
            yield "nothing is under way to start it"
        yield self._wish()
        yield from self._needs(ready=True)
        yield from self._memory()
        yield from self._let_through()
        if world.stale(self._state, self._service) and self.phase not in AT_REST:
            yield "its definition changed, and it still runs the old one"

    def _reasons(self) -> Iterator[str]:
        """What went wrong, what is under way, what stands in the way."""
        wrong = conditions.what_went_wrong(self._service, self._track)
        if wrong is not None:
            yield wrong.message
        elif self.phase is Phase.FAILED:
            yield from self._last_failure()
        if self._track.stopped_outside and self._wanted:
            yield "it was stopped without gpumodd, and that is respected"
        for op in self._state.active_operations():
            yield from self._under_way(op)
        if self._wanted and self.phase in AT_REST:
            obstacle = conditions.obstacles(self._state).get(self._service)
            yield from (obstacle.message,) if obstacle is not None else ()
        yield from self._needs(ready=False)

    def _last_failure(self) -> Iterator[str]:
        """An operation that has taken note of a failure knows it, when the service's own record was cleared."""
        for op in reversed(self._state.operations.values()):
            if op.failure is not None and op.failure.reason.service == self._service:
                yield f"{op.failure.reason.message} (operation {op.id}: {op.kind} {op.target})"
                return

    def _under_way(self, op: Operation) -> Iterator[str]:
        """What an operation that runs is about to do with it, and what for."""
        steps = {s.id: s for s in op.steps}
        mine = [s for s in op.steps if s.service == self._service and s.state.open]
        for step in mine:
            if step.verb in (Verb.START, Verb.STOP):
                waits = [_until(steps[id]) for id in step.after if id in steps and steps[id].state.open]
                when = f" once {' and '.join(waits)}" if waits else ""
                verb = "is starting it" if step.verb is Verb.START else "is stopping it"
                if step.state is StepState.PENDING:
                    verb = "will start it" if step.verb is Verb.START else "will stop it"
                yield f"{story.cause(op)}: {verb}{when}"
        if not mine and self._service in op.goals and op.covers(self._service) and self.phase is not Phase.READY:
            yield f"{story.cause(op)}: wants it ready"

    def _wish(self) -> str:
        if self._service in self._state.desired.stopped:
            return "a person stopped it"
        if not self._wanted:
            return "nothing asks for it"
        owners = [
            f"mode {c.owner}" if c.kind == "mode" else f"a {c.kind} of {c.owner}" if c.kind != "manual" else "a person"
            for c in self._state.desired.claims
            if self._service in c.services
        ]
        above = sorted(s for s, spec in self._specs.items() if self._service in spec.depends_on and self._is_wanted(s))
        owners += [f"{s}, which depends on it" for s in above]
        return f"it is wanted by {', '.join(owners)}" if owners else "it is wanted"

    def _needs(self, *, ready: bool) -> Iterator[str]:
        for needed in self._spec.depends_on if self._spec is not None else ():
            phase = world.phase_of(self._state, needed)
            track = self._state.tracks.get(needed)
            why = f": {track.failure.message}" if track is not None and track.failure is not None else ""
            if ready is (phase is Phase.READY):
                yield f"it depends on {needed}, which is {phase}{why if not ready else ''}"

    def _memory(self) -> Iterator[str]:
        """What it holds, or would take; how long it took to load."""
        spec = self._spec
        held = {
            uuid: seen.services[self._service]
            for uuid, seen in sorted(self._state.attribution.items())
            if self._service in seen.services
        }
        source = f"{spec.vram_mib} {spec.vram_source.value}" if spec is not None and spec.vram_mib is not None else ""
        if held and self.phase not in AT_REST:
            where = ", ".join(f"{mib} MiB on {story.devices(self._state, [uuid])}" for uuid, mib in held.items())
            yield f"it holds {where}" + (f" ({source})" if source else "")
        elif spec is not None and spec.vram_mib:
            yield f"it takes {spec.vram_mib} MiB ({spec.vram_source.value}){self._room()}"
        load_s = self._state.costs_of(self._service).load_s
        if load_s is not None and self.phase in (*AT_REST, Phase.STARTING, Phase.LOADING):
            yield f"from its start until it was ready, it took {load_s:.1f} s the last times"

    def _room(self) -> str:
        """What is left where most is, for who is down."""
        budgets = world.budgets(self._state)
        if self.phase not in AT_REST or not budgets:
            return ""
        most = max(budgets.values(), key=lambda b: (b.available_mib, -b.index))
        return f"; {max(0, most.available_mib)} MiB are left on device {most.index}"

    def _let_through(self) -> Iterator[str]:
        """What spoke against the start that led to this run."""
        if self.phase in AT_REST:
            return
        for op in reversed(self._state.operations.values()):
            if any(s.key == (Verb.START, self._service) and s.started_at is not None for s in op.steps):
                told = "forced" if op.force else "overcommit: warn"
                mine = (r for r in op.passed if r.service == self._service)
                yield from (f"it was started in spite of this ({told}): {r.message}" for r in mine)
                return

    def _is_wanted(self, service: str) -> bool:
        return service in self._state.desired.services(self._specs)

    # -- what would change it -----------------------------------------------------------------------------------

    def changes(self) -> Iterator[str]:
        """What will happen by itself, then what a person can do."""
        yield from self._by_itself()
        obstacle = conditions.obstacles(self._state).get(self._service) if self._wanted else None
        if obstacle is not None and self.phase in AT_REST and obstacle.hint:
            yield obstacle.hint
        for needed in self._spec.depends_on if self._spec is not None else ():
            if world.phase_of(self._state, needed) is not Phase.READY and self._wanted:
                yield f"`gpumodctl service explain {needed}` tells what {needed} waits for"
        service, modes = self._service, sorted(m.id for m in self._state.catalog.modes.values() if self._names(m.id))
        ahead = [op for op in self._state.active_operations() if any(self._under_way(op))]
        for op in ahead:
            yield f"`gpumodctl operation cancel {op.id}` goes back to what was wanted before it"
        if self.phase in AT_REST:
            if self._spec is not None and not ahead:
                yield f"`gpumodctl service start {service}` starts it"
                yield from (f"`gpumodctl switch {mode}` starts it with its mode" for mode in modes)
        else:
            if self.phase is Phase.DEGRADED or world.stale(self._state, service):
                yield f"`gpumodctl service restart {service}` starts it anew"
            if self.phase not in (Phase.STOPPING, Phase.RELEASING) and not ahead:
                yield f"`gpumodctl service stop {service}` ends it"
                yield "a switch to a mode without it ends it" if self._wanted else "any switch ends it"
        if self._track.failure is not None:
            yield f"`gpumodctl service logs {service}` shows what it said last"

    def _names(self, mode: str) -> bool:
        return self._service in self._state.catalog.modes[mode].services

    def _by_itself(self) -> Iterator[str]:
        track, spec, state = self._track, self._spec, self._state
        due = deadlines.startup_deadline(state, self._service, track)
        if due is not None:
            what = "a good answer" if spec is not None and spec.port is not None else "running on"
            yield f"{what} makes it ready; if none comes, it counts as failed in {self._left(due):.0f} s"
        if self.phase is Phase.DEGRADED and spec is not None:
            yield f"{spec.health.recoveries} good answers in a row make it ready again"
        if self.phase is Phase.BACKOFF and track.failures:
            yield f"after {GIVE_UP_AFTER} failures in a row it is left alone"
        kill = deadlines.kill_deadline(state, self._service, track)
        if kill is not None:
            yield f"in {self._left(kill):.0f} s it is killed"
        ends = [w.leaving[self._service].ended_at for w in state.windows.values() if self._service in w.leaving]
        for ended_at in ends:
            if ended_at is not None:
                late = self._left(ended_at + state.catalog.policy.release_timeout_s)
                yield f"once its memory is back it is stopped; in {late:.0f} s it counts as not released"

    def _ago(self, at: float | None) -> str:
        return "an unknown time" if at is None else f"{max(0.0, self._now - at):.1f} s"

    def _left(self, at: float | None) -> float:
        return 0.0 if at is None else max(0.0, at - self._now)


def _until(step: Step) -> str:
    """What holds once this step is done."""
    match step.verb:
        case Verb.STOP:
            return f"{step.service} is gone"
        case Verb.WAIT_RELEASE:
            return f"the memory of {step.service} is back"
        case Verb.WAIT_READY:
            return f"{step.service} is ready"
        case _:
            return f"{step.verb} {step.service} is done"


# -- the story ------------------------------------------------------------------------------------------------


def _story(state: State, service: str, phase: Phase) -> list[Moment]:
    """What happened, oldest first. What happened to what it needs belongs to it, unless both are well."""
    track = state.tracks.get(service) or Track()
    moments = [*_earlier(state, service), *track.story]
    for needed in sorted(closure([service], state.catalog.services) - {service}):
        other = state.tracks.get(needed)
        if other is not None and not (phase is Phase.READY and world.phase_of(state, needed) is Phase.READY):
            moments += [Moment(at=m.at, text=f"{needed}: {m.text}", cause=m.cause) for m in other.story[-OF_OTHERS:]]
    return sorted(moments, key=lambda m: m.at)[-NEWEST:]


def _earlier(state: State, service: str) -> Iterator[Moment]:
    """What operations did to it under an earlier daemon, whose own memory of it is gone."""
    for op in state.operations.values():
        for step in op.steps:
            if step.service != service or step.finished_at is None or step.finished_at >= state.started_at:
                continue
            if step.state in (StepState.DONE, StepState.FAILED):
                words = step.error or f"{step.verb.value.replace('_', ' ')}: {step.state.value}"
                yield Moment(at=step.finished_at, text=words, cause=story.cause(op))
