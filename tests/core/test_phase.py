"""Phases: which facts amount to which."""

import pytest

from gpumodd.core.facts import Active, Ended, UnitFact
from gpumodd.core.ops import Command
from gpumodd.core.phase import Health, Phase, derive


def phase(active=None, **facts) -> Phase:
    ended = facts.pop("ended", None)
    unit = UnitFact(service="a", active=active, at=1.0, ended=ended) if active is not None else None
    given = {
        "command": Command.IDLE,
        "health": Health.LOADING,
        "has_probe": True,
        "settled": True,
        "releasing": False,
        "backoff": False,
        "failed": False,
        "reachable": True,
    }
    return derive(unit=unit, **{**given, **facts})


@pytest.mark.parametrize(
    ("health", "expected"),
    [(Health.LOADING, Phase.LOADING), (Health.READY, Phase.READY), (Health.DEGRADED, Phase.DEGRADED)],
)
def test_an_active_unit_is_what_its_health_says(health, expected):
    assert phase(Active.ACTIVE, health=health) is expected


def test_without_a_port_an_active_unit_is_ready_once_it_has_settled():
    assert phase(Active.ACTIVE, has_probe=False, settled=False) is Phase.LOADING
    assert phase(Active.ACTIVE, has_probe=False) is Phase.READY


def test_what_is_under_way_shows_before_what_was_seen():
    assert phase(Active.ACTIVE, command=Command.STOPPING, health=Health.READY) is Phase.STOPPING
    assert phase(Active.INACTIVE, command=Command.STARTING) is Phase.STARTING
    assert phase(Active.INACTIVE, command=Command.STARTING_UNWANTED) is Phase.STOPPING
    assert phase(Active.ACTIVATING) is Phase.STARTING
    assert phase(Active.DEACTIVATING) is Phase.STOPPING


def test_a_unit_that_is_gone_is_releasing_then_waiting_then_failed_then_stopped():
    assert phase(Active.INACTIVE, releasing=True, backoff=True, failed=True) is Phase.RELEASING
    assert phase(Active.INACTIVE, backoff=True, failed=True) is Phase.BACKOFF
    assert phase(Active.INACTIVE, failed=True) is Phase.FAILED
    assert phase(Active.INACTIVE) is Phase.STOPPED
    assert phase() is Phase.STOPPED


def test_a_failed_unit_is_failed_unless_a_stop_ended_it():
    assert phase(Active.FAILED, ended=Ended.EXIT) is Phase.FAILED
    assert phase(Active.FAILED, ended=Ended.JOB) is Phase.STOPPED


def test_nobody_knows_what_an_absent_manager_runs():
    assert phase(Active.ACTIVE, health=Health.READY, reachable=False) is Phase.UNKNOWN
    assert phase(Active.INACTIVE, reachable=False) is Phase.STOPPED
    assert phase(Active.UNKNOWN) is Phase.UNKNOWN
