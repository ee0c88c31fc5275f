"""Books: no order of handing memory out is better than the one that is chosen."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumodd.core.book import Book, Credit, Demand
from gpumodd.core.operations import Verb

SECONDS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0, 30.0])


def credit(mib: int, at_s: float, service: str = "x") -> Credit:
    return Credit(mib=mib, at_s=at_s, step=(Verb.WAIT_RELEASE, service))


def demand(service: str, mib: int, tail_s: float, head_s: float = 0.0) -> Demand:
    return Demand(service=service, mib=mib, head_s=head_s, tail_s=tail_s)


@st.composite
def markets(draw: st.DrawFn) -> tuple[int, list[Credit], list[Demand]]:
    """What is free, what comes back when, and who asks for it; there is enough for all."""
    free_mib = draw(st.integers(-3, 9))
    credits = [credit(draw(st.integers(1, 9)), draw(SECONDS), name) for name in "uvwxyz"[: draw(st.integers(0, 6))]]
    left_mib = max(0, free_mib + sum(c.mib for c in credits))
    demands: list[Demand] = []
    while left_mib and len(demands) < 5 and draw(st.booleans()):
        mib = draw(st.integers(1, left_mib))
        left_mib -= mib
        demands.append(demand("abcde"[len(demands)], mib, draw(SECONDS), draw(st.sampled_from([0.0, 0.0, 1.0]))))
    return free_mib, credits, demands


def waits_s(credits: list[Credit], free_mib: int, order: tuple[Demand, ...] | list[Demand]) -> dict[str, float]:
    """When each is served in this order, MiB by MiB."""
    coins = [(0.0, "")] * max(0, free_mib)
    coins += [(c.at_s, c.step[1]) for c in sorted(credits, key=lambda c: c.at_s) if c.step for _ in range(c.mib)]
    debt_s = max((at_s for at_s, _ in coins[: max(0, -free_mib)]), default=0.0)
    coins = coins[max(0, -free_mib) :]
    served: dict[str, float] = {}
    for each in order:
        served[each.service] = max(debt_s, *(at_s for at_s, _ in coins[: each.mib]))
        coins = coins[each.mib :]
    return served


def end_s(served: dict[str, float], demands: list[Demand]) -> float:
    return max((served[d.service] + d.tail_s for d in demands), default=0.0)


@settings(settings.get_profile("core-runs"))
@given(markets())
def test_every_market(market):
    free_mib, credits, demands = market
    no_order_ends_sooner_and_none_that_ends_as_soon_serves_sooner(free_mib, credits, demands)
    each_share_waits_for_as_much_as_it_needs(free_mib, credits, demands)


def no_order_ends_sooner_and_none_that_ends_as_soon_serves_sooner(free_mib, credits, demands):
    book = Book(free_mib, credits)
    best_s = book.soonest_end_s(demands)
    orders = {order: waits_s(credits, free_mib, order) for order in permutations(demands)}
    assert best_s == pytest.approx(min(end_s(served, demands) for served in orders.values()))
    chosen = waits_s(credits, free_mib, book.in_turn(demands, best_s))
    assert end_s(chosen, demands) <= best_s + 1e-6
    if not any(d.head_s for d in demands):
        waited = [sum(served.values()) for served in orders.values() if end_s(served, demands) <= best_s + 1e-6]
        assert sum(chosen.values()) == pytest.approx(min(waited))


def each_share_waits_for_as_much_as_it_needs(free_mib, credits, demands):
    drawn = Book(free_mib, credits).hand_out(demands)
    back_s = {c.step: c.at_s for c in credits}
    served = waits_s(credits, free_mib, demands)
    given_mib = max(0, free_mib)
    asked_mib = 0
    seen: set = set()
    for each in demands:
        assert max((back_s[step] for step in drawn[each.service]), default=0.0) == served[each.service]
        seen |= drawn[each.service]
        asked_mib += each.mib
        back_mib = sum(c.mib for c in credits if c.step in seen)
        assert asked_mib <= given_mib + back_mib - max(0, -free_mib), "more is handed out than has come back"


def test_a_slack_end_serves_the_small_first_and_a_tight_one_the_slow():
    book = Book(4, [credit(10, 1.0)])
    slow, small = demand("slow", 10, 20.0), demand("small", 4, 1.0)
    assert [d.service for d in book.in_turn([slow, small], 30.0)] == ["small", "slow"]
    assert [d.service for d in Book(10, [credit(4, 1.0)]).in_turn([slow, small], 20.0)] == ["slow", "small"]


def test_who_waits_for_others_anyway_is_served_last():
    book = Book(4, [credit(8, 1.0)])
    dependent, other = demand("dependent", 2, 1.0, head_s=5.0), demand("other", 4, 1.0)
    assert [d.service for d in book.in_turn([dependent, other], 9.0)] == ["other", "dependent"]


def test_who_grew_beside_us_is_paid_with_what_is_back_soonest():
    book = Book(-3, [credit(5, 9.0, "late"), credit(3, 1.0, "soon")])
    assert book.total_mib == 5
    assert book.hand_out([demand("a", 1, 1.0)])["a"] == {(Verb.WAIT_RELEASE, "soon"), (Verb.WAIT_RELEASE, "late")}
