"""Measured costs: what a load, a stop and a release took, from what the engine sees."""

import pytest

from gpumodd.core import events as ev
from gpumodd.core.costs import RUNS, Costs
from tests.core.machine import Behaviour, Machine, catalog, service

DEVICES = {"GPU-0": 24564, "GPU-1": 24564}


def machine(*specs, look_s=0.01, **behaviour) -> Machine:
    behaviours = {spec.id: Behaviour(**behaviour) for spec in specs}
    m = Machine(catalog(*specs), devices=DEVICES, behaviours=behaviours, look_s=look_s)
    return m.boot()


def costs(m, name="a") -> Costs:
    return m.engine.state.costs_of(name)


def test_one_life_of_a_service_measures_all_three():
    m = machine(service("a", 9000), load_s=3.0, term_s=0.5, linger_s=1.5)
    m.do("start", "a")
    assert costs(m).load_s == pytest.approx(3.0, abs=0.1)
    assert (costs(m).stop_s, costs(m).release_s) == (None, None)
    m.do("stop", "a")
    assert costs(m).stop_s == pytest.approx(0.5, abs=0.1)
    assert costs(m).release_s == pytest.approx(1.5, abs=0.1)


def test_one_odd_run_does_not_bend_the_figure():
    known = Costs()
    for seconds in (10.0, 11.0, 90.0, 10.5):
        known = known.loaded(seconds)
    assert known.load_s == 10.5
    for _ in range(RUNS):
        known = known.loaded(2.0)
    assert known.load_s == 2.0, "what has changed for good is believed"


def test_a_service_without_a_port_is_measured_until_it_counts_as_ready():
    m = machine(service("a", 9000, port=None))
    m.do("start", "a")
    assert 0.1 <= costs(m).load_s < 0.3


def test_on_two_devices_a_release_is_over_when_both_are():
    m = machine(service("a", 9000, device_count=2), linger_s=1.0)
    m.do("start", "a")
    m.do("stop", "a")
    assert len(costs(m).releases) == 1


def test_a_run_that_nobody_started_here_says_nothing_about_loading():
    m = machine(service("a", 9000))
    m.begin_outside("a")
    m.run(5.0)
    assert (m.phase("a"), costs(m).load_s) == ("ready", None)


def test_a_load_that_goes_wrong_is_not_measured_and_the_next_one_is():
    m = machine(service("a", 9000), exit_after_s=0.5)
    request = m.ask("start", "a")
    m.run(0.9)
    assert costs(m).load_s is None
    m.behaviours["a"] = Behaviour(load_s=1.0)
    m.run(60.0)
    m.do("start", "a")
    assert costs(m).load_s == pytest.approx(1.0, abs=0.1)
    assert not m.operation(request).state.open


def test_figures_survive_the_daemon_and_go_with_the_service():
    m = machine(service("a", 9000), service("b", 9000), load_s=2.0)
    m.do("start", "a")
    m.do("start", "b")
    m.restart_daemon()
    m.run(1.0)
    assert len(costs(m).loads) == len(costs(m, "b").loads) == 1, "what was adopted is not measured again"
    m.do("stop", "b")
    m.feed(ev.CatalogLoaded(at=m.at, catalog=catalog(service("a", 9000))))
    assert costs(m).load_s is not None
    assert costs(m, "b") == Costs()


def test_what_nothing_configures_is_not_measured():
    m = machine(service("a", 9000))
    m.do("start", "a")
    m.feed(ev.CatalogLoaded(at=m.at, catalog=catalog()))
    m.do("stop", "a")
    assert costs(m) == Costs()
