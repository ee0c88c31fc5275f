"""Whatever a value is, systemd reads back exactly it, and never a directive more."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpumodd.config import quoting
from gpumodd.config.render import Renderer, header
from gpumodd.drivers.api import UnitFile
from gpumodd.ports import PortError
from tests.config import systemd_syntax as systemd

# Text a process can be given: no NUL, no surrogates. Signs with a meaning somewhere come often.
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from(
    "\\\"'%$`{}[];\n\r\t #=*?~"
)
TEXT = st.text(CHARACTERS, max_size=30)
ARGV = st.lists(TEXT, max_size=6)
NASTY = [
    "",
    " ",
    "a b",
    "%h",
    "%%",
    "$HOME",
    "${HOME}",
    "$$",
    '"',
    "'",
    "\\",
    "\\n",
    "\n[Install]\nAlias=x",
    ";",
    "\\;",
    "#x",
]


def unit(**keys):
    return UnitFile(**{"service": "s", "description": "d", "argv": ("/bin/true",), **keys})


def rendered(**keys):
    return Renderer().render(unit(**keys), environment_file="/run/e")


KEYS = [name for _, name, _ in systemd.directives(rendered())]


@given(ARGV)
@example(NASTY)
def test_a_command_line_comes_back(args):
    argv = ["/bin/true", *args]
    assert systemd.command_line(quoting.command(argv)) == argv


@given(st.text(CHARACTERS, min_size=1, max_size=30))
def test_a_program_comes_back_or_is_refused(name):
    try:
        text = quoting.program(name)
    except ValueError:
        assert name[0] in "@-:+!|"
    else:
        assert systemd.specifiers(systemd._words(text)[0]) == name
        assert len(systemd._words(text)) == 1


@given(st.dictionaries(st.text(string.ascii_letters + "_", min_size=1), TEXT, max_size=5))
@example({"A": "a\nB=b", "B": '\\"`$', "C": "\r\n", "D": ""})
def test_an_environment_comes_back(env):
    assert systemd.environment(quoting.environment(env)) == env


@given(description=TEXT, args=ARGV)
@example(description="x\nExecStartPre=/bin/evil", args=["a\nExecStartPre=/bin/evil"])
@example(description="ends with \\", args=["\\"])
@example(description="%n %h", args=[])
@example(description="\u2028\x85\x0c", args=["\x85\u2028"])
def test_no_value_adds_a_directive(description, args):
    text = rendered(description=description, argv=("/bin/true", *args))
    assert text.startswith(header("s"))
    assert [name for _, name, _ in systemd.directives(text)] == KEYS
    assert systemd.command_line(systemd.one(text, "ExecStart")) == ["/bin/true", *args]
    assert systemd.specifiers(systemd.one(text, "Description")).isprintable()


@given(st.text(CHARACTERS, max_size=20).map(lambda tail: "/" + tail))
@example("/a b%c")
@example("/ends with \\")
@example("/a\n[Install]")
def test_a_directory_comes_back_or_is_refused(directory):
    try:
        text = rendered(working_directory=directory)
    except PortError as error:
        assert error.code == "template_failed"
        assert "cannot write the path" in error.message
        assert not directory.isprintable() or directory != directory.strip() or directory.endswith("\\")
    else:
        assert systemd.specifiers(systemd.one(text, "WorkingDirectory")) == directory


def test_plain_words_stay_plain():
    assert quoting.command(["/opt/v/bin/vllm", "serve", "org/m-1.5_x", "--a=b", "+1"]) == (
        "/opt/v/bin/vllm serve org/m-1.5_x --a=b +1"
    )


@pytest.mark.parametrize(
    "text, quoted",
    [
        ("", '""'),
        ("a b", '"a b"'),
        ("50%", '"50%%"'),
        ("$HOME", '"$$HOME"'),
        ('say "x"', '"say \\"x\\""'),
        ("a\nb\tc\x01", '"a\\nb\\tc\\x01"'),
        (";", '";"'),
        ("für", '"für"'),
    ],
)
def test_quoted_words(text, quoted):
    assert quoting.argument(text) == quoted


def test_only_a_programs_dollar_stays_single():
    assert quoting.command(["/opt/$x/%y", "$x"]) == '"/opt/$x/%%y" "$$x"'


@pytest.mark.parametrize("function, value", [(quoting.argument, "\0"), (quoting.program, "a\0"), (quoting.program, "")])
def test_what_no_process_can_be_given(function, value):
    with pytest.raises(ValueError, match="cannot"):
        function(value)


@pytest.mark.parametrize("env", [{"A=B": "x"}, {"": "x"}, {"1A": "x"}, {"A\n": "x"}, {"A": "\0"}])
def test_an_environment_that_cannot_be_written(env):
    with pytest.raises(PortError, match="cannot"):
        Renderer().render_environment(env)


def test_patterns_in_the_environment_files_path():
    assert quoting.glob_path("/run/[a]*?/e%f") == r"/run/\[a\]\*\?/e%%f"


def test_seconds():
    assert [quoting.seconds(value) for value in (30, 0.5, 0.0001, 86_400)] == ["30000ms", "500ms", "1ms", "86400000ms"]
