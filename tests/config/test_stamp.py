"""A change of any file that is read shows, and of no other; whatever lies in the directory, looking never fails."""

import os
from pathlib import Path

import pytest

from gpumodd.config.load import load
from gpumodd.config.stamp import stamp


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("services", "modes", "templates"):
        (tmp_path / name).mkdir()
    (tmp_path / "gpumodd.yaml").write_text("{}\n")
    (tmp_path / "services/a.yaml").write_text("id: a\ndriver: exec\noptions: {command: [/bin/true]}\n")
    (tmp_path / "modes/m.yaml").write_text("id: m\nservices: [a]\n")
    return tmp_path


def touch(path: Path) -> None:
    path.write_text("")


def replaced(path: Path) -> None:
    """As editors save: a new file takes the place, of the same size and with the same times."""
    seen = path.stat()
    new = path.with_name("new~")
    new.write_bytes(path.read_bytes())
    os.utime(new, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    new.replace(path)


CHANGES = {
    "written": lambda p: (p / "services/a.yaml").write_text("id: a\n"),
    "replaced": lambda p: replaced(p / "services/a.yaml"),
    "removed": lambda p: (p / "modes/m.yaml").unlink(),
    "added": lambda p: touch(p / "modes/n.yaml"),
    "settings written": lambda p: (p / "gpumodd.yaml").write_text("policy: {}\n"),
    "settings removed": lambda p: (p / "gpumodd.yaml").unlink(),
    "a template": lambda p: touch(p / "templates/unit.j2"),
    "a folder is gone": lambda p: (p / "modes").rename(p / "away"),
    "the directory is gone": lambda p: p.rename(p.with_name("elsewhere")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_read_counts(place, change):
    before = stamp(place)
    assert stamp(place) == before == load(place, environ={}).stamp
    change(place)
    assert stamp(place) != before
    assert stamp(place) == load(place, environ={}).stamp


@pytest.mark.parametrize(
    "name",
    ["services/.a.yaml.swp", "services/.#a.yaml", "services/a.yaml~", "services/4913", "notes.txt", "modes/x.yml"],
)
def test_what_is_not_read_does_not(place, name):
    before = stamp(place)
    touch(place / name)
    assert stamp(place) == before


def test_what_a_link_points_to_counts(place, tmp_path):
    target = tmp_path / "dotfiles"
    target.write_text("id: linked\n")
    (place / "services/linked.yaml").symlink_to(target)
    before = stamp(place)
    target.write_text("id: linked\nname: changed\n")
    assert stamp(place) != before


def test_whatever_lies_there_looking_never_fails(place):
    (place / "services/loop.yaml").symlink_to("loop.yaml")
    (place / "services/nowhere.yaml").symlink_to("/nowhere/at/all")
    os.mkfifo(place / "services/pipe.yaml")
    (place / "modes/folder.yaml").mkdir()
    (place / "modes" / os.fsdecode(b"\xff.yaml")).write_text("")
    (place / "templates").rmdir()
    (place / "templates").write_text("")
    assert stamp(place) == stamp(place)


def test_a_folder_without_end_has_one_here(place):
    for n in range(3100):
        (place / f"services/s{n}.yaml").touch()
    assert len(stamp(place)) == 3000
