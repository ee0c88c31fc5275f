"""Attention: how closely is watched what."""

from gpumodd.core import attention
from gpumodd.core.specs import HealthSpec, Policy
from tests.core.machine import Behaviour, Machine, catalog, service


def machine() -> Machine:
    health = HealthSpec(interval_s=15.0, failures=2, recoveries=1)
    return Machine(catalog(service("a", 9000, health=health), service("plain", 10, port=None))).boot()


def sampling(m):
    return attention.sampling_s(m.engine.state)


def test_an_idle_machine_is_looked_at_seldom_and_its_gpu_may_sleep():
    m = machine()
    assert sampling(m) == attention.IDLE_S
    assert attention.may_sleep(m.engine.state)


def test_what_moves_is_sampled_often_and_what_releases_more_often():
    m = machine()
    m.behaviours["a"] = Behaviour(load_s=5.0, linger_s=5.0)
    m.ask("start", "a")
    m.run(1.0)
    assert sampling(m) == attention.MOVING_S
    assert not attention.may_sleep(m.engine.state)
    m.run(20.0)
    assert sampling(m) == attention.IDLE_S
    m.ask("stop", "a")
    m.run(1.0)
    assert sampling(m) == attention.RELEASING_S


def test_a_loading_service_is_asked_densely_and_a_ready_one_at_its_interval():
    m = machine()
    m.behaviours["a"] = Behaviour(load_s=5.0)
    m.ask("start", "a")
    m.run(1.0)
    assert attention.probing(m.engine.state)["a"].dense
    m.run(20.0)
    probing = attention.probing(m.engine.state)["a"]
    assert (probing.dense, probing.interval_s) == (False, 15.0)


def test_a_sick_service_is_asked_less_and_less_but_never_given_up():
    m = machine()
    m.do("start", "a")
    m.manager.alive("a").sick = True
    m.touch()
    m.run(3.0)
    track = m.engine.state.track("a")
    intervals = []
    for bad in (2, 3, 4, 9, 50):
        object.__setattr__(track.probe, "bad", bad)
        intervals.append(attention.probing(m.engine.state)["a"].interval_s)
    assert intervals == [15.0, 30.0, 60.0, attention.BACKOFF_CAP_S, attention.BACKOFF_CAP_S]


def test_what_has_no_port_or_does_not_run_is_not_asked():
    m = machine()
    m.do("start", "plain")
    assert attention.probing(m.engine.state) == {}


def waiting_machine(**policy) -> Machine:
    """`big` waits for the memory of `old`, `small` needs nobody's, and `bare` has no file that could be read."""
    specs = [
        service("old", 20000, port=8001),
        service("big", 18000, port=8002, requires_file="/models/big"),
        service("small", 100, port=8003, requires_file="/models/small"),
        service("bare", 3000, port=8004),
    ]
    m = Machine(catalog(*specs, policy=Policy(**policy), old=("old",), new=("big", "small", "bare"))).boot()
    m.do("switch", "old")
    m.behaviours["old"] = Behaviour(term_s=3.0)
    return m


def test_the_model_of_a_start_that_waits_for_memory_may_be_read_ahead():
    m = waiting_machine()
    assert attention.reading(m.engine.state) == {}
    m.ask("switch", "new")
    m.run(1.0)
    (reading,) = attention.reading(m.engine.state).values()
    assert (reading.service, reading.model, reading.room_mib) == ("big", "/models/big", 64000 - 2048)
    m.run()
    assert m.running() == {"big", "small", "bare"}
    assert attention.reading(m.engine.state) == {}


def test_nothing_is_read_ahead_where_the_host_has_no_room():
    m = waiting_machine(ram_reserve_mib=64000)
    m.ask("switch", "new")
    m.run(1.0)
    assert attention.reading(m.engine.state) == {}
