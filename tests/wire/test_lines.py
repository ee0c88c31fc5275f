"""Cutting a byte stream into lines: the same lines however it arrives, and never more than the limit in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumodd.wire.codec import OVERSIZED, Lines

PIECES = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\n\n", b" ", b"\r\n", b"x" * 9, b"\xff"]), max_size=40)


def cut(data, sizes, limit=16):
    lines, out, at = Lines(limit), [], 0
    for size in [*sizes, len(data)]:
        out += lines.feed(data[at : at + size])
        at += size
    return out, lines


@given(PIECES, st.lists(st.integers(1, 7), max_size=30))
def test_how_it_arrives_makes_no_difference(pieces, sizes):
    data = b"".join(pieces)
    whole, one = cut(data, [])
    parts, other = cut(data, sizes)
    assert parts == whole
    assert one.end() == other.end()


@given(PIECES)
def test_short_lines_come_out_as_they_went_in(pieces):
    data = b"".join(pieces)
    out, _ = cut(data, [], limit=1000)
    *complete, _rest = data.split(b"\n")
    assert out == [line for line in complete if line.strip()]


@given(PIECES)
def test_nothing_longer_than_the_limit_comes_out(pieces):
    out, lines = cut(b"".join(pieces), [1] * 50, limit=5)
    assert all(line is OVERSIZED or len(line) <= 5 for line in out)
    assert len(lines.end()) <= 5


def test_a_long_line_is_reported_at_once_and_only_once():
    lines = Lines(10)
    assert list(lines.feed(b"x" * 11)) == [OVERSIZED]
    assert list(lines.feed(b"x" * 1000)) == []
    assert lines.skipped == 1011
    assert list(lines.feed(b"rest\nnext\n")) == [b"next"]
    assert lines.skipped == 0


def test_a_long_line_that_arrives_whole():
    assert list(Lines(10).feed(b"x" * 11 + b"\n" + b"y" * 10 + b"\n")) == [OVERSIZED, b"y" * 10]


def test_the_limit_is_without_the_newline():
    assert list(Lines(10).feed(b"x" * 10 + b"\n")) == [b"x" * 10]


@pytest.mark.parametrize(("rest", "end"), [(b"", b""), (b"  \r", b""), (b"{}", b"{}")])
def test_what_is_left_at_the_end(rest, end):
    lines = Lines()
    assert list(lines.feed(b"a\n" + rest)) == [b"a"]
    assert lines.end() == end
    assert lines.end() == b""
