"""Folding: what observations say about a run, its health and its memory."""

from gpumodd.core import events as ev
from gpumodd.core import world
from gpumodd.core.facts import Active, Answer, Ended, ProbeFact, UnitFact
from gpumodd.core.phase import Health
from gpumodd.core.specs import HealthSpec, Policy
from tests.core.machine import Behaviour, Machine, catalog, service


def machine(*, ready=("a",), policy=None, **how) -> Machine:
    health = HealthSpec(failures=3, recoveries=2)
    m = Machine(catalog(service("a", 9000, health=health), service("b", 5000), policy=policy, both=("a", "b")), **how)
    m.boot()
    for name in ready:
        m.do("start", name)
    return m


def track(m, name="a"):
    return m.engine.state.track(name)


def told(m, active, *, at=None, **how):
    given = {"invocation": track(m).invocation, **how}
    m.feed(ev.UnitsObserved(at=m.at, facts=(UnitFact(service="a", active=active, at=at or m.at, **given),)))


def probed(m, answer, invocation=None):
    run = track(m).invocation if invocation is None else invocation
    m.feed(ev.Probed(at=m.at, fact=ProbeFact(service="a", answer=answer, at=m.at, invocation=run)))


# -- units ----------------------------------------------------------------------------------------------------


def test_what_runs_already_is_adopted():
    m = machine(ready=())
    m.begin_outside("a")
    m.run(2.0)
    assert (m.phase("a"), m.problems()) == ("ready", {"orphan_running"})


def test_an_end_by_itself_is_a_crash():
    m = machine(policy=Policy(drift="report"))
    m.crash("a")
    m.run(0.1)
    assert (track(m).failures, track(m).failure.code, track(m).stopped_outside) == (1, "unit_failed", False)


def test_an_end_by_somebody_s_job_is_a_stop():
    m = machine()
    m.crash("a", ended=Ended.JOB)
    m.run(30.0)
    assert (track(m).failures, track(m).stopped_outside, m.running()) == (0, True, set())


def test_an_end_by_our_job_is_neither():
    m = machine()
    m.do("stop", "a")
    assert (track(m).failures, track(m).stopped_outside, track(m).failure) == (0, False, None)


def test_an_older_read_that_arrives_late_says_nothing():
    m = machine()
    told(m, Active.FAILED, at=track(m).unit.at - 0.1, ended=Ended.EXIT)
    assert m.phase("a") == "ready"


def test_a_run_that_came_and_went_unseen_is_a_crash():
    m = machine(ready=())
    told(m, Active.FAILED, invocation="unseen", ended=Ended.EXIT, result="signal", exit_code=11)
    assert "killed by signal 11" in track(m).failure.message


def test_what_a_complete_list_lacks_is_gone():
    m = machine(policy=Policy(drift="report"))
    m.feed(ev.UnitsObserved(at=m.at, facts=(), complete=True))
    assert track(m).unit is None
    assert "its unit disappeared" in track(m).failure.message


def test_only_a_complete_list_says_that_the_manager_is_back():
    m = machine()
    m.feed(ev.UnitsLost(at=m.at, reason="gone"))
    told(m, Active.ACTIVE)
    assert m.phase("a") == "unknown"
    m.feed(ev.UnitsObserved(at=m.at, facts=m.manager.complete(), complete=True))
    assert m.phase("a") == "ready"


# -- probes ---------------------------------------------------------------------------------------------------


def test_health_turns_after_so_many_answers_in_a_row():
    m = machine()
    for answer in (Answer.TIMEOUT, Answer.TIMEOUT, Answer.HEALTHY, Answer.TIMEOUT, Answer.TIMEOUT):
        probed(m, answer)
    assert track(m).health is Health.READY
    probed(m, Answer.TIMEOUT)
    assert track(m).health is Health.DEGRADED
    probed(m, Answer.HEALTHY)
    assert track(m).health is Health.DEGRADED
    probed(m, Answer.HEALTHY)
    assert track(m).health is Health.READY


def test_another_run_s_answers_say_nothing():
    m = machine()
    for _ in range(5):
        probed(m, Answer.TIMEOUT, invocation="another")
    assert (track(m).health, track(m).probe.bad) == (Health.READY, 0)


# -- memory ---------------------------------------------------------------------------------------------------


def test_a_release_is_over_when_the_memory_is_back():
    m = machine()
    m.behaviours["a"] = Behaviour(linger_s=2.0)
    before = m.at
    m.do("stop", "a")
    assert m.at - before >= 2.0
    assert not m.engine.state.windows


def test_listed_growth_of_a_stranger_does_not_hold_a_release_up():
    m = machine()
    request = m.ask("stop", "a")
    m.strangers["GPU-0"] = 6000
    m.run(2.0)
    assert not m.operation(request).state.open


def test_unlisted_growth_holds_it_up_until_the_timeout():
    m = machine(policy=Policy(release_timeout_s=4.0))
    request = m.ask("stop", "a")
    m.run(0.05)
    assert m.phase("a") == "stopping"
    m.foreign["GPU-0"] = 6000
    m.run(2.0)
    assert m.phase("a") == "releasing"
    m.run(30.0)
    assert m.operation(request).failure.reason.code == "vram_not_released"


def test_processes_may_vanish_before_their_unit_is_seen_to_end():
    m = machine(policy=Policy(drift="report"))
    m.behaviours["a"] = Behaviour(linger_s=3.0)
    m.unit_lag_s = 1.0
    m.crash("a")
    m.run(0.5)
    assert not m.engine.state.track("a").gone
    assert list(m.engine.state.windows["GPU-0"].leaving) == ["a"]
    m.run(10.0)
    assert (m.phase("a"), m.engine.state.windows) == ("failed", {})


def test_a_release_goes_on_over_a_restart_of_the_daemon():
    m = machine()
    m.behaviours["a"] = Behaviour(linger_s=4.0)
    m.ask("stop", "a")
    m.run(1.0)
    m.restart_daemon()
    assert m.engine.state.windows["GPU-0"].lingering(9000) == {"": 9000}
    m.run(10.0)
    assert (m.engine.state.windows, m.standing()) == ({}, "converged")


def test_memory_that_nobody_has_sampled_counts_until_somebody_has():
    m = machine(ready=())
    m.behaviours["a"] = Behaviour(exit_after_s=0.0, linger_s=30.0)
    m.ask("start", "a")
    while not (m.log and m.engine.state.track("a").failures):
        m.step()  # it ends within milliseconds, and no sample has shown its memory
    assert m.engine.state.attribution["GPU-0"].services == {}
    assert world.budgets(m.engine.state)["GPU-0"].held == {"a": 9000}


def test_who_has_served_goes_on_serving_when_its_definition_is_gone():
    m = Machine(catalog(service("a"), m=("a",))).boot()
    m.behaviours["a"] = Behaviour(load_s=0.0)
    m.do("switch", "m")
    m.feed(ev.CatalogLoaded(at=m.at, catalog=catalog()))
    assert m.phase("a") == "ready"
