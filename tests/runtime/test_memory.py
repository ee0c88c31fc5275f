"""What is remembered comes back: on the same boot unchanged, on another one at the right time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpumodd.adapters.sqlite import SqliteStore
from gpumodd.core.costs import Costs
from gpumodd.core.desired import Claim, Desired
from gpumodd.core.operations import Failure, Kind, Operation, State, Step, StepState, Verb
from gpumodd.core.problems import Reason
from gpumodd.core.state import Snapshot
from gpumodd.ports import PortError
from gpumodd.runtime.memory import Memory
from tests.runtime.fakes import ManualClock

SNAPSHOT = Snapshot(
    desired=Desired(mode="rag", claims=(Claim(kind="mode", owner="rag", services=("a", "b")),), stopped=("b",)),
    reached_mode=None,
    next_operation=8,
    placements={"a": ("GPU-0", "GPU-1")},
    gave_up=("c",),
    baselines={"GPU-0": 300},
    costs={"a": Costs(loads=(12.5, 11.0), stops=(0.25,))},
)
OPERATION = Operation(
    id="7",
    kind=Kind.SWITCH,
    target="rag",
    created_at=50.0,
    before=Desired(),
    steps=(Step(id="7.1", verb=Verb.START, service="a", state=StepState.RUNNING, started_at=51.0),),
    failure=Failure(reason=Reason(code="unit_failed", message="it ended", details={"exit_code": 3}), log=("bye",)),
    returning=State.ROLLED_BACK,
)


@asynccontextmanager
async def remembered(path: Path, clock: ManualClock) -> AsyncIterator[Memory]:
    """The memory of one daemon's life."""
    store = await SqliteStore.open(path / "state.db")
    try:
        yield Memory(store, clock)
    finally:
        await store.close()


async def test_the_same_boot_brings_everything_back_unchanged(tmp_path: Path):
    async with remembered(tmp_path, ManualClock()) as memory:
        memory.units_backend = "systemd"
        await memory.save(SNAPSHOT, [OPERATION])
    async with remembered(tmp_path, ManualClock(at=200.0, epoch=1_700_000_500.0)) as again:  # the wall clock was set
        recovered = await again.recall()
    assert recovered.snapshot == SNAPSHOT
    assert recovered.operations == (OPERATION,)
    assert recovered.same_boot
    assert again.units_backend == "systemd"


async def test_another_boot_places_times_in_its_own_count(tmp_path: Path):
    async with remembered(tmp_path, ManualClock()) as memory:
        await memory.save(SNAPSHOT, [OPERATION])
    later = ManualClock(at=10.0, boot="boot-2", epoch=1_700_001_000.0)  # booted 1,000 s after the first boot
    async with remembered(tmp_path, later) as again:
        recovered = await again.recall()
    assert not recovered.same_boot
    assert recovered.operations[0].created_at == 50.0 - 1000.0
    assert recovered.operations[0].steps[0].started_at == 51.0 - 1000.0


async def test_a_snapshot_that_cannot_be_read_is_refused_with_a_way_out(tmp_path: Path):
    store = await SqliteStore.open(tmp_path / "state.db")
    await store.save(b'{"format": "what"}', [])
    await store.close()
    async with remembered(tmp_path, ManualClock()) as memory:
        with pytest.raises(PortError) as refused:
            await memory.recall()
    assert refused.value.code == "state_corrupt"
    assert "aside" in refused.value.hint


async def test_nothing_is_remembered_at_first(tmp_path: Path):
    async with remembered(tmp_path, ManualClock()) as memory:
        recovered = await memory.recall()
    assert (recovered.snapshot, recovered.operations) == (None, ())


async def test_a_state_file_from_before_a_field_existed_is_read(tmp_path: Path):
    store = await SqliteStore.open(tmp_path / "state.db")
    await store.save(b'{"format": 1, "boot_id": "b", "epoch": 0.0, "snapshot": {"next_operation": 3}}', [])
    await store.close()
    async with remembered(tmp_path, ManualClock()) as memory:
        recovered = await memory.recall()
    assert recovered.snapshot == Snapshot(next_operation=3)
