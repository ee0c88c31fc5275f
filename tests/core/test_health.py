"""A device that is damaged or too hot is given nothing more to do; what runs there goes on."""

from dataclasses import replace

import pytest

from gpumodd.core import conditions
from gpumodd.core.facts import DeviceFact, HealthFact
from gpumodd.core.health import ailments, kinds
from gpumodd.core.operations import State
from tests.core.machine import Machine, catalog, service

HOT = HealthFact(temperature_c=93, slowdown_c=95, shutdown_c=98)
DAMAGED = HealthFact(ecc_volatile=2, ecc_aggregate=7)


def device(health: HealthFact, lost: str = "") -> DeviceFact:
    return DeviceFact(uuid="G", index=0, name="G", total_mib=1, used_mib=0, at=0.0, health=health, lost=lost)


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        (HealthFact(), ()),
        (HealthFact(temperature_c=92, shutdown_c=98), ()),
        (HealthFact(temperature_c=93, shutdown_c=98), ("hot",)),
        (HealthFact(temperature_c=150), ()),  # hot for what device? nobody says
        (HealthFact(temperature_c=96, slowdown_c=95), ()),  # past this it helps itself, and says so when it does
        (HealthFact(shutdown_c=98), ()),
        (HealthFact(thermal_slowdown=True), ("hot",)),
        (HealthFact(temperature_c=97, shutdown_c=98, thermal_slowdown=True), ("hot",)),
        (HealthFact(ecc_volatile=0, ecc_aggregate=12), ()),  # long ago, and mended by a reset
        (HealthFact(ecc_volatile=1), ("ecc",)),
        (HealthFact(reset_needed=True), ("reset_needed",)),
        (HealthFact(remap_failed=True, reset_needed=True, ecc_volatile=1), ("row_remap_failed", "reset_needed", "ecc")),
        (replace(HOT, ecc_volatile=1), ("ecc", "hot")),
    ],
)
def test_what_ails_a_device(health, expected):
    assert kinds(device(health)) == expected
    assert all(a.text and a.hint for a in ailments(device(health)))


def test_a_lost_device_says_nothing_but_that():
    assert kinds(device(HOT, lost="it fell off the bus")) == ("lost",)


def two_devices() -> Machine:
    specs = [service("a", 4000), service("b", 4000), service("big", 20000), service("there", 3000, devices=("1",))]
    sizes = {"GPU-0": 12000, "GPU-1": 24000}
    return Machine(catalog(*specs, one=("a",), both=("a", "b")), devices=sizes).boot()


@pytest.mark.parametrize(("health", "kind"), [(HOT, "hot"), (DAMAGED, "ecc")])
def test_a_start_there_is_refused_with_numbers_and_what_runs_is_left_alone(health, kind):
    m = two_devices()
    m.do("start", "a")
    m.log.clear()
    m.health["GPU-1"] = health
    m.touch()
    m.run(30.0)
    assert (m.running(), m.standing(), m.problems()) == ({"a"}, "converged", {"device_unhealthy"})
    refusal = m.refused("start", "there", force=True)  # not even force
    (reason,) = refusal.reasons
    assert (reason.code, reason.device, reason.details["ailments"]) == ("device_unhealthy", "GPU-1", [kind])
    figures = {k: v for k, v in reason.details.items() if k != "ailments"}
    assert figures == (
        {"temperature_c": 93, "slowdown_c": 95, "shutdown_c": 98}
        if health is HOT
        else {"ecc_uncorrected": 2, "ecc_uncorrected_ever": 7}
    )
    assert m.log == []
    m.health.clear()
    m.touch()
    m.run(30.0)
    assert m.problems() == set()
    assert m.do("start", "there").state is State.SUCCEEDED


def test_what_may_run_anywhere_goes_to_a_device_that_is_well():
    m = two_devices()
    m.health["GPU-1"] = HOT  # where more room is
    m.do("switch", "both")
    assert {p.devices for p in m.manager.processes()} == {("GPU-0",)}
    (reason,) = m.refused("start", "big").reasons
    assert (reason.code, reason.device) == ("vram_insufficient", "GPU-0")


def test_a_machine_with_one_device_waits_until_it_is_well_again():
    """A repair is put off, not given up."""
    m = Machine(catalog(service("a", 4000), one=("a",))).boot()
    m.do("switch", "one")
    m.health["GPU-0"] = HOT
    m.crash("a")
    m.run(60.0)
    assert (m.running(), m.standing()) == (set(), "blocked")
    assert m.engine.state.track("a").failures == 1
    m.health.clear()
    m.touch()
    m.run(60.0)
    assert (m.running(), m.standing()) == ({"a"}, "converged")


def test_a_switch_under_way_does_not_add_to_the_load_of_a_device_that_gets_hot():
    m = Machine(catalog(service("a", 4000), service("b", 4000, depends_on=("a",)), both=("b",))).boot()
    request = m.ask("switch", "both")
    while m.phase("a") != "loading":
        m.step()
    m.health["GPU-0"] = HOT
    m.run(20.0)
    assert (m.running(), m.operation(request).state) == ({"a"}, State.RUNNING)
    m.health.clear()
    m.touch()
    m.run(20.0)
    assert (m.running(), m.operation(request).state) == ({"a", "b"}, State.SUCCEEDED)


def test_a_temperature_that_only_wanders_changes_nothing_to_plan_on():
    m = two_devices()
    m.run(5.0)
    generation = m.engine.generation
    for degrees in (40, 60, 85):
        m.at += 1.0
        m.health["GPU-0"] = HealthFact(temperature_c=degrees, shutdown_c=98)
        m.feed(m.sample())
    assert m.engine.generation == generation
    assert m.engine.state.devices.devices[0].health.temperature_c == 85


def test_the_problem_keeps_its_beginning_and_tells_the_newest_figures():
    m = two_devices()
    found = []
    for degrees in (94, 96):
        m.at += 2.0
        m.health["GPU-0"] = HealthFact(temperature_c=degrees, shutdown_c=98)
        m.feed(m.sample())
        found += [p for p in conditions.problems(m.engine.state) if p.code == "device_unhealthy"]
    assert [p.details["temperature_c"] for p in found] == [94, 96]
    assert found[0].since == found[1].since
