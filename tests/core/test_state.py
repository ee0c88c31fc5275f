"""The state is all there is: what decides is in it, as plain data, and what of it is to be saved and told is noted."""

from dataclasses import replace

import pytest

from gpumodd.core.admission import Admission
from gpumodd.core.course import Course
from gpumodd.core.desired import Desired
from gpumodd.core.engine import Engine
from gpumodd.core.intents import Intent
from gpumodd.core.journal import Journal
from gpumodd.core.operations import Kind, Operation
from gpumodd.core.outbox import Outbox
from gpumodd.core.specs import ModeSpec, OnFailure
from gpumodd.core.state import STORY, State, Track
from tests.core.machine import Machine, catalog, service

PARTS = (Outbox, Course, Admission, Journal)


def test_the_engine_remembers_nothing_beside_its_state():
    """Else a copy of the state would decide otherwise, and a recording would not replay from its head."""
    m = Machine(catalog(service("a"), service("b"), one=("a", "b"))).boot()
    m.do("switch", "one")
    m.crash("a")
    m.run(30)
    kept = dict(vars(m.engine))
    assert kept.pop("state") is m.engine.state
    del kept["generation"]  # for views only
    for part in kept.values():
        assert isinstance(part, PARTS)
        others = {name: value for name, value in vars(part).items() if not isinstance(value, (State, *PARTS))}
        assert others == ({"_effects": []} if isinstance(part, Outbox) else {})  # of the batch in hand


def test_an_engine_goes_on_where_another_one_stopped():
    m = Machine(catalog(service("a"), service("b"), one=("a", "b"))).boot()
    m.ask("switch", "one")
    m.engine = Engine(m.engine.state)
    m.run(60)
    assert m.running() == {"a", "b"}
    assert m.standing() == "converged"


SPECS = catalog(
    service("base"), service("a", depends_on=("base",)), service("top", depends_on=("a",)), one=("a",), two=("top",)
)
BEFORE = Desired(mode="old", stopped=("a", "base"))


@pytest.mark.parametrize(
    ("kind", "how", "wanted", "stopped"),
    [
        (Kind.SWITCH, {"mode": ModeSpec(id="one", services=("a",))}, {"a", "base"}, ()),
        (Kind.SWITCH, {"mode": ModeSpec(id="blank")}, set(), ()),
        (Kind.START, {}, {"a", "base"}, ()),
        (Kind.RESTART, {}, {"a", "base"}, ()),
        (Kind.STOP, {"scope": ("a", "top")}, set(), ("a", "top")),
        (Kind.HEAL, {"scope": ("a",)}, set(), ("a", "base")),
        (Kind.RESTORE, {"scope": ("a",)}, set(), ("a", "base")),
    ],
)
def test_what_an_intent_would_lead_to(kind, how, wanted, stopped):
    intent = Intent(kind=kind, target="a", on_failure=OnFailure.KEEP, **how)
    wish = intent.wish(BEFORE, SPECS)
    assert wish.services(SPECS.services) == wanted
    assert wish.stopped == stopped


def test_an_intent_is_judged_on_what_is_configured_then():
    intent = Intent(kind=Kind.START, target="a", on_failure=OnFailure.KEEP)
    alone = replace(SPECS, services={"a": replace(SPECS.services["a"], depends_on=())})
    assert intent.wish(Desired(), alone).services(alone.services) == {"a"}


def test_exchanging_an_intent_keeps_its_turn():
    first, second, third = (Intent(kind=Kind.START, target=t, on_failure=OnFailure.KEEP) for t in ("x", "y", "z"))
    state = State(intents=(first, second, third))
    state.exchange(second, replace(second, requests=(1,)))
    assert [(i.target, i.requests) for i in state.intents] == [("x", ()), ("y", (1,)), ("z", ())]


def test_an_operation_is_noted_with_what_it_was_before_the_batch():
    state = State()
    op = Operation(id="1", kind=Kind.SWITCH, target="one", created_at=0.0, before=Desired())
    state.put(op)
    state.put(replace(op, actor="me"))
    assert state.to_tell == {"1": None}
    assert state.to_save == {"1"}
    state.to_tell.clear()
    state.put(replace(op, actor="you"))
    assert state.to_tell["1"].actor == "me"


def test_a_story_keeps_its_newest_lines():
    track = Track()
    for number in range(STORY + 5):
        track.tell(float(number), str(number))
    assert [moment.text for moment in track.story] == [str(number) for number in range(5, STORY + 5)]
