"""The journal: each save costs a disk's patience and holds up what stands behind it, so there is one per change."""

from itertools import pairwise

from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from tests.core.machine import Behaviour, Machine, catalog, service


def saves(m: Machine) -> list[fx.Save]:
    return [effect for _, effects in m.history for effect in effects if isinstance(effect, fx.Save)]


def test_what_changes_nothing_of_an_operation_is_not_saved():
    m = Machine(catalog(service("a", 9000)), behaviours={"a": Behaviour(load_s=60.0)}, look_s=0.01).boot()
    m.ask("start", "a")
    m.run(1.0)
    before = len(saves(m))
    m.run(5.0)
    m.foreign["GPU-0"] = 500  # the figures of a loading service move all the time
    m.touch()
    m.run(1.0)
    m.feed(ev.UnitsObserved(at=m.at, facts=(m.manager.fact("a"),)))
    assert len(saves(m)) == before


def test_what_changes_is_saved_once():
    m = Machine(catalog(service("a", 9000)), look_s=0.01).boot()
    op = m.do("start", "a")
    m.do("stop", "a")
    records = [save for save in saves(m) if any(each.id == op.id for each in save.operations)]
    assert all(one != other for one, other in pairwise(records))
