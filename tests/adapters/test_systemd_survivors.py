"""Processes that outlive their unit are looked at until they are gone, and nobody else is."""

from pathlib import Path

import pytest

from gpumodd.adapters.systemd.names import SLICE, unit_name
from gpumodd.adapters.systemd.survivors import Survivors


async def tell(service: str) -> None:
    raise AssertionError(f"nobody watches {service} here")


@pytest.fixture
def survivors(tmp_path: Path) -> Survivors:
    folder = tmp_path / SLICE / unit_name("a")
    (folder / "below").mkdir(parents=True)
    (folder / "cgroup.procs").write_text("12\n7\n")
    (folder / "below/cgroup.procs").write_text("9\n")
    found = Survivors(tell)
    found.manager = tmp_path
    return found


def test_who_is_left_in_the_cgroup_of_a_unit_that_is_gone_is_watched(survivors: Survivors):
    assert survivors.of("a") == (7, 9, 12)
    assert survivors.known == {"a"}


def test_who_has_none_is_not(survivors: Survivors):
    assert survivors.of("b") == ()
    assert survivors.known == frozenset()


def test_a_unit_that_runs_has_no_survivors_whatever_was_thought_before(survivors: Survivors):
    survivors.of("a")  # late news: its processes are those of the next run
    assert survivors.none("a") == ()
    assert survivors.known == frozenset()
