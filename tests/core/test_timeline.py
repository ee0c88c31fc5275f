"""The timeline of an operation: what waited for what, and what its length is made of; both directions told apart."""

from itertools import pairwise

from gpumodd.core import conditions
from gpumodd.core.operations import State, StepState, Verb
from gpumodd.core.timeline import timeline
from tests.core.machine import Behaviour, Machine, catalog, service


def machine(**behaviours) -> Machine:
    specs = (
        service("a", 12000),
        service("b", 12000),
        service("c", 2000),
        service("top", 2000, depends_on=("c",)),
    )
    modes = {"left": ("a", "c"), "right": ("b", "top")}
    return Machine(catalog(*specs, **modes), behaviours=behaviours).boot()


def critical(op, at) -> list[tuple[str, str]]:
    timings = timeline(op, at)
    return [(str(s.verb), s.service) for s in op.steps if timings[s.id].critical]


def step_of(op, verb, service, *, back=False):
    return next(s for s in op.steps if s.key == (verb, service) and s.back is back)


def test_the_critical_path_is_the_chain_the_length_is_made_of():
    m = machine(a=Behaviour(term_s=2.0, linger_s=1.0), b=Behaviour(load_s=8.0))
    m.do("switch", "left")
    op = m.do("switch", "right")
    path = [("inspect", ""), ("stop", "a"), ("wait_release", "a"), ("start", "b"), ("wait_ready", "b")]
    assert sorted(critical(op, m.at)) == sorted(path)
    timings = timeline(op, m.at)
    steps = sorted((s for s in op.steps if timings[s.id].critical), key=lambda s: (s.started_at, s.finished_at))
    assert all(later.started_at <= earlier.finished_at + 0.1 for earlier, later in pairwise(steps))
    assert timings[step_of(op, Verb.START, "b").id].gate == step_of(op, Verb.WAIT_RELEASE, "a").id
    assert timings[step_of(op, Verb.STOP, "a").id].seconds >= 2.0
    assert timings[step_of(op, Verb.INSPECT, "").id].gate is None


def test_what_ran_beside_it_is_not_on_it():
    m = machine(a=Behaviour(term_s=5.0), b=Behaviour(load_s=1.0))
    m.do("switch", "left")
    op = m.do("switch", "right")
    assert ("wait_ready", "top") not in critical(op, m.at)


def test_a_step_that_runs_counts_until_now_and_what_waits_has_no_time():
    m = machine(a=Behaviour(term_s=50.0))
    m.do("switch", "left")
    request = m.ask("switch", "right")
    m.run(3.0)
    op = m.operation(request)
    timings = timeline(op, m.at)
    assert timings[step_of(op, Verb.STOP, "a").id].seconds >= 2.9
    waiting = step_of(op, Verb.START, "b")
    assert waiting.state is StepState.PENDING
    assert timings[waiting.id].seconds is None


def test_a_rollback_is_told_apart():
    m = machine(b=Behaviour(exit_after_s=0.5, load_s=5.0))
    m.do("switch", "left")
    op = m.do("switch", "right")
    assert op.state is State.ROLLED_BACK
    assert op.done(Verb.STOP) == ("a",)
    assert (op.done(Verb.START, back=True), op.done(Verb.STOP, back=True)) == (("a",), ("top",))
    assert "a" not in op.done(Verb.START)
    ready = step_of(op, Verb.WAIT_READY, "a", back=True)
    assert ready.state is StepState.DONE
    broken = next(s for s in op.steps if s.service == "b" and s.state is StepState.FAILED)
    assert (broken.code, broken.back) == ("unit_failed", False)
    assert op.turned_at == broken.finished_at
    path = critical(op, m.at)
    assert ("wait_ready", "a") in path
    assert ("stop", "a") in path  # through what failed, back to the beginning


def test_a_cancelled_operation_has_a_way_back_too():
    m = machine(b=Behaviour(load_s=60.0))
    m.do("switch", "left")
    request = m.ask("switch", "right")
    m.run(5.0)
    m.do("cancel", m.operation(request).id)
    op = m.operation(request)
    assert op.state is State.CANCELLED
    assert (op.done(Verb.STOP, back=True), op.done(Verb.START, back=True)) == (("b", "top"), ("a",))


def test_keep_goes_on_and_has_no_way_back():
    from gpumodd.core.specs import OnFailure

    m = machine(b=Behaviour(exit_after_s=0.5, load_s=5.0))
    m.do("switch", "left")
    op = m.do("switch", "right", on_failure=OnFailure.KEEP)
    assert (op.state, op.turned_at) == (State.FAILED, None)
    assert not [s for s in op.steps if s.back]
    assert op.done(Verb.START) == ("b", "top")


def test_a_way_back_that_fails_ends_in_a_stated_place_and_not_in_a_loop():
    m = machine(b=Behaviour(exit_after_s=0.5, load_s=5.0))
    m.do("switch", "left")
    m.behaviours["a"] = Behaviour(exit_after_s=0.5, load_s=5.0)  # it will not come back
    op = m.do("switch", "right")
    assert (op.state, op.failure.reason.service) == (State.FAILED, "b")
    assert op.details["rollback_failed"] == "a ended by itself: exit-code, exit status 3"
    assert op.details["unrestored"] == ["a"]
    assert m.running() == {"c"}  # what could be brought back, or was never touched
    assert (m.engine.state.reached_mode, m.standing()) == (None, "degraded")
    (problem,) = [p for p in conditions.problems(m.engine.state) if p.code == "gave_up"]
    assert (problem.service, "`gpumodctl service start a`" in problem.hint) == ("a", True)
    m.log.clear()
    m.run(3600.0)
    assert (m.log, m.running(), len(m.engine.state.operations)) == ([], {"c"}, 2)


def test_a_way_back_that_nothing_makes_room_for_says_so():
    m = machine(b=Behaviour(exit_after_s=0.5, load_s=5.0))
    m.do("switch", "left")
    request = m.ask("switch", "right")
    m.run(0.3)
    m.strangers["GPU-0"] = 20000  # somebody took what a had
    m.touch()
    m.run(600.0)
    op = m.operation(request)
    assert (op.state, op.details["unrestored"]) == (State.FAILED, ["a"])
    assert "cannot start a on Sim 0" in op.details["rollback_failed"]
