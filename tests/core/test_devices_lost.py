"""The driver goes away and comes back, a device falls off and returns: idle, and in the middle of a switch."""

from dataclasses import replace

import pytest

from gpumodd.core import events as ev
from gpumodd.core import world
from gpumodd.core.facts import DevicesFact
from gpumodd.core.operations import State, Verb
from gpumodd.core.specs import Policy
from tests.core.machine import Behaviour, Machine, catalog, service

A, B = "GPU-0", "GPU-1"


def machine(**policy) -> Machine:
    specs = [
        service("a", 15000, devices=(A,)),
        service("b", 15000, devices=(B,)),
        service("c", 15000, devices=(A,)),
        service("first", 1000, devices=("0",)),
    ]
    policy.setdefault("release_timeout_s", 30.0)
    found = catalog(*specs, policy=Policy(**policy), one=("a", "b"), two=("c", "b"))
    return Machine(found, devices={A: 20000, B: 20000}).boot()


def until_phase(m: Machine, service: str, phase: str) -> None:
    for _ in range(2000):
        if m.phase(service) == phase:
            return
        m.step()
    raise AssertionError(f"{service} is never {phase}")


def looks(m: Machine, seconds: float) -> None:
    """Time passes, with the looks that a watcher takes."""
    end = m.at + seconds
    while m.at < end:
        m.touch()
        m.run(min(1.0, end - m.at))


def shown(m: Machine, *order: str) -> None:
    """A sample that lists these devices only, in this order; what is not there is not remembered either."""
    event = m.sample()
    known = {d.uuid: d for d in event.fact.devices}
    devices = tuple(replace(known[uuid], index=i) for i, uuid in enumerate(order))
    m.feed(replace(event, fact=replace(event.fact, devices=devices)))


def runs(m: Machine) -> dict[str, str]:
    return {p.service: p.invocation for p in m.manager.processes()}


# -- the driver -----------------------------------------------------------------------------------------------


def test_a_driver_that_is_away_while_nothing_happens_costs_nothing():
    m = machine()
    m.do("switch", "one")
    m.run(5.0)
    before = runs(m)
    m.log.clear()
    m.hung = True
    looks(m, 120.0)
    assert (m.problems(), m.standing()) == ({"devices_unreadable"}, "converged")
    assert {r.code for r in m.refused("switch", "two").reasons} == {"telemetry_stale"}
    m.hung = False
    looks(m, 5.0)
    assert (m.problems(), m.standing(), runs(m), m.log) == (set(), "converged", before, [])
    assert m.do("switch", "two").state is State.SUCCEEDED


@pytest.mark.parametrize("phase", ["stopping", "releasing"])
def test_a_driver_that_is_away_for_a_part_of_a_switch_delays_it(phase):
    m = machine()
    m.do("switch", "one")
    m.behaviours["a"] = Behaviour(term_s=1.0, linger_s=3.0)
    request = m.ask("switch", "two")
    until_phase(m, "a", phase)
    m.hung = True
    looks(m, 20.0)
    assert m.operation(request).state is State.RUNNING
    assert "c" not in m.running()  # nobody has seen that there is room
    m.hung = False
    looks(m, 20.0)
    assert (m.operation(request).state, m.running()) == (State.SUCCEEDED, {"b", "c"})


def test_a_driver_that_stays_away_fails_the_switch_and_its_return_mends_everything():
    m = machine()
    m.do("switch", "one")
    m.behaviours["a"] = Behaviour(linger_s=3.0)
    request = m.ask("switch", "two")
    until_phase(m, "a", "releasing")
    m.hung = True
    looks(m, 300.0)
    op = m.operation(request)
    assert op.state is State.FAILED
    assert op.failure.reason.code in ("vram_not_released", "telemetry_stale")
    assert m.running() == {"b"}
    assert m.standing() in ("blocked", "degraded")
    m.hung = False
    looks(m, 60.0)
    assert m.do("switch", "one").state is State.SUCCEEDED


def test_a_driver_that_goes_while_something_loads_does_not_disturb_it():
    m = machine()
    m.behaviours["a"] = Behaviour(load_s=10.0)
    request = m.ask("switch", "one")
    until_phase(m, "a", "loading")
    m.hung = True
    looks(m, 30.0)
    assert (m.phase("a"), m.operation(request).state) == ("ready", State.SUCCEEDED)


# -- one device -----------------------------------------------------------------------------------------------


def test_a_device_that_is_lost_before_its_start_is_waited_for():
    m = machine()
    m.do("switch", "one")
    m.behaviours["a"] = Behaviour(linger_s=2.0)
    request = m.ask("switch", "two")
    until_phase(m, "a", "releasing")
    m.lost.add(A)
    looks(m, 20.0)
    assert (m.operation(request).state, m.running()) == (State.RUNNING, {"b"})
    assert m.problems() == {"device_lost"}
    m.lost.clear()
    looks(m, 20.0)
    assert (m.operation(request).state, m.running()) == (State.SUCCEEDED, {"b", "c"})


def test_who_runs_on_a_device_that_vanishes_and_returns_elsewhere_is_left_alone():
    m = machine()
    m.do("switch", "one")
    m.run(5.0)
    before = runs(m)
    m.log.clear()
    for order in ((B,), (), (B,), (B, A), (A, B)):
        shown(m, *order)
        m.run(10.0)
        assert (runs(m), m.log, m.standing()) == (before, [], "converged")
        assert [d.uuid for d in m.engine.state.devices.devices] == list(order)
    assert m.problems() == set()
    held = {uuid: budget.held for uuid, budget in world.budgets(m.engine.state).items()}
    assert held == {A: {"a": 15000}, B: {"b": 15000}}


@pytest.mark.parametrize("phase", ["starting", "loading"])
def test_a_device_that_vanishes_under_a_start_is_no_reason_to_stumble(phase):
    m = machine()
    m.job_lag_s = 0.5
    m.behaviours["a"] = Behaviour(load_s=3.0)
    request = m.ask("start", "a")
    until_phase(m, "a", phase)
    shown(m, B)
    m.run(0.2)
    m.touch()
    m.run(20.0)
    assert (m.operation(request).state, m.phase("a")) == (State.SUCCEEDED, "ready")


def test_nobody_waits_for_memory_of_a_device_that_is_not_there_any_more():
    m = machine()
    m.do("switch", "one")
    m.behaviours["a"] = Behaviour(linger_s=10_000.0)
    request = m.ask("switch", "blank")
    until_phase(m, "a", "releasing")
    m.run(1.0)
    m.look_s = 1e9
    shown(m, B)
    op = m.operation(request)
    assert (op.state, op.done(Verb.WAIT_RELEASE)) == (State.SUCCEEDED, ("a", "b"))
    assert "the device that held its memory is not there any more" in {
        line.text for line in m.engine.state.track("a").story
    }


def test_a_device_that_returns_with_memory_in_use_may_still_be_releasing_it_and_then_has_a_stranger():
    """Who held it is not listed: it counts as on its way back for as long as that may take."""
    m = machine()
    m.do("switch", "one")
    m.do("switch", "blank")
    shown(m, B)
    m.foreign[A] = 12000
    shown(m, A, B)
    budget = world.budgets(m.engine.state)[A]
    assert (budget.foreign_mib, budget.committed_mib) == (0, 12000)
    looks(m, 31.0)
    budget = world.budgets(m.engine.state)[A]
    assert (budget.foreign_mib, budget.held) == (12000, {})
    assert {r.code for r in m.refused("start", "a").reasons} == {"vram_insufficient"}


def test_an_index_means_the_device_that_had_it_while_that_one_is_lost():
    """The others have moved up: nothing is started on the wrong card."""
    m = machine()
    event = m.sample()
    first, second = event.fact.devices
    moved = (replace(first, lost="the driver does not list it any more"), replace(second, index=0))
    for order in (moved, moved[::-1]):
        sample = replace(event, at=m.at, fact=replace(event.fact, at=m.at, devices=order))
        m.sample = lambda sample=sample: sample  # type: ignore[method-assign]
        m.feed(sample)
        (reason,) = m.refused("start", "first").reasons
        assert (reason.code, reason.device) == ("device_unhealthy", A)


def test_a_device_whose_index_changes_is_something_to_plan_on():
    m = machine()
    generation = m.engine.generation
    shown(m, B, A)
    assert m.engine.generation > generation


def test_a_sample_without_devices_and_an_error_says_nothing_about_them():
    """A driver that is away lists none; what was known of them stays."""
    m = machine()
    m.do("switch", "one")
    m.behaviours["a"] = Behaviour(linger_s=5.0)
    request = m.ask("switch", "blank")
    until_phase(m, "a", "releasing")
    fact = replace(m.sample().fact, devices=(), error="the driver does not answer")
    m.feed(ev.DevicesSampled(at=m.at, fact=fact))
    assert m.operation(request).state is State.RUNNING
    m.run(30.0)
    assert m.operation(request).state is State.SUCCEEDED


def test_a_driver_that_never_told_anything_is_no_missing_device():
    """Nobody knows which devices there are: that is old news, or none, rather than a wrong definition."""
    m = Machine(catalog(service("a", 1000), service("pinned", 1000, devices=("0",)), one=("a",), two=("pinned",)))
    silent = DevicesFact(at=m.at, backend="nvml", error="NVML has not answered for 4 s")
    m.sample = lambda: ev.DevicesSampled(at=m.at, fact=replace(silent, at=m.at), host=m.host())
    m.boot()
    for mode in ("one", "two"):
        (reason,) = m.refused("switch", mode).reasons
        assert (reason.code, "NVML has not answered" in reason.message) == ("telemetry_stale", True)
