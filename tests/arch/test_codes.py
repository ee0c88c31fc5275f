"""The registry of codes and the code that uses them agree."""

import ast
import re
from collections.abc import Iterator

import pytest

from gpumodd.core.problems import CODES, CONFIGURATION, SECTIONS
from gpumodd.wire.errors import NUMBERS
from tests.arch.source import ROOT, modules, name, tree

REGISTRY = ROOT / "gpumodd/core/problems.py"
DAEMON = [path for path in modules("gpumodd") if path != REGISTRY]
# Whose `code` and `hint` a person gets to see.
TOLD = {"Reason", "Problem", "ConfigProblem", "problem_at", "OperationError", "Refusal"}
QUOTED = re.compile(r"`([^`]+)`|(--[a-z-]+)")


def told() -> Iterator[tuple[str, str, ast.expr | None]]:
    """Place, code and hint of everything that is told with a literal code."""
    for path in DAEMON:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in TOLD:
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            for code in _choices(given.get("code")):
                if isinstance(code, ast.Constant):
                    yield f"{name(path)}:{node.lineno}", str(code.value), given.get("hint")


def _choices(value: ast.expr | None) -> list[ast.expr | None]:
    return [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]


def literals(text: str) -> set[str]:
    return set(re.findall(r"\"([a-z][a-z_]+)\"", text))


def test_every_code_that_is_told_is_registered():
    found = list(told())
    assert len(found) > 30
    assert [f"{place}: {code}" for place, code, _ in found if code not in CODES and code not in NUMBERS] == []


def test_every_registered_code_is_used():
    used = set().union(*(literals(path.read_text()) for path in DAEMON))
    defaults = {"invalid_config"}  # what a problem of the configuration is unless it says more
    assert sorted(CODES.keys() - used - defaults) == []


def test_every_registered_code_is_tested():
    tests = [path for path in modules("tests") if "arch" not in path.parts and "support" not in path.parts]
    tested = set().union(*(literals(path.read_text()) for path in tests))
    assert sorted(CODES.keys() - tested) == []


def test_no_code_is_registered_twice():
    assert len(CODES) == sum(len(section.codes) for section in SECTIONS)


@pytest.mark.parametrize("code", CODES)
def test_every_code_says_what_it_means_and_what_to_do(code):
    for words in (CODES[code].meaning, CODES[code].fix):
        assert words[:1].isupper() or words.startswith("`")
        assert words.endswith(".")
    assert "  " not in CODES[code].fix + CODES[code].meaning + CODES[code].follows


def test_what_a_hint_names_the_registry_names_too():
    """A person who looks a code up must find there what the message told to type."""
    missing = [
        f"{place}: {code}: {words}"
        for place, code, hint in told()
        if code in CODES and code not in CONFIGURATION.codes
        for words in quoted(hint)
        if words not in CODES[code].fix
    ]
    assert missing == []


def quoted(hint: ast.expr | None) -> list[str]:
    """The commands, keys and options that a hint names; what it fills in stands as ID, or not at all."""
    found: list[str] = []
    for part in _choices(hint):
        values = part.values if isinstance(part, ast.JoinedStr) else [part]
        text = "".join(
            str(value.value) if isinstance(value, ast.Constant) else "ID" if named(value) else "…" for value in values
        )
        words = [command or option for command, option in QUOTED.findall(text)]
        found += [re.split(r" ?…", word)[0] for word in words]
    return found


def named(value: ast.expr | None) -> bool:
    return value is not None and re.search(r"service|spec\.id|holder\.id", ast.unparse(value)) is not None


def test_commands_that_the_registry_names_exist():
    from gpumodctl.cli import cli
    from gpumodd.cli import main
    from tests.arch.test_documents import command

    found = 0
    for about in CODES.values():
        for words in re.findall(r"`((?:gpumodctl|gpumodd) [^`]+)`", about.fix + about.follows):
            program, *rest = words.split()
            command(cli if program == "gpumodctl" else main, rest)
            found += 1
    assert found > 10
