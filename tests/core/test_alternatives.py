"""What is offered instead of what does not fit really fits, is needed, and comes best first."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumodd.core import alternatives as module
from gpumodd.core.alternatives import LARGEST, OFFERED, Alternative, alternatives, lacks_memory
from gpumodd.core.changes import Change, Kind, Question, changed
from gpumodd.core.costs import Costs
from gpumodd.core.facts import ProcessFact
from gpumodd.core.ledger import Budget
from gpumodd.core.phase import Phase
from gpumodd.core.planner import plan
from gpumodd.core.plans import PASSABLE, PlanInput, ServiceView
from gpumodd.core.specs import ServiceSpec
from tests.core.test_properties_planner import worlds

GPU = 24564
RESERVE = 512


def machine(*views: ServiceView, gpus: int = 1, foreign_mib: int = 0, ram_mib: int = 64000) -> PlanInput:
    """Everything is wanted; what runs holds what it declares."""
    running = [v for v in views if not v.gone and v.spec is not None]

    def budget(uuid: str, index: int, total: int, held: dict[str, int]) -> Budget:
        reserve, foreign = (RESERVE, foreign_mib) if index >= 0 else (0, 0)
        return Budget(
            uuid=uuid,
            index=index,
            name=uuid,
            total_mib=total,
            reserve_mib=reserve,
            foreign_mib=foreign,
            limit_mib=None,
            held=held,
        )

    return PlanInput(
        services={v.id: v for v in views},
        wanted=frozenset(v.id for v in views),
        budgets={
            f"GPU-{i}": budget(f"GPU-{i}", i, GPU, {v.id: v.spec.vram_mib for v in running if f"GPU-{i}" in v.devices})
            for i in range(gpus)
        },
        host=budget("host", -1, ram_mib, {v.id: v.spec.ram_mib for v in running}),
    )


def down(name: str, vram_mib: int | None, **keys: object) -> ServiceView:
    return ServiceView(id=name, phase=Phase.STOPPED, gone=True, spec=ServiceSpec(id=name, vram_mib=vram_mib, **keys))


def up(name: str, vram_mib: int, device: str = "GPU-0", **keys: object) -> ServiceView:
    spec = ServiceSpec(id=name, vram_mib=vram_mib, **keys)
    return ServiceView(id=name, phase=Phase.READY, gone=False, spec=spec, devices=(device,))


def took(load_s: float, view: ServiceView) -> ServiceView:
    """The service with a measured time to load."""
    return replace(view, costs=Costs(loads=(load_s,)))


def offered(given: PlanInput, *asked: str, others: dict[str, str] | None = None, **keys: object) -> list[Alternative]:
    return list(alternatives(Question(given=given, asked=frozenset(asked), others=others or {}, **keys)))


def messages(given: PlanInput, *asked: str, **keys: object) -> list[str]:
    return [a.message for a in offered(given, *asked, **keys)]


# -- what is offered ------------------------------------------------------------------------------------------


def test_what_fits_needs_no_alternative():
    assert offered(machine(down("a", 20000), down("b", 4000)), "a", "b") == []


def test_leaving_out_a_member_that_is_large_enough():
    given = machine(down("chat", 20000), down("embed", 3000), down("code", 6000))
    assert messages(given, "chat", "embed", "code") == ["leave out code", "leave out chat"]


def test_the_only_member_is_not_left_out():
    assert offered(machine(down("giant", 25000)), "giant") == []


def test_what_depends_on_a_member_goes_with_it():
    given = machine(down("base", 20000), down("app", 100, depends_on=("base",)), down("other", 6000))
    assert messages(given, "base", "app", "other") == ["leave out other", "leave out base", "leave out app"][:2]


def test_what_only_the_left_out_needs_goes_with_it():
    given = machine(down("base", 20000), down("app", 100, depends_on=("base",)), down("other", 6000))
    assert messages(given, "app", "other") == ["leave out app", "leave out other"]


def test_stopping_what_others_want():
    given = machine(down("chat", 20000), up("embed", 6000, pinned=True), up("small", 300))
    assert messages(given, "chat", others={"embed": "pinned", "small": "lease of batch"}) == ["stop embed (pinned)"]


def test_two_together_when_none_alone_suffices():
    given = machine(down("chat", 22100), up("one", 2000), up("two", 2000), up("small", 1000), up("tiny", 200))
    others = {"one": "pinned", "two": "part of mode rag", "small": "pinned", "tiny": "pinned"}
    assert messages(given, "chat", others=others) == ["stop one (pinned) and two (part of mode rag)"]


def test_many_together_when_three_do_not_suffice():
    others = {f"s{i}": "pinned" for i in range(6)}
    given = machine(down("chat", 20000), *(up(s, 4000) for s in others))
    (only,) = offered(given, "chat", others=others)
    assert len(only.changes) == 5


def test_what_is_hopeless_has_no_alternative():
    others = {f"s{i}": "pinned" for i in range(20)}
    assert offered(machine(down("chat", 20000), *(up(s, 1000) for s in others)), "chat", others=others) == []


def test_moving_what_runs_elsewhere():
    given = machine(down("chat", 20000, devices=("0",)), up("embed", 6000), gpus=2)
    found = offered(given, "chat", "embed")
    assert found[1].changes == (Change(kind=Kind.MOVE, service="embed", devices=("GPU-1",)),)
    assert [a.message for a in found] == [
        "move chat to device 1 (`devices:` in services/chat.yaml)",
        "move embed to device 1 (stop it first, then it starts there)",
        "leave out embed",
        "leave out chat",
    ]


def test_moving_what_holds_more_than_it_says_takes_it_all():
    given = machine(down("chat", 20000, devices=("0",)), up("embed", 6000), up("tall", 14000, "GPU-1"), gpus=2)
    advice = "move embed to device 1 (stop it first, then it starts there)"
    assert advice in messages(given, "chat", "embed", "tall")
    held = {**given.budgets["GPU-0"].held, "embed": 11000}
    given = replace(given, budgets={**given.budgets, "GPU-0": replace(given.budgets["GPU-0"], held=held)})
    assert advice not in messages(given, "chat", "embed", "tall")


def test_less_context_is_as_much_as_fits():
    sizes = ((16384, 12000), (8192, 9000), (4096, 7500))
    given = machine(down("chat", 18000, context=32768, sizes=sizes), up("embed", 15000))
    found = offered(given, "chat", "embed")
    assert found[0].message == "run chat with a context of 8192 instead of 32768 (9000 MiB)"
    assert not any(c.context == 4096 for a in found for c in a.changes)


def test_less_context_beside_something_else_is_as_much_as_fits_then():
    sizes = ((16384, 12000), (8192, 9500), (4096, 9000))
    given = machine(down("chat", 20000, context=32768, sizes=sizes), up("a", 10000), up("b", 6000))
    assert messages(given, "chat", others={"a": "pinned", "b": "pinned"}) == [
        "run chat with a context of 16384 instead of 32768 (12000 MiB); stop b (pinned)",
        "run chat with a context of 16384 instead of 32768 (12000 MiB); stop a (pinned)",
        "stop b (pinned) and a (pinned)",
    ]


def test_a_declared_figure_does_not_follow_the_context():
    given = machine(down("chat", 18000, context=32768), up("embed", 15000))
    assert not any(c.kind is Kind.CONTEXT for a in offered(given, "chat", "embed") for c in a.changes)


def test_foreign_processes_come_last():
    given = machine(down("chat", 14000), up("embed", 4000), foreign_mib=9000)
    strangers = {"GPU-0": (ProcessFact(pid=7, used_mib=8000, name="blender"), ProcessFact(pid=8, used_mib=200))}
    found = messages(given, "chat", "embed", strangers=strangers)
    assert found[-1] == "end the foreign process 7 (blender, 8000 MiB)"
    assert found[:-1] == ["leave out embed", "leave out chat"]


def test_a_foreign_process_that_does_not_say_what_it_holds_is_not_named():
    given = machine(down("chat", 20000), foreign_mib=9000)
    assert offered(given, "chat", strangers={"GPU-0": (ProcessFact(pid=7, used_mib=None),)}) == []


def test_what_nobody_knows_the_size_of_can_be_left_out():
    assert messages(machine(down("a", 1000), down("mystery", None)), "a", "mystery") == ["leave out mystery"]


def test_host_memory_counts_like_a_devices():
    given = machine(down("chat", 100, ram_mib=30000), up("embed", 100, ram_mib=40000), up("tiny", 100), ram_mib=64000)
    others = {"embed": "pinned", "tiny": "pinned"}
    assert messages(given, "chat", others=others) == ["stop embed (pinned)"]


# -- the order ------------------------------------------------------------------------------------------------


def test_the_cheapest_comes_first():
    given = machine(down("chat", 14000), took(90, up("slow", 6000)), took(4, up("quick", 6000)))
    found = offered(given, "chat", others={"slow": "pinned", "quick": "pinned"})
    assert [(a.message, a.cost_s) for a in found] == [("stop quick (pinned)", 4.0), ("stop slow (pinned)", 90.0)]


def test_what_was_never_measured_counts_by_its_size():
    given = machine(down("chat", 10000), up("large", 12000), took(30, up("medium", 11000)))
    found = offered(given, "chat", others={"large": "pinned", "medium": "pinned"})
    assert [(a.message, a.cost_s) for a in found] == [("stop large (pinned)", None), ("stop medium (pinned)", 30.0)]


def test_a_higher_priority_is_kept_whatever_it_costs():
    dear, cheap = took(300, up("dear", 12000, priority=10)), took(1, up("cheap", 11000, priority=90))
    given = machine(down("chat", 10000), dear, cheap)
    found = messages(given, "chat", others={"dear": "pinned", "cheap": "pinned"})
    assert found == ["stop dear (pinned)", "stop cheap (pinned)"]


# -- how far it looks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("services", "devices", "tries"), [(10, 1, 130), (100, 8, 45), (400, 8, 45)])
def test_the_search_is_bounded(monkeypatch, services: int, devices: int, tries: int):
    """Where nothing helps and much could, on a machine with a hole on each device that nothing fits into."""
    plans = Counter[str]()
    monkeypatch.setattr(module, "plan", lambda given: plans.update(["plan"]) or plan(given))
    sizes = tuple((1024 << n, 2000 + 100 * n) for n in range(8))
    views = [down(f"s{i:03}", 5000, context=1 << 20, sizes=sizes, priority=i % 7) for i in range(services)]
    given = machine(*views, gpus=devices, foreign_mib=GPU - RESERVE - 1999)
    assert offered(given, *(v.id for v in views)) == []
    assert 0 < plans["plan"] <= tries


# -- whatever the machine -------------------------------------------------------------------------------------


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Any world of the planner's, some of it wanted by others, with foreign processes and contexts to choose."""
    given = draw(worlds())
    services = dict(given.services)
    for name, view in services.items():
        if view.spec is not None and view.spec.vram_mib and draw(st.booleans()):
            sizes = tuple((8192 // n, view.spec.vram_mib // n + 50) for n in (2, 4))
            services[name] = replace(view, spec=replace(view.spec, context=8192, sizes=sizes))
    given = replace(given, services=services)
    roots = sorted(s for s in given.wanted if services[s].spec is not None)
    others = draw(st.sets(st.sampled_from(roots))) if roots else set()
    strangers = {
        uuid: tuple(
            ProcessFact(pid=pid, used_mib=draw(st.sampled_from([None, budget.foreign_mib // 2])))
            for pid in draw(st.sets(st.integers(100, 102), max_size=2))
        )
        for uuid, budget in sorted(given.budgets.items())
    }
    return Question(
        given=given,
        asked=frozenset(set(roots) - others),
        others=dict.fromkeys(sorted(others), "pinned"),
        strangers=strangers,
    )


def what_is_offered_fits_and_is_needed(question: Question, found: tuple[Alternative, ...], dice: Random) -> None:
    obstacles = obstacles_of(question)
    assert len(found) <= OFFERED
    assert not found or lacks_memory(plan(question.given))
    for one in found:
        assert 0 < len(one.changes) <= LARGEST
        assert fits(question, one.changes)
        made = plan(changed(question, one.changes))
        assert {(r.code, r.service) for r in made.blocked} <= obstacles
        for change in one.changes:
            without = [c for c in one.changes if c is not change]
            assert not fits(question, without), f"{change} is not needed"
            assert change.kind is not Kind.MOVE or made.placements[change.service] == change.devices


def none_contains_another(question: Question, found: tuple[Alternative, ...], dice: Random) -> None:
    sets = [frozenset((c.kind, c.service, c.pid) for c in one.changes) for one in found]
    assert not any(one <= other for one, other in permutations(sets, 2))


def what_others_have_to_do_comes_last(question: Question, found: tuple[Alternative, ...], dice: Random) -> None:
    theirs = [any(c.kind is Kind.END for c in one.changes) for one in found]
    assert theirs == sorted(theirs)


def where_one_change_suffices_something_is_offered(
    question: Question, found: tuple[Alternative, ...], dice: Random
) -> None:
    """As found by trying each alone, without the arithmetic that spares tries."""
    if not lacks_memory(plan(question.given)):
        return
    single = [Change(kind=Kind.STOP, service=s) for s in sorted(question.others)]
    if len(question.asked) > 1:
        single += [Change(kind=Kind.REMOVE, service=s) for s in sorted(question.asked)]
    assert found or not any(fits(question, [change]) for change in single)


def the_order_of_the_input_does_not_matter(question: Question, found: tuple[Alternative, ...], dice: Random) -> None:
    def shuffled(items: Mapping) -> dict:
        return dict(dice.sample(list(items.items()), len(items)))

    given = replace(question.given, services=shuffled(question.given.services))
    assert alternatives(replace(question, given=given, others=shuffled(question.others))) == found


def obstacles_of(question: Question) -> set[tuple[str, str | None]]:
    return {(r.code, r.service) for r in plan(question.given).blocked}


def fits(question: Question, changes: Sequence[Change]) -> bool:
    """It plans without a lack of memory, nothing new is in the way, and some of what is asked for is left."""
    given = changed(question, changes)
    blocked = {(r.code, r.service) for r in plan(given).blocked}
    left = any(s in given.wanted for s in question.asked)
    return left and not any(code in PASSABLE for code, _ in blocked) and blocked <= obstacles_of(question)


PROMISES: tuple[Callable[[Question, tuple[Alternative, ...], Random], None], ...] = (
    what_is_offered_fits_and_is_needed,
    none_contains_another,
    what_others_have_to_do_comes_last,
    where_one_change_suffices_something_is_offered,
    the_order_of_the_input_does_not_matter,
)


@settings(settings.get_profile("core-pure"), max_examples=settings.get_profile("core-pure").max_examples // 4)
@given(question=questions(), seed=st.integers(0, 1 << 16))
def test_whatever_is_offered_keeps_its_promises(question: Question, seed: int):
    found = alternatives(question)
    for promise in PROMISES:
        promise(question, found, Random(seed))
