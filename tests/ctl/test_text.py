"""Text for terminals: nothing that could steer one, nothing wider than asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumodctl.invocation import duration
from gpumodctl.text import bar, clean, cut, pad, table, width, wrap

ANY_TEXT = st.text(max_size=60)


@given(ANY_TEXT)
def test_clean_text_steers_no_terminal(text):
    cleaned = clean(text)
    assert not [c for c in cleaned if ord(c) < 32 or 127 <= ord(c) < 160]
    assert not set(cleaned) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u2028\u2029")
    cleaned.encode()
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\device control", "device control"),
        ("\x9b31mC1\x9b0m", "C1"),
        ("\x1b(Bcharset", "charset"),
        ("over\rwritten", "overwritten"),
        ("back\x08\x7fspace", "backspace"),
        ("\u202egnp.exe", "gnp.exe"),
        ("half \x1b", "half "),
        ("half \x1b[", "half "),
        ("half \ud800", "half "),
        ("naïve 耳 😀", "naïve 耳 😀"),
    ],
)
def test_cleaning(dirty, cleaned):
    assert clean(dirty) == cleaned


@pytest.mark.parametrize(
    ("text", "columns"), [("abc", 3), ("耳", 2), ("e\u0301", 1), ("😀", 2), ("é", 1), ("\u200b", 0)]
)
def test_width(text, columns):
    assert width(text) == columns


@given(ANY_TEXT.map(clean), st.integers(0, 30))
def test_a_cut_text_fits(text, columns):
    assert width(cut(text, columns)) <= columns
    if width(text) <= columns:
        assert cut(text, columns) == text


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT, st.integers(0, 10**6)), max_size=6), st.integers(40, 120))
def test_a_table_fits(rows, columns):
    for line in table(("First", "Second", "Number"), rows, columns=columns, numbers=(2,)):
        assert width(line) <= columns
        assert "\n" not in line


def test_a_table_lines_up_wide_characters():
    lines = table(("ID", "VRAM"), [("耳", 1), ("ab", 22)], columns=80, numbers=(1,))
    assert lines == ["ID  VRAM", "耳     1", "ab    22"]


def test_numbers_are_never_cut():
    lines = table(("ID", "N"), [("x" * 100, 123456)], columns=20, numbers=(1,))
    assert lines[1].endswith("123456")
    assert width(lines[1]) <= 20


@given(ANY_TEXT, st.integers(10, 60))
def test_wrapped_lines_fit(text, columns):
    assert all(width(line) <= columns for line in wrap(text, columns, "  "))


def test_wrapping_keeps_the_words():
    assert wrap("one two three four", 9, " ") == [" one two", " three", " four"]


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_a_bar_does_not_exaggerate(part, whole):
    drawn = bar(part, whole, 16, full="#", empty=".")
    assert len(drawn) == 16
    if whole:
        assert ("#" in drawn) == (part > 0)
        assert ("." in drawn) == (part < whole)


def test_padding():
    assert pad("耳", 4) == "耳  "
    assert pad("7", 3, right=True) == "  7"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
