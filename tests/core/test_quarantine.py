"""A process that survives SIGKILL: it keeps its bytes, the person is told, and everything that fits around it works."""

import pytest

from gpumodd.core import world
from gpumodd.core.explain import explain
from gpumodd.core.facts import Active, Ended
from gpumodd.core.operations import State
from tests.core.machine import Behaviour, Machine, catalog, service

FOR_EVER = 1e9


def machine() -> Machine:
    """`a` runs and will not end; `b` and `c` fit beside it, `d` does not."""
    specs = [
        service("a", 9000, port=8001, stop_timeout_s=5.0),
        service("b", 9000, port=8002),
        service("c", 14000, port=8003),
        service("d", 20000, port=8004),
    ]
    m = Machine(catalog(*specs, a=("a",), b=("b",), c=("c",), d=("d",))).boot()
    m.do("switch", "a")
    m.behaviours["a"] = Behaviour(unkillable_s=FOR_EVER)
    return m


def trapped() -> Machine:
    m = machine()
    assert m.do("switch", "b").state is State.FAILED
    return m


def held(m: Machine) -> dict[str, int]:
    return dict(world.budgets(m.engine.state)["GPU-0"].held)


def test_the_switch_that_meets_it_says_so_and_goes_on_around_it():
    m = machine()
    began = m.at
    op = m.do("switch", "b")
    assert (op.state, op.failure.reason.code, op.abandoned) == (State.FAILED, "stop_failed", ("a",))
    assert m.at - began < 5.0 + 30.0  # its own timeout and the two graces: never stuck
    assert m.running() == {"a", "b"}
    assert (m.phase("a"), m.phase("b")) == ("failed", "ready")
    assert m.standing() == "blocked"
    assert held(m) == {"a": 9000, "b": 9000}
    assert "stop_failed" in m.problems()


def test_what_fits_around_it_works_and_what_does_not_is_refused_for_its_bytes():
    m = trapped()
    op = m.do("switch", "c")
    assert (op.state, op.abandoned) == (State.SUCCEEDED, ("a",))
    assert m.running() == {"a", "c"}
    reason = m.refused("switch", "d").reasons[0]
    assert (reason.code, reason.details["committed_mib"]) == ("vram_insufficient", 9000 + 14000)
    assert m.do("switch", "blank").state is State.SUCCEEDED
    assert m.running() == {"a"}


@pytest.mark.parametrize(("kind", "target"), [("switch", "a"), ("start", "a"), ("restart", "a"), ("stop", "a")])
def test_nothing_is_promised_of_it(kind, target):
    m = trapped()
    assert [r.code for r in m.refused(kind, target).reasons] == ["stop_failed"]


def test_once_it_is_gone_all_is_as_if_nothing_had_been():
    m = trapped()
    m.crash("a", ended=Ended.JOB)
    m.behaviours.clear()
    m.run(5.0)
    assert held(m) == {"b": 9000}
    assert (m.phase("a"), m.standing(), m.problems()) == ("stopped", "converged", set())
    assert m.do("switch", "a").state is State.SUCCEEDED


def test_its_end_under_the_next_daemon_is_no_crash():
    m = trapped()
    m.restart_daemon()
    m.run(60.0)
    assert m.problems() == {"stop_failed"}
    m.crash("a", code=9)
    m.run(5.0)
    assert (m.standing(), m.problems(), m.engine.state.track("a").failures) == ("converged", set(), 0)


def test_it_is_killed_again_from_time_to_time():
    m = trapped()
    m.log.clear()
    m.run(100.0)
    assert m.log.count("kill a") == 3


def test_a_unit_that_is_over_while_its_processes_live_has_not_ended():
    """A manager gives up on a unit whose processes survive; whoever reads its cgroup still finds them."""
    m = machine()
    m.ask("switch", "b")
    m.run(1.0)
    unit = m.manager.units["a"]
    m.manager._to(unit, Active.FAILED, ended=None)
    m.manager._job_ended(unit, "done")
    m.run(1.0)
    assert (m.phase("a"), held(m)["a"]) == ("stopping", 9000)
    m.run(60.0)
    assert m.phase("a") == "failed"
    assert "survives SIGKILL" in " ".join(moment.text for moment in m.engine.state.track("a").story)


def test_a_restarted_daemon_finds_it_and_comes_to_the_same_end():
    m = trapped()
    m.restart_daemon()
    m.run(120.0)
    assert (m.phase("a"), m.phase("b"), m.standing()) == ("failed", "ready", "blocked")
    assert held(m) == {"a": 9000, "b": 9000}
    assert "stop_failed" in m.problems()
    assert m.do("switch", "c").state is State.SUCCEEDED


def test_it_can_be_explained():
    m = trapped()
    told = explain(m.engine.state, "a", m.at)
    assert "survive SIGKILL" in told.because[0]


def test_the_end_of_a_survivor_counts_also_while_its_stop_job_is_not_over():
    """The unit is seen to be gone first, the job's end comes a moment later."""
    m = machine()
    m.behaviours["a"] = Behaviour(unkillable_s=25.0)
    m.job_lag_s = 0.02
    m.ask("switch", "b")
    m.run(22.0)
    assert m.engine.state.tracks["a"].quarantined
    m.run(30.0)
    assert m.running() == {"b"}
    assert not m.engine.state.tracks["a"].quarantined
    assert "stop_failed" not in m.problems()
    assert m.do("switch", "b").state is State.SUCCEEDED
    assert m.standing() == "converged"
