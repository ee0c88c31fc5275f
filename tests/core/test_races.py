"""News that comes late, twice, in the wrong order or not at all; commands that are refused or come to nothing."""

import pytest

from gpumodd.core import events as ev
from gpumodd.core.facts import Answer, Ended, ProbeFact
from gpumodd.core.operations import State, Verb
from gpumodd.core.specs import OnFailure, Policy
from tests.core.machine import Behaviour, Machine, catalog, service


def machine(*specs, policy=None, **modes) -> Machine:
    return Machine(catalog(*specs, policy=policy, **modes)).boot()


def big(name: str, port: int, **how):
    return service(name, 14000, port=port, **how)


# -- deadlines ------------------------------------------------------------------------------------------------


def test_a_deadline_counts_although_only_probes_come_in():
    m = machine(service("slow", startup_timeout_s=5.0))
    m.behaviours["slow"] = Behaviour(never_ready=True)
    m.ask("start", "slow")
    m.run(4.9)
    late = m.at + 0.2
    fact = ProbeFact(service="slow", answer=Answer.LOADING, at=late, invocation=m.engine.state.track("slow").invocation)
    m.feed(ev.Probed(at=late, fact=fact))
    assert m.engine.state.track("slow").failed_at == late


# -- between a job's end and the sight of what it led to ------------------------------------------------------


def test_what_was_started_is_committed_before_it_is_seen():
    m = machine(big("a", 1), big("b", 2))
    m.unit_lag_s = 3.0
    m.behaviours["a"] = Behaviour(takes_mib=0)  # not yet
    m.ask("start", "a")
    m.run(0.5)
    assert m.running() == {"a"}
    assert m.engine.state.track("a").unit is None
    assert m.refused("start", "b").reasons[0].code == "vram_insufficient"


def test_a_start_whose_end_nobody_told_is_given_again_when_nothing_came_of_it():
    m = machine(big("a", 1))
    request = m.ask("start", "a")
    m.unit_lag_s = 1.0
    m.run(0.002)
    assert m.log == ["start a"]
    m.manager.units.clear()  # the manager has crashed before anybody saw the unit, and knows nothing of it
    m.inbox.clear()
    m.queue.clear()
    m.feed(ev.UnitStarted(at=m.at, effect=m.engine.state.track("a").start_effect, service="a", result="lost"))
    m.witness.in_flight.clear()
    m.unit_lag_s = 0.0
    m.connect()
    m.run(30.0)
    assert m.operation(request).state is State.SUCCEEDED
    assert m.log == ["start a", "start a"]


@pytest.mark.parametrize(("unit_lag_s", "job_lag_s"), [(0.0, 0.0), (0.0, 0.3), (0.3, 0.0)])
def test_a_failed_start_counts_once_in_whatever_order_it_is_told(unit_lag_s, job_lag_s):
    m = machine(big("a", 1))
    m.unit_lag_s, m.job_lag_s = unit_lag_s, job_lag_s
    m.behaviours["a"] = Behaviour(start_result="failed")
    op = m.do("start", "a")
    m.run(1.0)
    assert op.failure.reason.code == "unit_failed"
    assert m.engine.state.track("a").failures == 1


def test_a_run_that_was_given_up_counts_once_although_it_also_crashes():
    m = machine(big("a", 1, startup_timeout_s=5.0), policy=Policy(drift="report"))
    m.behaviours["a"] = Behaviour(never_ready=True)
    m.begin_outside("a")
    m.run(6.0)
    assert m.engine.state.track("a").failures == 1
    m.crash("a")
    m.run(1.0)
    assert m.engine.state.track("a").failures == 1


def test_a_start_by_a_person_after_a_refused_one_has_all_its_time():
    m = machine(big("a", 1, startup_timeout_s=10.0))
    m.refused_units.add("a")
    m.do("start", "a")
    m.run(60.0)
    m.do("switch", "blank")
    m.behaviours["a"] = Behaviour(load_s=5.0)
    m.begin_outside("a")
    m.run(8.0)
    assert (m.phase("a"), m.problems()) == ("ready", {"orphan_running"})


# -- refused commands -----------------------------------------------------------------------------------------


def test_what_could_not_be_stopped_is_not_killed_later():
    m = machine(big("a", 1, stop_timeout_s=2.0), big("b", 2), one=("a",), two=("b",))
    m.do("switch", "one")
    m.refused_units.add("a")
    op = m.do("switch", "two")
    assert (op.state, op.failure.reason.code) == (State.ROLLED_BACK, "driver_error")
    m.refused_units.clear()
    m.run(60.0)
    assert "kill a" not in m.log
    assert m.running() == {"a"}
    assert op.done(Verb.STOP) == ()


def test_a_stop_that_is_refused_ends_the_operation_and_is_not_tried_for_ever():
    m = machine(big("a", 1))
    m.do("start", "a")
    m.refused_units.add("a")
    op = m.do("stop", "a")
    assert (op.state, op.failure.reason.code) == (State.FAILED, "driver_error")
    assert m.log.count("stop a") == 1
    assert m.problems() == {"orphan_running"}


# -- what belongs to whom -------------------------------------------------------------------------------------


def test_a_rollback_keeps_what_somebody_started_meanwhile():
    m = machine(service("a", 4000), service("b", 4000), service("c", 4000), one=("a",), two=("b",))
    m.do("switch", "one")
    m.behaviours["b"] = Behaviour(exit_after_s=2.0, never_ready=True)
    switch = m.ask("switch", "two")
    m.run(0.5)
    assert m.do("start", "c").state is State.SUCCEEDED
    m.run(10.0)
    assert m.operation(switch).state is State.ROLLED_BACK
    assert m.running() == {"a", "c"}


def test_a_start_that_fails_leaves_the_mode_alone_whatever_the_policy():
    for policy in OnFailure:
        m = machine(service("a", 4000), service("b", 4000), one=("a",), policy=Policy(on_failure=policy))
        m.do("switch", "one")
        m.behaviours["b"] = Behaviour(start_result="failed")
        m.do("start", "b")
        m.run(10.0)
        assert m.running() == {"a"}
        assert m.engine.state.desired.mode == "one"


def test_a_rollback_does_not_fight_an_earlier_stop_outside():
    m = machine(service("a", 4000), service("b", 4000), service("c", 4000), one=("a", "b"), two=("c",))
    m.do("switch", "one")
    m.crash("b", ended=Ended.JOB)
    m.behaviours["c"] = Behaviour(start_result="failed")
    assert m.do("switch", "two").state is State.ROLLED_BACK
    m.run(60.0)
    assert m.running() == {"a"}


def test_a_start_does_not_end_what_it_has_no_business_with():
    m = machine(big("a", 1), big("b", 2))
    m.begin_outside("a")
    m.run(2.0)
    assert m.refused("start", "b").reasons[0].code == "vram_insufficient"
    assert m.running() == {"a"}


def test_a_member_that_crashes_while_it_is_kept_is_waited_for():
    m = machine(service("a", 4000), service("b", 4000), one=("a",), both=("a", "b"))
    m.do("switch", "one")
    m.behaviours["b"] = Behaviour(load_s=0.5)
    switch = m.ask("switch", "both")
    m.run(0.1)
    m.crash("a")
    m.run(0.6)
    assert m.operation(switch).state is State.RUNNING
    m.run(10.0)
    assert m.operation(switch).state is State.SUCCEEDED
    assert m.running() == {"a", "b"}


def test_a_member_that_a_person_stops_meanwhile_fails_the_switch():
    m = machine(service("a", 4000), service("b", 4000), one=("a",), both=("a", "b"))
    m.do("switch", "one")
    m.behaviours["b"] = Behaviour(load_s=5.0)
    switch = m.ask("switch", "both")
    m.run(0.1)
    m.crash("a", ended=Ended.JOB)
    m.run(30.0)
    assert m.operation(switch).failure.reason.code == "stopped_outside"
    assert m.operation(switch).state is not State.SUCCEEDED


# -- repairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["hung", "save_fails"])
def test_a_repair_that_has_to_wait_is_no_failure(trouble):
    m = machine(big("a", 1), one=("a",))
    m.do("switch", "one")
    setattr(m, trouble, True)
    m.touch()
    m.run(10.0)
    m.crash("a")
    m.run(600.0)
    assert (m.running(), m.engine.state.track("a").gave_up) == (set(), False)
    setattr(m, trouble, False)
    m.touch()
    m.run(60.0)
    assert m.running() == {"a"}


# -- the manager out of reach ---------------------------------------------------------------------------------


@pytest.mark.parametrize("moment_s", [0.0, 0.5, 1.0, 1.5])
def test_a_command_that_finds_no_manager_is_no_refusal(moment_s):
    """The commands are given before the news that the manager is gone."""
    m = machine(big("a", 1), big("b", 2), one=("a",), two=("b",))
    m.behaviours["a"] = Behaviour(term_s=1.0)
    m.do("switch", "one")
    switch = m.ask("switch", "two")
    m.run(moment_s)
    m.connected = False
    m.run(0.5)
    m.disconnect()
    m.run(5.0)
    m.connect()
    m.run(60.0)
    assert (m.operation(switch).state, m.running(), m.problems()) == (State.SUCCEEDED, {"b"}, set())
    assert m.engine.state.track("b").failures == 0


def test_a_switch_that_no_manager_carries_on_says_so():
    m = machine(big("a", 1), big("b", 2), one=("a",), two=("b",))
    m.behaviours["a"] = Behaviour(term_s=1.0)
    m.do("switch", "one")
    switch = m.ask("switch", "two")
    m.run(0.5)
    m.disconnect()
    m.run(600.0)
    assert m.operation(switch).failure.reason.code == "units_unreachable"


# -- a state file that cannot be written ----------------------------------------------------------------------


def test_a_switch_whose_state_cannot_be_saved_waits_and_goes_on():
    m = machine(big("a", 1), big("b", 2), big("c", 3), one=("a",), two=("b",))
    m.behaviours["a"] = Behaviour(term_s=1.0)
    m.do("switch", "one")
    switch = m.ask("switch", "two")
    m.run(0.5)
    m.save_fails = True
    m.run(20.0)
    assert (m.running(), m.operation(switch).state) == (set(), State.RUNNING)
    assert m.problems() == {"state_unwritable"}
    m.save_fails = False
    m.run(30.0)
    assert (m.running(), m.operation(switch).state, m.problems()) == ({"b"}, State.SUCCEEDED, set())
    assert m.engine.state.track("b").failures == 0


def test_a_stop_whose_state_cannot_be_saved_is_no_refusal():
    m = machine(service("a"), service("b", depends_on=("a",)), one=("b",))
    m.behaviours["b"] = Behaviour(term_s=1.0)
    m.do("switch", "one")
    switch = m.ask("switch", "blank")
    m.run(0.5)
    m.save_fails = True
    m.run(20.0)
    assert m.running() == {"a"}
    m.save_fails = False
    m.run(30.0)
    assert (m.running(), m.operation(switch).state, m.problems()) == (set(), State.SUCCEEDED, set())


def test_a_switch_that_cannot_be_saved_at_all_touches_nothing():
    m = machine(big("a", 1), big("b", 2), one=("a",), two=("b",))
    m.do("switch", "one")
    m.save_fails = True
    op = m.do("switch", "two")
    assert (op.state, op.failure.reason.code) == (State.ROLLED_BACK, "state_unwritable")
    assert (m.running(), m.problems()) == ({"a"}, {"state_unwritable"})
    m.save_fails = False
    m.run(10.0)
    assert (m.running(), m.problems(), m.standing()) == ({"a"}, set(), "converged")


def test_a_switch_that_cannot_go_on_for_lack_of_a_state_file_says_so():
    m = machine(big("a", 1), big("b", 2), one=("a",), two=("b",))
    m.behaviours["a"] = Behaviour(term_s=1.0)
    m.do("switch", "one")
    switch = m.ask("switch", "two")
    m.run(0.5)
    m.save_fails = True
    m.run(600.0)
    op = m.operation(switch)
    assert (op.state, op.failure.reason.code) == (State.FAILED, "state_unwritable")


def test_a_pause_after_a_release_is_no_failure_of_a_repair():
    m = machine(big("a", 1), one=("a",), policy=Policy(quiesce_s=120.0))
    m.do("switch", "one")
    m.crash("a")
    m.run(100.0)
    assert (m.running(), m.engine.state.track("a").failures) == (set(), 1)
    m.run(60.0)
    assert m.running() == {"a"}
