"""The host's memory in the ledger: who holds it, who may still take it, and who has to wait for whom."""

from gpumodd.core import world
from gpumodd.core.operations import State, Verb
from gpumodd.core.specs import Policy
from tests.core.machine import Behaviour, Machine, catalog, service


def machine(available_mib: int, **specs) -> Machine:
    made = [service(id, 100, port=8000 + i, ram_mib=mib) for i, (id, mib) in enumerate(sorted(specs.items()))]
    modes = {spec.id: (spec.id,) for spec in made}
    m = Machine(catalog(*made, policy=Policy(ram_reserve_mib=2000), all=tuple(specs), **modes))
    m.mem_available_mib = available_mib
    return m.boot()


def held(m: Machine) -> dict[str, int]:
    m.feed(m.sample())
    budget = world.host_budget(m.engine.state)
    assert budget is not None
    return dict(budget.held)


def test_what_does_not_fit_into_the_host_is_refused_with_numbers():
    m = machine(9000, a=4000, b=4000)
    m.do("switch", "a")
    reason = m.refused("switch", "all").reasons[0]
    assert reason.code == "ram_insufficient"
    assert (reason.details["needed_mib"], reason.details["available_mib"]) == (4000, 3000)
    assert m.running() == {"a"}


def test_who_takes_less_than_declared_keeps_its_reservation():
    m = machine(9000, a=4000, b=4000)
    m.behaviours["a"] = Behaviour(takes_ram_mib=100)  # the rest it may still take
    m.do("switch", "a")
    assert held(m) == {"a": 4000}
    assert m.refused("switch", "all").reasons[0].code == "ram_insufficient"


def test_who_takes_more_than_declared_counts_with_that():
    m = machine(12000, a=4000, b=4000)
    m.behaviours["a"] = Behaviour(takes_ram_mib=7000)
    m.do("switch", "a")
    assert held(m) == {"a": 7000}
    assert m.refused("switch", "all").reasons[0].details["available_mib"] == 3000


def test_a_start_waits_for_the_one_that_gives_its_memory_back():
    m = machine(9000, a=4000, b=4000)
    m.do("switch", "a")
    m.behaviours["a"] = Behaviour(term_s=2.0)
    op = m.do("switch", "b")
    assert op.state is State.SUCCEEDED
    stopped = next(s.finished_at for s in op.steps if s.verb is Verb.STOP)
    assert next(s.started_at for s in op.steps if s.verb is Verb.START) >= stopped


def test_a_service_nobody_has_looked_at_counts_with_its_estimate_once():
    m = machine(9000, a=4000, b=2500)
    m.do("switch", "a")
    m.feed(m.sample())
    fact = m.engine.state.host
    assert fact is not None
    m.engine.state.host = type(fact)(at=fact.at, mem_available_mib=5000, mem_total_mib=96000)
    budget = world.host_budget(m.engine.state)
    assert budget is not None
    assert (budget.held, budget.available_mib) == ({"a": 4000}, 3000)


def test_others_that_grow_meanwhile_block_the_start_until_they_give_way():
    m = machine(9000, a=4000, b=4000)
    m.do("switch", "a")
    m.behaviours["a"] = Behaviour(term_s=2.0)
    request = m.ask("switch", "b")
    m.run(1.0)
    m.mem_available_mib = 5000  # somebody else takes 4000
    m.run(5.0)
    assert m.running() == set()
    m.mem_available_mib = 9000
    m.run(20.0)
    assert m.operation(request).state is State.SUCCEEDED
    assert m.running() == {"b"}
