"""Plans for machines that are easy to see through; what holds for all is in test_properties_planner."""

from dataclasses import replace

from gpumodd.core.ledger import Budget
from gpumodd.core.operations import Verb
from gpumodd.core.phase import Phase
from gpumodd.core.planner import plan, topological
from gpumodd.core.plans import PlanInput, ServiceView
from gpumodd.core.specs import ServiceSpec
from tests.core.machine import service


def down(spec, **how):
    return ServiceView(id=spec.id, phase=Phase.STOPPED, gone=True, spec=spec, **how)


def up(spec, *devices, phase=Phase.READY, **how):
    return ServiceView(id=spec.id, phase=phase, gone=False, spec=spec, devices=devices or ("G0",), **how)


def machine(*views, wanted, totals=(24512,), held=None, **how):
    budgets = {
        f"G{i}": Budget(
            uuid=f"G{i}",
            index=i,
            name=f"Sim {i}",
            total_mib=total,
            reserve_mib=512,
            foreign_mib=0,
            limit_mib=None,
            held=held or {v.id: v.spec.vram_mib for v in views if not v.gone and f"G{i}" in v.devices},
        )
        for i, total in enumerate(totals)
    }
    return PlanInput(services={v.id: v for v in views}, wanted=frozenset(wanted), budgets=budgets, **how)


def steps(made):
    return {f"{s.verb} {s.service}": tuple(f"{verb} {name}" for verb, name in s.after) for s in made.steps}


def codes(made):
    return [(r.code, r.service) for r in made.blocked]


def test_a_start_waits_for_the_release_it_needs_and_not_for_the_other():
    views = up(service("a", 12000)), up(service("b", 10000)), down(service("c", 11000))
    made = plan(machine(*views, wanted="c"))
    assert steps(made)["start c"] == ("wait_release a",)


def test_what_fits_now_waits_for_nothing():
    made = plan(machine(up(service("a", 16000)), down(service("b", 7000)), wanted="b"))
    assert steps(made)["start b"] == ()


def test_who_grew_beside_us_is_paid_for_first():
    views = up(service("a", 5000)), down(service("b", 100))
    made = plan(machine(*views, wanted="b", held={"a": 5000, "": 20000}))
    assert steps(made)["start b"] == ("wait_release a",)


def test_what_does_not_fit_is_said_with_numbers():
    made = plan(machine(down(service("a", 16000)), down(service("b", 9000)), wanted="ab"))
    assert codes(made) == [("vram_insufficient", "b")]
    assert made.blocked[0].details["needed_mib"] == 9000
    assert made.blocked[0].details["available_mib"] == 8000


def test_memory_goes_by_priority_and_not_by_what_fits_first():
    low, high = service("a", 7000, priority=10), service("b", 20000, priority=90)
    made = plan(machine(down(low), down(high), up(service("c", 16000)), wanted="ab"))
    assert codes(made) == [("vram_insufficient", "a")]


def test_the_larger_goes_where_most_room_is():
    made = plan(machine(down(service("a", 3000)), down(service("b", 9000)), wanted="ab", totals=(12000, 24000)))
    assert made.placements == {"a": ("G1",), "b": ("G1",)}


def test_who_may_go_anywhere_makes_room_for_who_may_not():
    anywhere, pinned = service("a", 16000), service("b", 14000, devices=("0",))
    made = plan(machine(down(anywhere), down(pinned), wanted="ab", totals=(24512, 24512)))
    assert made.placements == {"a": ("G1",), "b": ("G0",)}
    assert codes(made) == []


def test_one_device_named_twice_is_one_device():
    twice = service("a", 8000, devices=("0", "G0"), device_count=2)
    assert codes(plan(machine(down(twice), wanted="a"))) == [("device_unavailable", "a")]


def test_a_wanted_service_does_not_take_another_one_s_port():
    views = up(service("a", 100, port=1)), down(service("b", 100, port=1)), down(service("c", 100, port=1, host="::1"))
    assert codes(plan(machine(*views, wanted="abc"))) == [("port_conflict", "b")]


def test_a_port_that_is_being_given_up_is_waited_for():
    made = plan(machine(up(service("a", 100, port=1)), down(service("b", 100, port=1)), wanted="b"))
    assert steps(made)["start b"] == ("stop a",)


def test_a_circle_of_dependencies_is_named_and_no_step_waits_for_itself():
    views = down(service("a", 1, depends_on=("b",))), down(service("b", 1, depends_on=("a",)))
    made = plan(machine(*views, wanted="ab"))
    assert ("dependency_cycle", "a") in codes(made)
    assert not made.ready() or made.ready()[0].service == "b"


def test_a_restart_goes_before_it_comes():
    made = plan(machine(up(service("a", 16000), restart=True), wanted="a"))
    assert list(steps(made)) == ["stop a", "wait_release a", "start a", "wait_ready a"]


def test_a_unit_that_nothing_configures_is_stopped():
    orphan = ServiceView(id="x", phase=Phase.READY, gone=False, devices=("G0",))
    given = PlanInput(services={"x": orphan}, wanted=frozenset(), budgets={})
    assert [s.verb for s in plan(given).steps] == [Verb.STOP, Verb.WAIT_RELEASE]


def test_unknown_memory_is_refused_and_force_passes_it():
    given = machine(down(service("a", None)), wanted="a")
    assert codes(plan(given)) == [("vram_unknown", "a")]
    made = plan(replace(given, lenient=frozenset("a")))
    assert codes(made) == []
    assert [r.code for r in made.passed] == ["vram_unknown"]


def test_who_is_forced_waits_for_what_comes_back_and_for_nothing_more():
    views = up(service("a", 12000)), up(service("b", 4000)), down(service("c", 23000))
    made = plan(machine(*views, wanted={"b", "c"}, lenient=frozenset("c")))
    assert steps(made)["start c"] == ("wait_release a",)
    assert [(r.code, r.service, r.details["available_mib"]) for r in made.passed] == [("vram_insufficient", "c", 20000)]


def test_what_one_takes_by_force_is_not_there_for_the_others():
    views = down(service("a", 30000, priority=90)), down(service("b", 100))
    made = plan(machine(*views, wanted={"a", "b"}, lenient=frozenset("a")))
    assert codes(made) == [("vram_insufficient", "b")]
    assert [s.service for s in made.ready() if s.verb is Verb.START] == ["a"]


def test_dependencies_come_first_then_priority_then_size_then_name():
    specs = {
        "d": ServiceSpec(id="d", depends_on=("a",), priority=99),
        "a": ServiceSpec(id="a", vram_mib=1),
        "c": ServiceSpec(id="c", vram_mib=9),
        "b": ServiceSpec(id="b", vram_mib=1),
        "e": ServiceSpec(id="e", priority=60),
    }
    assert topological(specs, specs) == ["e", "c", "a", "b", "d"]


def test_what_is_wanted_and_goes_down_by_itself_is_not_said_to_be_unwanted():
    made = plan(machine(up(service("a", 1000), phase=Phase.STOPPING, stopping=True), wanted="a"))
    (stop,) = [s for s in made.steps if s.verb is Verb.STOP]
    assert stop.why == "it is on its way down, and has to get there before it can come again"
