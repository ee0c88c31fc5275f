"""The tests of the core notice when one of its safeguards is taken out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("gpumodd", "tests/core", "tests/runtime", "tests/support")


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name.replace(" ", "-") for mutant in MUTANTS])
def test_it_is_noticed(mutant: Mutant, tmp_path: Path):
    tree = copy_of_the_tree(tmp_path)
    broken = tree / mutant.file
    text = broken.read_text()
    assert text.count(mutant.before) == 1, f"the mutant does not apply any more: {mutant.before!r}"
    broken.write_text(text.replace(mutant.before, mutant.after))
    ended = run(tree, mutant.suites)
    assert ended.returncode == 1, f"nobody noticed that {mutant.name}\n{ended.stdout[-2000:]}"
    assert "ImportError" not in ended.stdout
    assert "SyntaxError" not in ended.stdout


def test_without_a_mutant_nothing_fails(tmp_path: Path):
    ended = run(copy_of_the_tree(tmp_path), ["tests/core/test_ledger.py", "tests/runtime/test_dispatch.py"])
    assert ended.returncode == 0, ended.stdout[-4000:]


def copy_of_the_tree(to: Path) -> Path:
    for part in COPIED:
        shutil.copytree(ROOT / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, to / file)
    return to


def run(tree: Path, suites: "tuple[str, ...] | list[str]") -> "subprocess.CompletedProcess[str]":
    """Run these suites on the tree, each example once: a failure is not made smaller."""
    env = os.environ | {"HYPOTHESIS_PROFILE": "mutation", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=short", *suites]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=100, check=False)
