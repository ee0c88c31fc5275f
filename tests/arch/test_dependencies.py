"""pyproject.toml, requirements.lock and docs/dependencies.md say the same."""

import re
import tomllib

from tests.arch.source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def names(requirements):
    return [re.match(r"[A-Za-z0-9._-]+", requirement).group() for requirement in requirements]


def documented(heading):
    text = (ROOT / "docs/dependencies.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^- `([^`]+)`: .{10,}\.$", section, flags=re.MULTILINE)


def test_every_dependency_is_explained():
    assert documented("At run time") == names(PROJECT["project"]["dependencies"])


def test_every_development_dependency_is_explained():
    assert documented("For development") == names(PROJECT["dependency-groups"]["dev"])


def test_the_lock_file_covers_the_project():
    locked = set(re.findall(r"^([a-z0-9-]+)==", LOCK, flags=re.MULTILINE))
    wanted = names(PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"])
    wanted += names(PROJECT["build-system"]["requires"])
    assert {re.sub(r"[._]", "-", wish).lower() for wish in wanted} <= locked


def test_the_lock_file_names_no_registry_and_hashes_everything():
    assert "://" not in LOCK
    assert not re.search(r"^-", LOCK, flags=re.MULTILINE)
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK[LOCK.index("\n", LOCK.index("make lock")) + 1 :])
    assert len(blocks) > 20
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
