"""The journal: what of a batch must be durable, and what subscribers are told of it.

Owns what was saved and announced last. A Save goes before everything else of its batch, so nothing is acted upon
that a crash would forget.
"""

from dataclasses import replace

from gpumodd.core import effects as fx
from gpumodd.core import fold, outcomes, world
from gpumodd.core.operations import Operation
from gpumodd.core.outbox import Outbox
from gpumodd.core.phase import Phase
from gpumodd.core.state import Snapshot, State

KEEP_OPERATIONS = 100  # ended ones kept in memory; the state file has more
RETRY_SAVE_S = 2.0  # while the state file cannot be written


class Journal:
    """Compares the state with what was last saved and announced."""

    def __init__(self, state: State, outbox: Outbox) -> None:
        self._state = state
        self._outbox = outbox
        self._saved: Snapshot | None = None
        self._saved_operations: dict[str, Operation] = {}
        self._announced: dict[str, Operation] = {}
        self.retry_at: float | None = None

    def recalled(self, op: Operation) -> None:
        """This operation came out of the state file: it is saved and known."""
        self._saved_operations[op.id] = self._announced[op.id] = op

    def failed(self, why: str) -> None:
        """A Save could not be carried out: nothing counts as saved, and the next attempt is put off."""
        self._state.unsaved = why
        self._saved = None
        self._saved_operations.clear()
        self.retry_at = self._state.at + RETRY_SAVE_S

    def worked(self) -> None:
        """The state file can be written again."""
        self._state.unsaved = ""

    def record(self) -> None:
        """Close a batch: tell phases, save what is durable, tell operations."""
        self._tell_phases()
        if self.retry_at is not None and self.retry_at <= self._state.at:
            self.retry_at = None
        changed = [op for op in self._state.operations.values() if self._saved_operations.get(op.id) is not op]
        if not self._state.observing and self.retry_at is None:
            self._save(changed)
        for op in changed:
            before = self._announced.get(op.id)
            self._announced[op.id] = op
            self._outbox.emit(*outcomes.announcements(before, op))
        self._forget_old()

    def _save(self, changed: list[Operation]) -> None:
        snapshot = self._state.snapshot()
        durable = replace(snapshot, baselines={})  # these drift with every sample and only ride along
        if changed or durable != self._saved:
            self._saved = durable
            self._saved_operations.update({op.id: op for op in changed})
            self._outbox.emit_first(fx.Save(snapshot=snapshot, operations=tuple(changed)))

    def _tell_phases(self) -> None:
        for service, track in sorted(self._state.tracks.items()):
            phase = world.phase_of(self._state, service)
            if phase is track.phase:
                continue
            before, track.phase = track.phase, phase
            track.since = self._state.at
            track.tell(self._state.at, f"{before} → {phase}")
            if phase is Phase.READY and track.ready_at is None:
                fold.became_ready(self._state, service, track)
            change = fx.PhaseChanged(service=service, before=before.value, now=phase.value)
            self._outbox.emit(fx.Announce(change=change))

    def _forget_old(self) -> None:
        ended = [op.id for op in self._state.operations.values() if not op.state.open]
        for old in ended[: max(0, len(ended) - KEEP_OPERATIONS)]:
            del self._state.operations[old]
            self._saved_operations.pop(old, None)
            self._announced.pop(old, None)
