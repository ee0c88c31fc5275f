"""A machine that sleeps: no deadline runs meanwhile, and what was seen before has to be seen anew."""

from dataclasses import fields

import pytest

from gpumodd.core import attention
from gpumodd.core import events as ev
from gpumodd.core.facts import Answer, ProbeFact
from gpumodd.core.operations import State
from gpumodd.core.specs import OnFailure, Policy
from gpumodd.core.state import Track
from gpumodd.core.suspend import AHEAD, COUNTED_FROM, FOR_PEOPLE
from tests.core.machine import Behaviour, Machine, catalog, service

NIGHT_S = 30_000.0


def machine(**policy) -> Machine:
    specs = [service("a", 9000, startup_timeout_s=20.0, stop_timeout_s=5.0), service("b", 9000), service("c", 20000)]
    return Machine(catalog(*specs, policy=Policy(**policy), one=("a", "b"), two=("c",))).boot()


def until_phase(m: Machine, service: str, phase: str) -> None:
    for _ in range(2000):
        if m.phase(service) == phase:
            return
        m.step()
    raise AssertionError(f"{service} is never {phase}")


def test_every_time_of_a_service_is_known_to_count_or_to_be_for_people():
    times = {f.name for f in fields(Track) if f.type in (float, float | None)}
    assert times == {*COUNTED_FROM, *AHEAD, *FOR_PEOPLE}


def test_a_service_that_loads_while_the_machine_sleeps_keeps_its_time():
    m = machine()
    m.behaviours["a"] = Behaviour(load_s=10.0)
    request = m.ask("switch", "one")
    until_phase(m, "a", "loading")
    m.run(5.0)
    m.sleep(NIGHT_S)
    m.run(1.0)
    assert m.phase("a") == "loading"
    m.run(10.0)
    assert m.operation(request).state is State.SUCCEEDED
    assert m.engine.state.costs_of("a").load_s < 60.0  # nor is it measured as a load of eight hours


def test_it_does_not_get_more_time_either():
    m = machine()
    m.behaviours["a"] = Behaviour(never_ready=True)
    request = m.ask("switch", "one", on_failure=OnFailure.KEEP)
    until_phase(m, "a", "loading")
    m.run(15.0)
    m.sleep(NIGHT_S)
    m.run(10.0)
    assert m.operation(request).state is State.FAILED


def test_a_release_keeps_its_time():
    m = machine(release_timeout_s=20.0)
    m.do("switch", "one")
    m.behaviours["a"] = Behaviour(linger_s=15.0)
    request = m.ask("switch", "two")
    until_phase(m, "a", "releasing")
    m.run(5.0)
    m.sleep(NIGHT_S)
    m.run(60.0)
    assert (m.operation(request).state, m.running()) == (State.SUCCEEDED, {"c"})


def test_who_is_stopping_is_not_killed_for_sleeping():
    m = machine()
    m.do("switch", "one")
    m.behaviours["a"] = Behaviour(term_s=4.0)
    request = m.ask("switch", "blank")
    until_phase(m, "a", "stopping")
    m.sleep(NIGHT_S)
    m.run(30.0)
    assert m.operation(request).state is State.SUCCEEDED
    assert "kill a" not in m.log


def test_a_backoff_goes_on_where_it_was():
    m = machine()
    m.do("switch", "one")
    for _ in range(4):
        until_phase(m, "a", "ready")
        m.crash("a")
        m.run(0.05)
    until_phase(m, "a", "backoff")
    left = m.engine.state.track("a").backoff_until - m.at
    assert left > 3.0
    m.sleep(NIGHT_S)
    assert m.engine.state.track("a").backoff_until - m.at == pytest.approx(left)
    m.run(left - 1.0)
    assert m.phase("a") == "backoff"
    m.run(10.0)
    assert m.phase("a") == "ready"


def test_an_operation_that_waits_for_room_keeps_its_time():
    specs = [service("a", 9000), service("b", 9000, depends_on=("a",))]
    m = Machine(catalog(*specs, policy=Policy(release_timeout_s=20.0), both=("b",))).boot()
    m.behaviours["a"] = Behaviour(load_s=3.0)
    request = m.ask("switch", "both")
    until_phase(m, "a", "loading")
    m.foreign["GPU-0"] = 12000  # now `b` has no room
    m.run(13.0)
    assert m.operation(request).blocked_since is not None
    m.sleep(NIGHT_S)
    m.run(5.0)
    m.foreign.clear()
    m.touch()
    m.run(30.0)
    assert m.operation(request).state is State.SUCCEEDED


@pytest.mark.parametrize("slept_s", [1.0, NIGHT_S])
def test_nothing_is_started_on_figures_from_before(slept_s):
    """However short the sleep: somebody may have taken the memory the moment the machine woke up."""
    m = machine()
    m.run(1.0)
    m.engine.handle(ev.Resumed(at=m.at + slept_s, slept_s=slept_s))
    m.at += slept_s
    m.foreign["GPU-0"] = 20000
    m.look_at = None
    before = list(m.log)
    refusal = m.refused("start", "a")  # it looks anew, and sees
    assert [r.code for r in refusal.reasons] == ["vram_insufficient"]
    assert m.log == before


def test_a_verdict_waits_for_facts_from_after_the_sleep():
    m = machine()
    m.inspect_s = 5.0
    request = m.ask("start", "a")
    m.run(1.0)
    sampled = m.sample().fact
    m.sleep(NIGHT_S)
    (intent,) = m.engine.state.intents
    m.feed(ev.Inspected(at=m.at, effect=intent.inquiry, devices=sampled, host=m.host(), services=()))
    assert request not in m.replies  # asked again, under another number
    assert m.engine.state.intents[0].inquiry != intent.inquiry
    m.run(30.0)
    assert m.operation(request).state is State.SUCCEEDED


def test_bad_answers_in_a_row_are_those_of_one_stretch():
    m = machine()
    m.do("switch", "one")
    sick = m.manager.alive("a")
    sick.sick = True
    for _ in range(2):
        m.at += 15.0
        m.feed(*m.probes())
    assert m.engine.state.track("a").probe.bad == 2
    m.sleep(NIGHT_S)
    old = ProbeFact(service="a", answer=Answer.TIMEOUT, at=m.at - 1.0, invocation=sick.invocation)
    m.feed(ev.Probed(at=m.at, fact=old))  # asked before, told after
    m.feed(*m.probes())
    assert m.phase("a") == "ready"
    assert attention.probing(m.engine.state)["a"].interval_s == 15.0


def test_units_and_devices_are_looked_at_anew():
    m = machine()
    m.do("switch", "one")
    m.run(10.0)
    effects = m.engine.handle(ev.Resumed(at=m.at + 5.0, slept_s=5.0))
    kinds = {type(e).__name__: e for e in effects}
    assert kinds["RefreshUnits"].services == ("a", "b")
    assert "SampleDevices" in kinds
    assert m.standing() == "converged"
    assert m.engine.state.track("a").story[-1].text == "the machine slept for 5 s"


@pytest.mark.parametrize("moment", range(0, 60, 3))
def test_a_sleep_at_any_moment_changes_nothing_but_the_clock(moment):
    """A switch with a slow stop, a late release and a slow load, with a night in the middle of it."""

    def switched(sleeps: bool) -> Machine:
        m = machine(release_timeout_s=6.0)
        m.behaviours |= {
            "a": Behaviour(term_s=4.0, linger_s=5.0),
            "b": Behaviour(linger_s=2.0),
            "c": Behaviour(load_s=100.0),
        }
        m.do("switch", "one")
        request = m.ask("switch", "two")
        for _ in range(moment):
            m.step()
        if sleeps:
            m.sleep(NIGHT_S)
        m.run(300.0)
        assert m.operation(request).state is State.SUCCEEDED
        return m

    assert switched(True).log == switched(False).log
