"""Reading ahead: one model at a time, none that does not fit, and no longer than somebody waits for it."""

from collections.abc import Callable

import anyio
import pytest

from gpumodd.core import attention
from gpumodd.core.attention import Reading
from gpumodd.core.engine import Engine
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.read_ahead import ReadAhead
from tests.runtime.fakes import ManualClock


class ScriptedCache:
    """Says how large models are, and reads until it is told to stop."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.begun: list[str] = []
        self.ended: list[str] = []

    async def size_mib(self, model: str) -> int:
        return self.sizes.get(model, 0)

    async def read(self, model: str, wanted: Callable[[], bool]) -> int:
        self.begun.append(model)
        while wanted():
            await anyio.sleep(0.001)
        self.ended.append(model)
        return 1


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Reading]:
    """What the engine's attention names."""
    names: dict[str, Reading] = {}
    monkeypatch.setattr(attention, "reading", lambda _state: dict(names))
    return names


def of(service: str, room_mib: int = 100) -> Reading:
    return Reading(service=service, model=f"/{service}", room_mib=room_mib)


async def eventually(what: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not what():
            await anyio.sleep(0.001)


async def test_one_after_the_other_and_only_as_long_as_it_is_waited_for(wanted):
    cache, loop = ScriptedCache(), Loop(Engine(), ManualClock())
    cache.sizes = {"/a": 50, "/b": 50}
    reader = ReadAhead(cache, loop)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        wanted.update(a=of("a"), b=of("b"))
        reader.follow()
        await eventually(lambda: cache.begun == ["/a"])
        del wanted["a"]
        reader.follow()
        await eventually(lambda: cache.begun == ["/a", "/b"])
        assert cache.ended == ["/a"]
        wanted.clear()
        reader.follow()
        await eventually(lambda: cache.ended == ["/a", "/b"])
        wanted["a"] = of("a")  # it waits once more
        reader.follow()
        await eventually(lambda: cache.begun == ["/a", "/b", "/a"])
        tasks.cancel_scope.cancel()


async def test_what_does_not_fit_or_cannot_be_read_is_left_alone(wanted):
    cache, loop = ScriptedCache(), Loop(Engine(), ManualClock())
    cache.sizes = {"/big": 101, "/fits": 100}
    reader = ReadAhead(cache, loop)
    wanted.update(big=of("big"), gone=of("gone"), fits=of("fits"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        reader.follow()
        await eventually(lambda: cache.begun == ["/fits"])
        tasks.cancel_scope.cancel()
