"""Operations: how a fresh plan is merged into the steps already shown."""

from gpumodd.core.desired import Desired
from gpumodd.core.operations import (
    Kind,
    Operation,
    PlannedStep,
    Step,
    StepState,
    Verb,
    close,
    fail_step,
    merge,
)
from gpumodd.core.problems import Reason

STOP, WAIT, START, READY = Verb.STOP, Verb.WAIT_RELEASE, Verb.START, Verb.WAIT_READY


def operation(*steps, **how):
    inspect = Step(id="1.1", verb=Verb.INSPECT, service="", state=StepState.DONE)
    given = {"kind": Kind.SWITCH, "target": "m", "created_at": 0.0, "before": Desired(), **how}
    return Operation(id="1", steps=(inspect, *steps), **given)


def planned(verb, service, *after, **how):
    return PlannedStep(verb=verb, service=service, after=after, why="because", **how)


def merged(op, *steps, over=(), at=5.0):
    return merge(op, steps, over=lambda key: key in over, at=at)


def shown(op):
    return [(s.id, s.verb, s.service, s.state, s.after) for s in op.steps[1:]]


def test_planned_steps_are_added_with_ids_and_with_what_they_wait_for():
    op = merged(operation(), planned(STOP, "a"), planned(WAIT, "a", (STOP, "a")), planned(START, "b", (WAIT, "a")))
    assert shown(op) == [
        ("1.2", STOP, "a", StepState.PENDING, ()),
        ("1.3", WAIT, "a", StepState.PENDING, ("1.2",)),
        ("1.4", START, "b", StepState.PENDING, ("1.3",)),
    ]


def test_a_step_in_flight_runs_and_keeps_what_it_had_waited_for():
    op = merged(operation(), planned(STOP, "a"), planned(WAIT, "a", (STOP, "a")))
    op = merged(op, planned(WAIT, "a", in_flight=True), over={(STOP, "a")})
    assert shown(op) == [("1.2", STOP, "a", StepState.DONE, ()), ("1.3", WAIT, "a", StepState.RUNNING, ("1.2",))]
    assert op.steps[2].started_at == 5.0


def test_what_the_plan_no_longer_names_is_done_skipped_or_cancelled():
    op = merged(operation(), planned(STOP, "a", in_flight=True), planned(START, "b"), planned(START, "c"))
    op = merged(op, over={(START, "c")})
    assert [s.state for s in op.steps[1:]] == [StepState.CANCELLED, StepState.SKIPPED, StepState.DONE]


def test_what_turns_up_late_stands_before_what_waits_for_it():
    op = merged(operation(), planned(START, "a"))
    op = merged(op, planned(STOP, "b"), planned(START, "a", (STOP, "b")))
    assert [(s.id, s.after) for s in op.steps[1:]] == [("1.3", ()), ("1.2", ("1.3",))]


def test_what_has_to_wait_again_begins_anew():
    op = merged(operation(), planned(READY, "a", in_flight=True))
    op = merged(op, planned(START, "a"), planned(READY, "a", (START, "a")))
    assert shown(op) == [
        ("1.2", READY, "a", StepState.CANCELLED, ()),
        ("1.3", START, "a", StepState.PENDING, ()),
        ("1.4", READY, "a", StepState.PENDING, ("1.3",)),
    ]


def test_nothing_new_leaves_the_very_same_operation():
    op = merged(operation(), planned(START, "a"))
    assert merged(op, planned(START, "a")) is op


def test_the_step_that_failed_is_the_one_that_had_begun():
    op = merged(operation(), planned(START, "a", in_flight=True), planned(READY, "a", (START, "a")))
    failed = fail_step(op, "a", (START, READY), Reason(code="unit_failed", message="it broke"), 6.0)
    assert [(s.state, s.error) for s in failed.steps[1:]] == [
        (StepState.FAILED, "it broke"),
        (StepState.PENDING, None),
    ]


def test_closing_ends_every_open_step():
    op = close(merged(operation(), planned(START, "a")), StepState.SKIPPED, 7.0)
    assert not [s for s in op.steps if s.state.open]
    assert op.steps[1].finished_at == 7.0


def test_what_goes_concerns_its_scope_and_what_comes_its_goals():
    op = operation(scope=("a", "b"), goals=("a",), abandoned=("b",))
    assert op.concerns(START, "a")
    assert not op.concerns(START, "b")
    assert not op.concerns(STOP, "b")
    assert not op.concerns(STOP, "c")
    assert operation(goals=("a",)).concerns(STOP, "c")
