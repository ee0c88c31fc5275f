"""Rules of the source that no linter knows."""

import ast
import re

import pytest

from gpumodd import __version__
from tests.arch.source import ROOT, calls, imports, modules, name, tracked, tree

DAEMON = modules("gpumodd")
ALL = modules("gpumodd", "gpumodctl")

MAX_LINES = 400
# Longer, each for a reason that is written beside it.
LONG: dict[str, str] = {}

# Tasks live in task groups; these may start one otherwise, each for a reason that is written beside it.
FREE_TASKS: dict[str, str] = {}

# What people read is written by the command line; everything else logs.
PRINTS = ("gpumodd/cli.py", "gpumodd/demo/")

WIRE_ALLOWED = {"msgspec"}


def test_the_packages_are_complete():
    without = sorted(
        name(folder)
        for package in ("gpumodd", "gpumodctl")
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}
        if not (folder / "__init__.py").exists()
    )
    assert not without, "a folder without __init__.py is invisible to the import contracts"


@pytest.mark.parametrize("path", ALL, ids=name)
def test_every_module_says_what_it_owns(path):
    assert len(ast.get_docstring(tree(path)) or "") > 20


@pytest.mark.parametrize("path", ALL, ids=name)
def test_no_module_is_too_long(path):
    lines = len(path.read_text().splitlines())
    if name(path) in LONG:
        assert lines > MAX_LINES, "short again: take it off the list"
    else:
        assert lines <= MAX_LINES, "split it, or put it on the list LONG with the reason why it is one piece"


def test_the_packages_are_light():
    """`gpumodd/__init__.py` runs at every gpumodctl: a docstring and a literal version."""
    docstring, version = tree(ROOT / "gpumodd/__init__.py").body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(version) == f"__version__ = '{__version__}'"


def test_tasks_live_in_task_groups():
    stray = [
        f"{name(path)}:{line}: {call}"
        for path in ALL
        if name(path) not in FREE_TASKS
        for line, call in calls(path)
        if call.endswith(("create_task", "ensure_future", "run_coroutine_threadsafe"))
    ]
    assert not stray


def test_nothing_prints():
    stray = [
        f"{name(path)}:{line}"
        for path in DAEMON
        if not name(path).startswith(PRINTS)
        for line, call in calls(path)
        if call == "print"
    ]
    assert not stray


def test_logging_is_configured_once():
    homes = {
        name(path) for path in ALL for _, call in calls(path) if call.endswith(("structlog.configure", "basicConfig"))
    }
    assert homes == {"gpumodd/telemetry/log.py"}


def test_wire_is_light():
    import sys

    foreign = [
        f"{name(path)}:{line}: {module}"
        for path in modules("gpumodd/wire")
        for line, module in imports(path)
        if (top := module.partition(".")[0]) not in sys.stdlib_module_names
        and top not in WIRE_ALLOWED
        and not module.startswith("gpumodd.wire")
    ]
    assert not foreign


# Written so that this file does not contain what it looks for.
PRIVATE = {
    "a path of one machine": re.compile(r"(?<![\w./~}$*-])/(?:home/(?!user\b|me\b|alice\b)|root/|work/|Users/)[\w.-]+"),
    "a package registry": re.compile(
        r"(?:pypi\.(?:org|python)|files\.pythonhosted|(?:index|extra-index)-url|[\w-]+\.jfrog)"
    ),
}
# Where such a word is the subject, with the reason.
MAY_NAME = {
    "tests/arch/test_source.py": "the patterns",
    "Makefile": "the option that keeps indexes out of the lock file",
}


def test_nothing_of_this_machine_is_in_the_tree():
    found = []
    for path in tracked():
        if name(path) in MAY_NAME:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{name(path)}:{number}: {what}: {match.group()}"
            for number, line in enumerate(text.splitlines(), 1)
            for what, pattern in PRIVATE.items()
            if (match := pattern.search(line))
        ]
    assert not found
