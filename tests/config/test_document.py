"""Reading YAML: places, limits, and everything a hostile file can try."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumodd.config import document
from gpumodd.config.document import MAX_BYTES, MAX_DEPTH, MAX_NODES, Mark, Unreadable, dotted, parse

SECONDS = 5.0  # far more than any of these may take on a busy machine, far less than what they would take unchecked


def problems(text):
    return [problem.text() for problem in parse(text, "f.yaml")[1]]


def test_values_as_yaml_1_2_has_them():
    text = "a: [1, -2, 0x1F, 0o17, 010, 2.5, 1e3, true, False, ~, null, '8', no, on, 2024-01-01, 1_000]"
    values = parse(text, "f")[0].value["a"]
    assert values == [1, -2, 31, 15, 10, 2.5, 1000.0, True, False, None, None, "8", "no", "on", "2024-01-01", "1_000"]
    assert [type(value) for value in values[:9]] == [int] * 5 + [float] * 2 + [bool] * 2


def test_every_value_and_key_has_its_place():
    found, wrong = parse("# first\na: 1\nb:\n  - x\n  - {c: 'd'}\n", "f")
    assert wrong == []
    assert found.marks[("a",)] == Mark(2, 4)
    assert found.keys[("b",)] == Mark(3, 1)
    assert found.marks[("b", 1, "c")] == Mark(5, 9)
    assert found.mark(("b", 1, "nope", 7)) == found.marks[("b", 1)]
    assert dotted(("b", 1, "c")) == "b[1].c"
    assert dotted(()) == "."


def test_what_was_written_is_kept_beside_the_value():
    assert parse("[0.90, true, 0x10, x, '1', ~]", "f")[0].raw == {(0,): "0.90", (1,): "true", (2,): "0x10"}


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "\ufeff"])
def test_an_empty_document_is_null(text):
    assert parse(text.replace("\ufeff", ""), "f")[0].value is None
    assert document.decode(text.encode(), "f") == text.replace("\ufeff", "")


def test_windows_files_are_fine():
    text = document.decode(b"\xef\xbb\xbfa: 1\r\nb: x\r\n", "f")
    found, wrong = parse(text, "f")
    assert (found.value, wrong) == ({"a": 1, "b": "x"}, [])
    assert found.marks[("b",)] == Mark(2, 4)


def test_anchors_and_aliases_work():
    assert parse("a: &x {k: [1]}\nb: *x\n", "f")[0].value == {"a": {"k": [1]}, "b": {"k": [1]}}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: a: the key a is given twice: first in line 1"),
        ("a: {b: 1, b: 2}", "f.yaml:1:11: a.b: the key b is given twice: first in line 1"),
        (
            "a: !!python/object:os.system x",
            "f.yaml:1:4: .: cannot use the tag tag:yaml.org,2002:python/object:os.system",
        ),
        ("a: !mine x", "f.yaml:1:4: .: cannot use the tag !mine"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: .: cannot use a second document"),
        ("%YAML 1.1\n---\na: yes\n", "f.yaml:2:1: .: cannot use % directives"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", "f.yaml:2:1: .: cannot use % directives"),
        ("a: &a [*a]", "f.yaml:1:8: .: cannot find the anchor &a"),
        ("a: *nobody", "f.yaml:1:4: .: cannot find the anchor &nobody"),
        ("a: &x {b: 1}\n<<: *x\n", "f.yaml:2:1: .: cannot use the merge key <<"),
        ("? [a, b]\n: c\n", "f.yaml:1:3: .: cannot use this as a key"),
        ("a: [1, 2", "f.yaml:1:9: .: cannot parse: "),
        ("a: b: c", "f.yaml:1:5: .: cannot parse: mapping values are not allowed here"),
        ("a:\n\t- b", "f.yaml:2:1: .: cannot parse: "),
        ("a: @b", "f.yaml:1:4: .: cannot parse: "),
        ("a: 1\nb: \x07", "f.yaml:2:4: .: cannot use this character in YAML"),
        ('a: "\\0"', "f.yaml:1:4: .: cannot use this text"),
        ('a: "\\ud800"', "f.yaml:1:4: .: cannot use this text"),
        ("%YAML " + "1" * 5000 + ".2\n---\n", "f.yaml:1:1: .: cannot parse: ValueError"),
    ],
)
def test_refused_with_its_place(text, problem):
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 3000,
        "[\n" * 3000,
        "{a: " * 3000,
        "- " * 3000,
        "? " * 3000,
        "a: " + "[" * 200_000,
        "".join("  " * depth + "a:\n" for depth in range(200)),
    ],
    ids=lambda text: text[:6],
)
def test_deep_nesting_is_refused_before_it_costs_anything(text):
    started = time.monotonic()
    found = problems(text)
    assert time.monotonic() - started < SECONDS
    assert len(found) == 1
    assert f"nested deeper than {MAX_DEPTH} levels" in found[0]


def test_aliases_count_wherever_they_are_used():
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)]
    text = "\n".join(["l0: &l0 [x, x, x, x, x, x, x, x, x, x]", *levels])
    started = time.monotonic()
    assert f"more than {MAX_NODES} keys and values" in problems(text)[0]
    assert time.monotonic() - started < SECONDS


def test_aliases_do_not_get_deeper_than_text():
    text = "\n".join(["l0: &l0 [x]", *(f"l{n}: &l{n} [*l{n - 1}]" for n in range(1, 60))])
    assert "nested deeper" in problems(text)[0]


@pytest.mark.parametrize("text", ["[" + "a," * 100_000 + "]", "a: [" + "{}," * 60_000 + "]", "a: 1\n" * 50_000])
def test_a_flood_of_nodes_is_refused(text):
    started = time.monotonic()
    assert f"more than {MAX_NODES} keys and values" in problems(text)[0]
    assert time.monotonic() - started < SECONDS


def test_a_long_number_is_no_number():
    assert parse("9" * 5000, "f")[0].value == "9" * 5000


class TestFiles:
    """Reading from disk never waits and never takes in more than it should."""

    def refused(self, path):
        with pytest.raises(Unreadable) as caught:
            document.read(path, "f.yaml")
        return caught.value.problem.text()

    def test_a_file(self, tmp_path):
        (tmp_path / "f").write_text("a: 1")
        assert document.read(tmp_path / "f", "f.yaml") == "a: 1"

    def test_a_symbolic_link_is_followed(self, tmp_path):
        (tmp_path / "real").write_text("a: 1")
        (tmp_path / "f").symlink_to("real")
        assert document.read(tmp_path / "f", "f.yaml") == "a: 1"

    def test_a_symbolic_link_to_itself(self, tmp_path):
        (tmp_path / "f").symlink_to("f")
        assert "too many levels of symbolic links" in self.refused(tmp_path / "f")

    def test_a_link_to_nothing(self, tmp_path):
        (tmp_path / "f").symlink_to("nothing")
        assert "no such file" in self.refused(tmp_path / "f")

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "f")
        assert "not a regular file" in self.refused(tmp_path / "f")

    def test_a_device(self):
        assert "not a regular file" in self.refused("/dev/zero")

    def test_a_directory(self, tmp_path):
        assert "f.yaml:1:1: .: cannot read this" in self.refused(tmp_path)

    def test_an_unreadable_file(self, tmp_path):
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        (tmp_path / "f").touch(mode=0)
        assert "permission denied" in self.refused(tmp_path / "f")

    def test_a_huge_file(self, tmp_path):
        with (tmp_path / "f").open("wb") as file:
            file.truncate(1 << 40)  # sparse: a terabyte to read, nothing on the disk
        assert f"larger than {MAX_BYTES // 1024} KiB" in self.refused(tmp_path / "f")

    def test_the_largest_file_there_may_be(self, tmp_path):
        (tmp_path / "f").write_bytes(b"#" * MAX_BYTES)
        assert len(document.read(tmp_path / "f", "f.yaml")) == MAX_BYTES

    def test_bytes_that_are_not_utf8(self, tmp_path):
        (tmp_path / "f").write_bytes(b"a: 1\nb: \xff\n")
        assert self.refused(tmp_path / "f") == "f.yaml:2:4: .: cannot decode byte 0xff: the file is not UTF-8"

    def test_utf_16(self, tmp_path):
        (tmp_path / "f").write_text("a: 1", encoding="utf-16")
        assert "not UTF-8" in self.refused(tmp_path / "f")


@given(st.text(max_size=200))
def test_no_text_makes_the_reader_raise(text):
    found, wrong = parse(text, "f.yaml")
    assert all("\n" not in problem.text() for problem in wrong)
    assert wrong or found.file == "f.yaml"


@given(st.text(alphabet="[]{}:,-?&*!|>'\"%@`# \n\tab1~<", max_size=80))
def test_no_yaml_makes_the_reader_raise(text):
    for problem in parse(text, "f.yaml")[1]:
        assert problem.line >= 1
        assert problem.column >= 1


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_raise(data):
    try:
        text = document.decode(data, "f.yaml")
    except Unreadable as error:
        assert "not UTF-8" in error.problem.text()
    else:
        parse(text, "f.yaml")
