"""The order of a plan: what takes longest comes first, if that is known; who may come at all does not depend on it."""

import pytest

from gpumodd.core import timing
from gpumodd.core.costs import Costs
from gpumodd.core.operations import Verb
from gpumodd.core.planner import plan
from tests.core.machine import Behaviour, Machine, catalog, service
from tests.core.test_planner import codes, down, machine, steps, up


def took(load=None, stop=None, release=None) -> Costs:
    return Costs(
        loads=() if load is None else (load,),
        stops=() if stop is None else (stop,),
        releases=() if release is None else (release,),
    )


def test_what_is_free_now_goes_to_who_takes_longest():
    views = (
        up(service("old", 14000), costs=took(stop=5.0, release=1.0)),
        down(service("quick", 10000), costs=took(load=2.0)),
        down(service("slow", 10000), costs=took(load=40.0)),
    )
    made = steps(plan(machine(*views, wanted=("quick", "slow"))))
    assert made["start slow"] == ()
    assert made["start quick"] == ("wait_release old",)


def test_the_release_that_is_over_soonest_goes_to_who_takes_longest():
    views = (
        up(service("drains", 12000), costs=took(stop=20.0)),
        up(service("ends", 12000), costs=took(stop=0.1, release=0.1)),
        down(service("quick", 12000), costs=took(load=2.0)),
        down(service("slow", 12000), costs=took(load=40.0)),
    )
    made = steps(plan(machine(*views, wanted=("quick", "slow"))))
    assert made["start slow"] == ("wait_release ends",)
    assert made["start quick"] == ("wait_release drains",)


def test_what_others_wait_for_counts_with_them():
    views = (
        up(service("old", 12000), costs=took(stop=5.0)),
        down(service("alone", 12000), costs=took(load=10.0)),
        down(service("base", 12000), costs=took(load=6.0)),
        down(service("top", 0, depends_on=("base",)), costs=took(load=6.0)),
    )
    made = steps(plan(machine(*views, wanted=("alone", "base", "top"))))
    assert made["start base"] == ()
    assert made["start alone"] == ("wait_release old",)


def test_where_nothing_is_lost_the_small_do_not_wait():
    views = (
        up(service("old", 16000), costs=took(stop=1.0)),
        down(service("large", 16000), costs=took(load=40.0)),
        down(service("small", 8000), costs=took(load=2.0)),
    )
    made = steps(plan(machine(*views, wanted=("large", "small"))))
    assert made["start small"] == ()
    assert made["start large"] == ("wait_release old",)


def test_who_takes_longest_goes_where_memory_is_free_soonest():
    views = (
        up(service("old", 24000), "G0", costs=took(stop=9.0)),
        down(service("quick", 16000), costs=took(load=2.0)),
        down(service("slow", 12000), costs=took(load=40.0)),
    )
    given = machine(*views, wanted=("quick", "slow"), totals=(24512, 16512))
    made = plan(given)
    assert made.placements == {"slow": ("G1",), "quick": ("G0",)}
    assert steps(made)["start slow"] == ()


def test_a_stop_that_waits_for_others_is_over_later():
    views = (
        up(service("base", 12000), costs=took(stop=0.1)),
        up(service("top", 0, depends_on=("base",)), costs=took(stop=20.0)),
        up(service("other", 12000), costs=took(stop=5.0)),
        down(service("quick", 12000), costs=took(load=2.0)),
        down(service("slow", 12000), costs=took(load=40.0)),
    )
    made = steps(plan(machine(*views, wanted=("quick", "slow"))))
    assert made["start slow"] == ("wait_release other",)


@pytest.mark.parametrize("load_s", [0.1, 1000.0])
def test_who_may_come_goes_by_priority_however_long_it_takes(load_s):
    low = down(service("low", 7000, priority=10), costs=took(load=1000.1 - load_s))
    high = down(service("high", 20000, priority=90), costs=took(load=load_s))
    made = plan(machine(low, high, up(service("old", 16000)), wanted=("low", "high")))
    assert codes(made) == [("vram_insufficient", "low")]


def test_what_was_never_measured_is_guessed_by_its_size():
    small, large = down(service("small", 1000)), down(service("large", 20000))
    assert 0 < timing.load_s(small) < timing.load_s(large)
    assert timing.stop_s(small) > 0
    assert timing.release_s(small) > 0


def test_the_second_switch_has_learnt_from_the_first():
    """The service that loads slowly is the smaller one, so a guess gets it wrong; once it is known, it goes first."""
    m = Machine(
        catalog(
            service("old", 14000),
            service("alike", 10001),
            service("slow", 10000),
            before=("old",),
            after=("alike", "slow"),
        ),
        behaviours={
            "old": Behaviour(load_s=1.0, term_s=4.0, linger_s=1.0),
            "alike": Behaviour(load_s=2.0),
            "slow": Behaviour(load_s=20.0),
        },
        look_s=0.01,
    )
    m.boot()
    seconds: list[float] = []
    waited: list[set[str]] = []
    for _ in range(2):
        m.do("switch", "before")
        begun = m.at
        op = m.do("switch", "after")
        seconds.append(m.at - begun)
        ids = {s.id: s for s in op.steps}
        gated = {s.service for s in op.steps if s.verb is Verb.START and any(ids[a].service == "old" for a in s.after)}
        waited.append(gated)
    assert waited == [{"slow"}, {"alike"}]
    assert seconds[0] == pytest.approx(25.0, abs=0.3)
    assert seconds[1] == pytest.approx(20.0, abs=0.3)
