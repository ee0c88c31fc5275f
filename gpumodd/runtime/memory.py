"""The daemon's memory across restarts: snapshots and operations, encoded for the store and decoded again.

Times in the core count from boot. They are stored with the wall-clock time of that boot's zero, so that another
boot can place them; on the same boot they come back unchanged.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import msgspec
import structlog

from gpumodd.core import events as ev
from gpumodd.core.operations import Operation, Step
from gpumodd.core.state import Snapshot
from gpumodd.ports import Clock, PortError, Store, StoredOperation

log = structlog.get_logger("gpumodd.memory")

FORMAT = 1
REMEMBERED = 100


@dataclass(frozen=True, kw_only=True)
class _StoredSnapshot:
    format: int
    boot_id: str
    epoch: float  # wall-clock time at boot time zero
    snapshot: Snapshot
    units_backend: str = ""


@dataclass(frozen=True, kw_only=True)
class _StoredOperation:
    format: int
    boot_id: str
    epoch: float
    operation: Operation


class Memory:
    """Saves and recalls through a Store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.units_backend = ""  # decided once, at the first start: it must never flip by itself

    @property
    def _epoch(self) -> float:
        return self._clock.wall() - self._clock.boottime()

    async def save(self, snapshot: Snapshot, operations: Collection[Operation]) -> None:
        """Make both durable in one transaction; raises PortError."""
        stored = _StoredSnapshot(
            format=FORMAT,
            boot_id=self._clock.boot_id(),
            epoch=self._epoch,
            snapshot=snapshot,
            units_backend=self.units_backend,
        )
        rows = [
            StoredOperation(
                id=op.id,
                open=op.state.open,
                record=msgspec.json.encode(
                    _StoredOperation(format=FORMAT, boot_id=self._clock.boot_id(), epoch=self._epoch, operation=op)
                ),
            )
            for op in operations
        ]
        await self._store.save(msgspec.json.encode(stored), rows)

    async def recall(self) -> ev.Recovered:
        """What the last daemon left behind; raises PortError(`state_corrupt`) for what cannot be read."""
        raw = await self._store.load()
        snapshot: Snapshot | None = None
        same_boot = True
        if raw is not None:
            try:
                stored = msgspec.json.decode(raw, type=_StoredSnapshot)
            except msgspec.MsgspecError as error:
                raise PortError(
                    "state_corrupt",
                    f"cannot read the saved state: {error}",
                    hint="move state.db aside; services that run are adopted, the mode has to be chosen anew",
                ) from None
            snapshot = stored.snapshot
            self.units_backend = stored.units_backend
            same_boot = stored.boot_id == self._clock.boot_id()
        return ev.Recovered(
            at=self._clock.boottime(),
            snapshot=snapshot,
            operations=tuple(reversed(await self.operations(REMEMBERED))),
            same_boot=same_boot,
        )

    async def operations(self, limit: int) -> list[Operation]:
        """The newest operations, newest first, their times placed in this boot."""
        found: list[Operation] = []
        for row in await self._store.operations(limit):
            try:
                stored = msgspec.json.decode(row.record, type=_StoredOperation)
            except msgspec.MsgspecError as error:
                log.warning("operation_unreadable", operation=row.id, error=str(error))
                continue
            same_boot = stored.boot_id == self._clock.boot_id()
            found.append(stored.operation if same_boot else _moved(stored.operation, stored.epoch - self._epoch))
        return found


def _moved(op: Operation, by: float) -> Operation:
    """The operation with its times in this boot's count."""
    return replace(
        op,
        created_at=op.created_at + by,
        finished_at=None if op.finished_at is None else op.finished_at + by,
        turned_at=None if op.turned_at is None else op.turned_at + by,
        blocked_since=None,
        steps=tuple(_moved_step(step, by) for step in op.steps),
    )


def _moved_step(step: Step, by: float) -> Step:
    return replace(
        step,
        started_at=None if step.started_at is None else step.started_at + by,
        finished_at=None if step.finished_at is None else step.finished_at + by,
    )
