"""The placement of results in one buffer, in small cases that can be followed by hand."""

from hypothesis import given
from hypothesis import strategies as st

from gpumodd.estimate.graph import Graph

K = 1024


def test_what_is_needed_at_once_lies_side_by_side():
    g = Graph()
    x = g.entry(K)
    a, b = g.result(2 * K, x), g.result(3 * K, x)
    g.result(0, a, b)
    assert g.peak() == 6 * K


def test_what_nobody_needs_makes_room():
    g = Graph()
    x = g.result(4 * K, g.entry(32))
    for _ in range(10):
        x = g.result(4 * K, x)
    assert g.peak() == 8 * K + 32


def test_a_change_in_place_needs_nothing():
    g = Graph()
    x = g.result(4 * K, g.entry(32))
    for _ in range(10):
        x = g.changed(x)
    assert g.peak() == 4 * K + 32


def test_what_is_needed_again_is_not_written_over():
    g = Graph()
    x = g.result(4 * K, g.entry(32))
    y = g.changed(x)
    g.result(0, x, y)
    assert g.peak() == 8 * K + 32


def test_holes_that_are_too_small_are_of_no_use():
    g = Graph()
    start = g.entry(32)
    small = g.result(2 * K, start)
    large = g.result(4 * K, start)
    g.result(0, small)
    g.result(0, g.result(3 * K, large))  # does not fit into the hole of 2 KiB
    assert g.peak() == 9 * K + 32


def test_the_smallest_hole_is_taken():
    g = Graph()
    start = g.entry(32)
    wide, kept, narrow, last = (g.result(size * K, start) for size in (4, 1, 2, 1))
    g.result(0, wide)
    g.result(0, narrow)
    first = g.result(2 * K, last)  # into the narrow one
    second = g.result(4 * K, last)  # into the wide one
    g.result(0, first, second, kept)
    assert g.peak() == 8 * K + 32


def test_neighbouring_holes_are_one():
    g = Graph()
    start = g.entry(32)
    a, b, last = g.result(2 * K, start), g.result(2 * K, start), g.result(K, start)
    g.result(0, a)
    g.result(0, b)
    g.result(0, g.result(4 * K, last))
    assert g.peak() == 5 * K + 32


def test_inputs_stay():
    g = Graph()
    x = g.result(K, g.entry(8 * K))
    g.result(0, g.result(8 * K, x))
    assert g.peak() == 17 * K


steps = st.lists(st.tuples(st.integers(1, 50), st.lists(st.integers(0, 10_000), min_size=1, max_size=3)), max_size=60)


@given(steps=steps)
def test_never_less_than_what_lives_and_never_more_than_all(steps):
    g, sizes, last = Graph(), [], {}
    results = [g.entry(32)]
    for size, picks in steps:
        sources = {results[pick % len(results)] for pick in picks}
        results.append(g.result(size * 32, *sources))
        sizes.append(size * 32)
        last |= dict.fromkeys(sources, len(results) - 1)
    living = max(
        (
            sum(size for n, size in enumerate(sizes, 1) if n <= now and (n == now or last.get(n, 10**9) >= now))
            for now in range(1, len(sizes) + 1)
        ),
        default=0,
    )
    assert living <= g.peak() <= 32 + sum(sizes)
