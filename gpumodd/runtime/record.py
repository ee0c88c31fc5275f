"""The recorder: keeps what the engine was given, so that it can be replayed. It decides nothing and stops nothing.

Owns what goes into the event log, and when. Whatever goes wrong with it ends the recording, never the daemon.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from gpumodd import __version__
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.operations import Operation
from gpumodd.core.specs import Catalog
from gpumodd.ports import Clock, EventLog
from gpumodd.runtime import recording

log = structlog.get_logger("gpumodd.record")

GATHER_S = 5.0  # batches that led to nothing are written together: an idle daemon seldom touches the disk
GATHER_BYTES = 64 << 10
AGAIN_S = 60.0  # after trouble


class Recorder:
    """Follows one engine from its beginning; `observe` takes every batch."""

    def __init__(self, engine: Engine, kept: EventLog, clock: Clock) -> None:
        self._engine = engine
        self._log = kept
        self._clock = clock
        self._n = 0
        self._lines: list[bytes] = []
        self._size = 0
        self._written_at = 0.0
        self._known: dict[str, _Known] = {}  # each part of the state, as it was written last
        self._again_at: float | None = None  # in trouble: nothing is kept until then
        self._told = ""
        self._broken = False
        self._guarded(self._begin)

    def observe(self, batch: Sequence[ev.Event], effects: Sequence[fx.Effect] | None) -> None:
        """The engine has handled these events; `effects` is None when it broke on them."""
        self._n += 1
        self._guarded(lambda: self._observe(batch, effects))

    def close(self) -> None:
        """Write what is left and end the file."""
        self._guarded(self._end)
        self._log.close()

    # -- what is kept -----------------------------------------------------------------------------------------

    def _observe(self, batch: Sequence[ev.Event], effects: Sequence[fx.Effect] | None) -> None:
        if self._log.trouble:
            self._pause(self._log.trouble)
        if self._again_at is not None:
            if effects is not None and self._clock.boottime() >= self._again_at:
                self._begin()
            return
        self._add(recording.batch(self._n, batch, effects))
        if effects is None:
            self._write()
            log.error("engine_broke", batch=self._n, hint="`gpumodd replay` of the newest file breaks there, too")
        elif self._log.full:
            self._mark()
            self._begin()
        elif any(map(_ends_operation, effects)):
            self._mark()
        elif effects or self._size > GATHER_BYTES or self._clock.boottime() - self._written_at >= GATHER_S:
            self._write()

    def _begin(self) -> None:
        """A new file, which begins with the state as it is."""
        epoch = self._clock.wall() - self._clock.boottime()
        state, boot_id = self._engine.state, self._clock.boot_id()
        self._known = {name: _Known.of(piece, recording.part(piece)) for name, piece in recording.pieces(state)}
        self._again_at = None
        self._log.begin(recording.head(state, version=__version__, boot_id=boot_id, epoch=epoch, n=self._n))

    def _mark(self) -> None:
        """The parts of the state that have changed since they were written."""
        changed: dict[str, bytes] = {}
        pieces = dict(recording.pieces(self._engine.state))
        gone = sorted(self._known.keys() - pieces.keys())
        for name in gone:
            del self._known[name]
        for name, piece in pieces.items():
            known = self._known.get(name)
            if piece is not None and known is not None and known.frozen is piece:
                continue
            part = recording.part(piece)
            if known is None or known.hash != hash(part):
                changed[name] = part
            self._known[name] = _Known.of(piece, part)
        self._add(recording.mark(self._n, changed, gone))
        self._write()

    def _end(self) -> None:
        if self._again_at is None and not self._log.trouble:
            self._mark()

    # -- lines ------------------------------------------------------------------------------------------------

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

    def _write(self) -> None:
        self._log.append(b"".join(self._lines))
        self._lines.clear()
        self._size = 0
        self._written_at = self._clock.boottime()
        if self._told and not self._log.trouble:
            self._told = ""
            log.info("recording_again")

    def _pause(self, trouble: str) -> None:
        if self._again_at is not None:
            return
        self._again_at = self._clock.boottime() + AGAIN_S
        self._lines.clear()
        self._size = 0
        if trouble != self._told:
            self._told = trouble
            log.warning("not_recording", error=trouble, again_in_s=AGAIN_S)

    def _guarded(self, work: Callable[[], None]) -> None:
        """A mistake in here must not reach the loop."""
        if self._broken:
            return
        try:
            work()
        except Exception as error:
            self._broken = True
            log.error("recording_broke", exc_info=error)


@dataclass(frozen=True, slots=True)
class _Known:
    """A part as it was written. What cannot change need not be encoded again to see that it has not."""

    frozen: Operation | Catalog | None
    hash: int

    @classmethod
    def of(cls, piece: object, part: bytes) -> "_Known":
        return cls(piece if isinstance(piece, Operation | Catalog) else None, hash(part))


def _ends_operation(effect: fx.Effect) -> bool:
    match effect:
        case fx.Announce(change=fx.OperationChanged(operation=op)):
            return not op.state.open
    return False
