"""The command table: every listed pair, and that no other is possible."""

from itertools import product

import pytest

from gpumodd.core.ops import TABLE, Asked, Command, step


@pytest.mark.parametrize(("before", "asked", "after"), [(*pair, after) for pair, after in TABLE.items()])
def test_every_listed_pair_leads_where_it_says(before, asked, after):
    assert step(before, asked) is after


@pytest.mark.parametrize(("before", "asked"), [pair for pair in product(Command, Asked) if pair not in TABLE])
def test_every_other_pair_is_a_bug_that_names_both(before, asked):
    with pytest.raises(AssertionError, match=f"no row for {asked} while {before}"):
        step(before, asked)


def test_a_start_that_is_no_longer_wanted_ends_in_either_order():
    stopping = step(Command.STARTING, Asked.STOP)
    start_first = step(step(stopping, Asked.START_ENDED), Asked.STOP_ENDED)
    stop_first = step(step(stopping, Asked.STOP_ENDED), Asked.START_ENDED)
    assert start_first is stop_first is Command.IDLE


def test_every_command_can_come_to_its_end():
    at_rest = {Command.IDLE}
    ends = (Asked.START_ENDED, Asked.STOP_ENDED)
    for _ in Command:
        at_rest |= {c for c in Command if any(TABLE.get((c, end)) in at_rest for end in ends)}
    assert at_rest == set(Command)
