"""The journal: what of a batch must be durable, and what subscribers are told of it.

A Save goes before everything else of its batch, so nothing is acted upon that a crash would forget.
"""

from dataclasses import replace

from gpumodd.core import effects as fx
from gpumodd.core import fold, outcomes, world
from gpumodd.core.outbox import Outbox
from gpumodd.core.phase import AT_REST, Phase
from gpumodd.core.state import State

KEEP_OPERATIONS = 100  # ended ones kept in memory; the state file has more
RETRY_SAVE_S = 2.0  # while the state file cannot be written


class Journal:
    """Compares the state with what was last saved, and tells what has changed."""

    def __init__(self, state: State, outbox: Outbox) -> None:
        self._state = state
        self._outbox = outbox

    def failed(self, why: str) -> None:
        """A Save could not be carried out: nothing counts as saved, and the next attempt is put off."""
        state = self._state
        state.unsaved, state.saved, state.to_save = why, None, set(state.operations)
        state.retry_save_at = state.at + RETRY_SAVE_S

    def worked(self) -> None:
        """The state file can be written again."""
        self._state.unsaved = ""

    def record(self) -> None:
        """Close a batch: tell phases, save what is durable, tell operations."""
        state = self._state
        self._tell_phases()
        if state.retry_save_at is not None and state.retry_save_at <= state.at:
            state.retry_save_at = None
        if not state.observing and state.retry_save_at is None:
            self._save()
        self._tell_modes()
        self._tell_operations()
        self._forget_old()

    def _save(self) -> None:
        state = self._state
        snapshot = state.snapshot()
        durable = replace(snapshot, baselines={})  # these drift with every sample and only ride along
        changed = tuple(op for op in state.operations.values() if op.id in state.to_save)
        if changed or durable != state.saved:
            state.saved = durable
            state.to_save.clear()
            self._outbox.emit_first(fx.Save(snapshot=snapshot, operations=changed))

    def _tell_modes(self) -> None:
        """What the last daemon left is not news; whoever subscribes is told the status first."""
        state = self._state
        now, before = (state.desired.mode, state.reached_mode), state.told_modes
        if state.observing or now == before:
            return
        state.told_modes = now
        if before is not None:
            change = fx.ModeChanged(wanted=now[0], reached=now[1], was_wanted=before[0], was_reached=before[1])
            self._outbox.emit(fx.Announce(change=change))

    def _tell_operations(self) -> None:
        state = self._state
        for op in [op for op in state.operations.values() if op.id in state.to_tell]:
            self._outbox.emit(*outcomes.announcements(state.to_tell[op.id], op))
        state.to_tell.clear()

    def _tell_phases(self) -> None:
        for service, track in sorted(self._state.tracks.items()):
            phase = world.phase_of(self._state, service)
            if phase is track.phase:
                continue
            before, track.phase = track.phase, phase
            lasted = "" if before in AT_REST else f" after {self._state.at - track.since:.1f} s"
            track.since = self._state.at
            track.tell(self._state.at, f"{before} → {phase}{lasted}")
            if phase is Phase.READY and track.ready_at is None:
                fold.became_ready(self._state, service, track)
            change = fx.PhaseChanged(service=service, before=before.value, now=phase.value)
            self._outbox.emit(fx.Announce(change=change))

    def _forget_old(self) -> None:
        ended = [op.id for op in self._state.operations.values() if not op.state.open]
        for old in ended[: max(0, len(ended) - KEEP_OPERATIONS)]:
            del self._state.operations[old]
            self._state.to_save.discard(old)
