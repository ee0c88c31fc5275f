"""A machine of its own for the soak tests: they restart its bus and end its manager."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.stage import ROUNDS, Stage
from tests.support.sandbox import Sandbox


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long is left to `make soak`."""
    if not ROUNDS:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def soak_box(sandbox_possible: None) -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


@pytest.fixture
def stage(soak_box: Sandbox, tmp_path: Path) -> Stage:
    """Nine services in two modes that share one; each of the large ones needs the room of another. Not started yet."""
    s = Stage(tmp_path / "d", soak_box)
    load = ("--load-s", "0.15", "--linger-ms", "60")
    for side in "ab":
        s.service(f"{side}1", 16000, *load)
        s.service(f"{side}2", 15000, *load)
        s.service(f"{side}3", 5000, *load)
        s.service(f"{side}4", 4000, *load)
        s.mode(side, "keeper", *(f"{side}{n}" for n in range(1, 5)))
    s.service("keeper", 2000)
    return s
