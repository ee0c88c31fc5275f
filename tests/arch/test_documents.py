"""The documents people read first say what is there."""

import re
import subprocess
from pathlib import Path

import click
import pytest

from gpumodctl.cli import cli as gpumodctl
from gpumodd.cli import main as gpumodd
from tests.arch.source import ROOT

README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def test_every_core_module_is_explained():
    named = set(re.findall(r"`core/(\w+)\.py`", ARCHITECTURE))
    there = {path.stem for path in (ROOT / "gpumodd/core").glob("*.py")} - {"__init__"}
    assert named == there


def test_every_package_is_explained():
    there = {
        path.name
        for path in (ROOT / "gpumodd").iterdir()
        if path.is_dir() and any(path.glob("*.py")) and path.name != "core"
    }
    assert there <= set(re.findall(r"`(\w+)/`", ARCHITECTURE))


def test_every_promise_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", ARCHITECTURE)
    assert len(named) > 50
    assert [file for file, _ in named if not (ROOT / file).exists()] == []
    lost = [f"{file}::{test}" for file, test in named if test and f"def {test}(" not in (ROOT / file).read_text()]
    assert lost == []


def test_every_promise_names_a_test():
    promises = ARCHITECTURE.split("## Promises")[1]
    rows = [line for line in promises.splitlines() if line.startswith("| ") and "held up by" not in line]
    assert len(rows) > 30
    assert [row for row in rows if "`tests/" not in row] == []


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document: str):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_make_targets_exist():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^make (\w[\w-]*)", README, re.M):
        assert re.search(rf"^\s+{target}\s", listed, re.M), target


def test_commands_of_the_readme_exist():
    lines = [line.removeprefix("$ ") for block in code_blocks("sh", "console") for line in block.splitlines()]
    asked = [re.split(r"\s+#|\s{2,}", line)[0].split() for line in lines]
    found = 0
    for words in asked:
        if words and words[0] in ("gpumodd", "gpumodctl") and ":" not in words[0]:
            command(gpumodd if words[0] == "gpumodd" else gpumodctl, words[1:])
            found += 1
    assert found > 8


def command(group: click.Command, words: list[str]) -> None:
    """Follow the words into the command tree; fails when one is no command."""
    for word in words:
        if not isinstance(group, click.Group):
            return
        inner = group.get_command(click.Context(group), word)
        assert inner is not None, f"{word} of {words}"
        group = inner


def test_the_yaml_of_the_readme_is_valid(tmp_path: Path):
    from gpumodd.config.load import load

    for block in code_blocks("yaml"):
        folder, name = re.findall(r"gpumodd/(\w+)/([\w-]+)\.yaml", block)[0]
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.yaml").write_text(block)
    loaded = load(tmp_path, environ={})
    assert loaded.errors == ()
    assert loaded.catalog.modes["code"].services == ("llama-code",)


def code_blocks(*languages: str) -> list[str]:
    return [body for language, body in re.findall(r"```(\w+)\n(.*?)```", README, re.S) if language in languages]
