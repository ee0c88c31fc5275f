"""Conditions: how things stand, what is wrong, and why."""

from dataclasses import replace

import pytest

from gpumodd.core import conditions
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.facts import DevicesFact, Ended
from gpumodd.core.problems import CODES
from gpumodd.core.setbacks import GIVE_UP_AFTER
from gpumodd.core.specs import HealthSpec, Policy
from tests.core.machine import Behaviour, Machine, catalog, service


def machine(**policy) -> Machine:
    health = HealthSpec(failures=2, recoveries=1)
    specs = service("a", 9000, health=health, startup_timeout_s=5.0), service("b", 9000), service("c", 9000)
    m = Machine(catalog(*specs, policy=Policy(**policy), one=("a",), two=("a", "b"))).boot()
    m.do("switch", "one")
    return m


def test_everything_desired_is_ready_and_nothing_else_runs():
    m = machine()
    assert (m.standing(), m.problems()) == ("converged", set())


def test_an_operation_under_way():
    m = machine()
    m.ask("switch", "two")
    m.run(0.1)
    assert m.standing() == "switching"


def test_past_failures_and_foreign_memory_do_not_prevent_converged():
    m = machine()
    m.behaviours["b"] = Behaviour(exit_after_s=0.1)
    m.do("start", "b")
    m.foreign["GPU-0"] = 5000
    m.touch()
    m.run(5.0)
    assert m.standing() == "converged"


def test_what_only_the_outside_can_unblock():
    m = machine()
    m.crash("a")
    m.run(0.2)  # its own memory is back
    m.foreign["GPU-0"] = 20000
    m.touch()
    m.run(60.0)
    assert (m.standing(), m.problems() >= {"vram_insufficient"}) == ("blocked", True)
    m.foreign.clear()
    m.touch()
    m.run(30.0)
    assert m.standing() == "converged"


def test_an_absent_manager_blocks():
    m = machine()
    m.disconnect()
    m.run(1.0)
    assert (m.standing(), m.problems()) == ("blocked", {"units_unreachable"})


def stopped_outside(m):
    m.crash("a", ended=Ended.JOB)


def crashed(m):
    m.crash("a")


def unhealthy(m):
    m.manager.alive("a").sick = True
    m.touch()


def orphan(m):
    m.begin_outside("c")


def overcommitted(m):
    m.strangers["GPU-0"] = 20000
    m.touch()


def lost(m):
    m.lost.add("GPU-0")
    m.touch()


def hung(m):
    m.hung = True
    m.touch()


def silent(m):
    m.silent = True
    m.touch()


def without_driver(m):
    fact = DevicesFact(at=m.at, backend="none", error="no NVIDIA driver was found")
    m.sample = lambda: ev.DevicesSampled(at=m.at, fact=replace(fact, at=m.at))
    m.touch()


def reconfigured(m):
    newer = replace(m.catalog.services["a"], fingerprint="newer")
    m.engine.state.track("a").fingerprint = "older"
    m.feed(ev.CatalogLoaded(at=m.at, catalog=replace(m.catalog, services={**m.catalog.services, "a": newer})))


def answered_by_a_stranger(m):
    m.answered_by_strangers.add("b")
    m.ask("switch", "two")
    m.run(2.0)


def surviving_sigkill(m):
    m.behaviours["a"] = Behaviour(unkillable_s=3600)
    m.crash("a", code=9)
    m.ask("switch", "one")
    m.run(5.0)
    m.ask("switch", "blank")
    m.run(60.0)


def failing_for_ever(m):
    m.behaviours["a"] = Behaviour(exit_after_s=0.1)
    m.crash("a")
    m.run(600.0)


def unwritable(m):
    m.save_fails = True
    m.ask("switch", "two")


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (stopped_outside, "stopped_outside"),
        (crashed, "unit_failed"),
        (unhealthy, "unhealthy"),
        (orphan, "orphan_running"),
        (overcommitted, "overcommitted"),
        (lost, "device_lost"),
        (hung, "devices_unreadable"),
        (silent, "process_memory_unknown"),
        (unwritable, "state_unwritable"),
        (without_driver, "no_devices"),
        (reconfigured, "definition_changed"),
        (answered_by_a_stranger, "port_conflict"),
        (surviving_sigkill, "stop_failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_condition_has_a_code_a_message_and_a_hint(happens, code):
    m = machine(drift="report")
    happens(m)
    m.run(10.0)
    found = [p for p in conditions.problems(m.engine.state) if p.code == code]
    assert found
    assert all(p.message and p.hint and p.code in CODES for p in found)


def test_what_fails_again_and_again_is_left_alone_and_that_is_said():
    m = machine()
    failing_for_ever(m)
    problems = {p.code: p for p in conditions.problems(m.engine.state)}
    assert problems["gave_up"].message == f"a failed {GIVE_UP_AFTER} times and is left alone"
    assert m.phase("a") == "failed"
    del m.behaviours["a"]
    m.do("start", "a")
    assert (m.phase("a"), m.problems()) == ("ready", set())


def test_more_than_declared_is_said_with_the_figure_to_declare():
    m = machine()
    m.behaviours["b"] = Behaviour(takes_mib=12000)
    m.do("start", "b")
    m.run(2.0)
    problem = next(p for p in conditions.problems(m.engine.state) if p.code == "vram_above_declared")
    assert problem.details == {"peak_mib": 12000, "declared_mib": 9000}


def test_a_desired_service_that_nothing_starts_is_named():
    m = machine(drift="report", release_timeout_s=2.0)
    m.hung = True  # the release of `a` cannot be seen, so the switch fails, and no room is known to go back to
    op = m.do("switch", "blank")
    m.hung = False
    m.touch()
    m.run(5.0)
    assert (str(op.state), m.standing(), m.problems()) == ("failed", "degraded", {"not_running"})


def test_a_mode_that_is_wanted_and_one_that_is_reached_are_told():
    m = machine()  # one is reached
    m.history.clear()
    m.do("switch", "two")
    m.do("stop", "b")  # the mode stays what it is
    m.do("switch", "blank")
    told = [
        (c.was_reached, c.was_wanted, c.reached, c.wanted)
        for _, effects in m.history
        for effect in effects
        if isinstance(effect, fx.Announce) and isinstance(c := effect.change, fx.ModeChanged)
    ]
    assert told == [
        ("one", "one", "one", "two"),
        ("one", "two", "two", "two"),
        ("two", "two", "two", "blank"),
        ("two", "blank", "blank", "blank"),
    ]


def test_what_the_last_daemon_reached_is_no_news():
    m = machine()
    m.restart_daemon()
    m.run(5.0)
    told = [e.change for _, effects in m.history for e in effects if isinstance(e, fx.Announce)]
    assert not [change for change in told if isinstance(change, fx.ModeChanged)]
