"""Changes on disk that are taken over by themselves, if the configuration wants it; mistakes on disk, and mended."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, until


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that watches its configuration, in mode rag."""
    d = Daemon(tmp_path / "d")
    d.settings["config"] = {"watch": True}
    d.service("embed", 2000)
    d.service("tiny", 1000)
    d.mode("rag", "embed", "tiny")
    with d:
        d.switch("rag")
        yield d
        assert "Traceback" not in d.log


def pids(d: Daemon) -> dict[str, int | None]:
    return {s["id"]: s["pid"] for s in d.rpc("service.list")}


def problems(d: Daemon) -> list[str]:
    return [p["code"] for p in d.status()["problems"]]


def spec(d: Daemon, service: str, **more: Any) -> str:
    path = d.config / f"services/{service}.yaml"
    return json.dumps(json.loads(path.read_text()) | more, indent=1)


def name(d: Daemon, service: str = "tiny") -> str:
    return str(d.rpc("service.get", id=service)["name"])


def save(path: Path, text: str) -> None:
    """As most editors do: a new file, then a rename."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def test_a_saved_file_is_taken_over_and_what_runs_is_left_alone(watched: Daemon):
    before = pids(watched)
    tiny = watched.config / "services/tiny.yaml"
    tiny.write_text(spec(watched, "tiny", name="Written"))
    until(lambda: name(watched) == "Written")
    save(tiny, spec(watched, "tiny", name="Renamed"))
    until(lambda: name(watched) == "Renamed")
    target = watched.root / "dotfiles.yaml"
    target.write_text(spec(watched, "tiny", name="Linked"))
    tiny.unlink()
    tiny.symlink_to(target)
    until(lambda: name(watched) == "Linked")
    save(target, spec(watched, "tiny", name="Behind the link"))
    until(lambda: name(watched) == "Behind the link")
    watched.mode("solo", "tiny")
    until(lambda: "solo" in {m["id"] for m in watched.rpc("mode.list")})
    (watched.config / "modes/solo.yaml").unlink()
    until(lambda: "solo" not in {m["id"] for m in watched.rpc("mode.list")})
    assert (pids(watched), problems(watched)) == (before, [])
    tiny.write_text(spec(watched, "tiny", args=["--new-flag"], options={"command": ["/bin/sleep", "60"]}))
    until(lambda: problems(watched) == ["definition_changed"])
    assert pids(watched) == before


def test_a_mistake_is_told_with_its_place_until_it_is_mended(watched: Daemon):
    before = pids(watched)
    tiny = watched.config / "services/tiny.yaml"
    good = tiny.read_text()
    tiny.write_text(good[: len(good) // 2])  # a file that is still being written
    until(lambda: problems(watched) == ["invalid_config"])
    save(tiny, "id: tiny\ndriver: exec\nvram: 3\n")
    until(lambda: "services/tiny.yaml:3:1" in str(watched.status()["problems"]))
    (problem,) = watched.status()["problems"]
    assert "the last good configuration stays in force" in problem["message"]
    assert any(e.startswith("services/tiny.yaml:3:1") for e in problem["details"]["errors"])
    assert watched.switch("rag")["kept"] == ["embed", "tiny"]
    save(tiny, good)
    until(lambda: problems(watched) == [])
    assert pids(watched) == before


def test_a_directory_that_is_gone_for_a_moment_costs_nothing(watched: Daemon):
    before = pids(watched)
    away = watched.config.rename(watched.root / "away")
    until(lambda: problems(watched) == ["invalid_config"])
    away.rename(watched.config)
    until(lambda: problems(watched) == [])
    assert pids(watched) == before


def test_a_burst_of_changes_is_one(watched: Daemon):
    reloads = watched.log.count("reloaded")
    for n in range(30):
        watched.service(f"s{n}", 10)
    until(lambda: len(watched.rpc("service.list")) == 32)
    assert watched.log.count("reloaded") - reloads <= 2


def test_watching_can_be_turned_off_and_on_again(watched: Daemon):
    settings = json.loads((watched.config / "gpumodd.yaml").read_text())
    watched.write("gpumodd.yaml", settings | {"config": {"watch": False}})
    until(lambda: watched.log.count("reloaded") == 1)
    watched.write("services/tiny.yaml", spec(watched, "tiny", name="Unseen"))
    with pytest.raises(AssertionError, match="not within"):
        until(lambda: name(watched) == "Unseen", within=1.2)
    watched.write("gpumodd.yaml", settings)
    assert watched.rpc("daemon.reload")["changed"] == ["tiny"]
    watched.write("services/tiny.yaml", spec(watched, "tiny", name="Seen"))
    until(lambda: name(watched) == "Seen")


def test_a_mode_that_a_client_makes_is_no_news(watched: Daemon):
    watched.rpc("mode.create", id="made", services=["tiny"])
    before = watched.log.count("reloaded")
    os.utime(watched.config / "services/tiny.yaml")
    until(lambda: watched.log.count("reloaded") > before)  # the next look; one in between would show here
    assert watched.log.count("reloaded") == before + 1


def test_without_being_asked_nothing_is_watched_and_a_mistake_is_told_all_the_same(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    d.service("tiny", 1000)
    with d:
        good = (d.config / "services/tiny.yaml").read_text()
        d.write("services/tiny.yaml", "{")
        with pytest.raises(AssertionError, match="not within"):
            until(lambda: problems(d), within=1.2)
        assert d.rpc("daemon.reload")["errors"]
        assert problems(d) == ["invalid_config"]
        assert d.status()["state"] == "converged"
        d.write("services/tiny.yaml", good)
        assert d.rpc("daemon.reload")["errors"] == []
        assert problems(d) == []
