"""Units that run and that nothing asks for: shown, counted, and gone with the next switch; what people do by hand."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, until
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.real


@pytest.fixture
def systemd(sandbox: Sandbox, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on a real user manager, with four services and two modes; not started yet."""
    d = Daemon(tmp_path / "d", box=sandbox, nvml=True)
    for id, mib in (("embed", 5000), ("tiny", 1000), ("code", 22000), ("spare", 500)):
        d.service(id, mib)
    d.mode("rag", "embed", "tiny")
    d.mode("code", "code")
    yield d
    d.__exit__()
    for unit in ("embed", "tiny", "code", "spare"):  # also those whose definition a test has removed
        sandbox.systemctl("stop", f"gpumod-{unit}.service", check=False)


def problems(d: Daemon) -> list[tuple[str, str | None]]:
    return sorted((p["code"], p["service"]) for p in d.status()["problems"])


def loaded(d: Daemon) -> set[str]:
    """The services whose units the manager knows, in whatever state."""
    assert d.box is not None
    lines = d.box.systemctl("list-units", "--all", "--plain", "--no-legend", "gpumod-*.service").splitlines()
    return {line.split()[0].removeprefix("gpumod-").removesuffix(".service") for line in lines if line}


def pids(d: Daemon) -> dict[str, int | None]:
    return {s["id"]: s["pid"] for s in d.rpc("service.list")}


def settled(d: Daemon) -> str:
    until(lambda: not {"loading", "starting"} & set(d.phases().values()))
    return str(d.status()["state"])


def test_a_daemon_without_a_memory_finds_orphans_and_a_switch_keeps_what_it_wants(systemd: Daemon):
    with systemd as d:
        d.switch("rag")
        before = pids(d)
        d.stop()
        for file in d.state.glob("state.db*"):
            file.unlink()
        d.start()
        assert (settled(d), problems(d)) == ("degraded", [("orphan_running", "embed"), ("orphan_running", "tiny")])
        assert (d.status()["mode"], d.ready(), pids(d)) == ("blank", {"embed", "tiny"}, before)
        again = d.switch("rag")
        assert (again["kept"], again["started"], again["stopped"]) == (["embed", "tiny"], [], [])
        assert (d.status()["state"], problems(d), pids(d)) == ("converged", [], before)


def test_an_orphan_makes_room_for_what_is_wanted(systemd: Daemon):
    """Its memory counts as its own, not as a stranger's: the switch ends it first and waits for what it held."""
    with systemd as d:
        d.switch("rag")
        for id in ("embed", "tiny"):
            (d.config / f"services/{id}.yaml").unlink()
        (d.config / "modes/rag.yaml").unlink()
        assert d.rpc("daemon.reload")["removed"] == ["embed", "rag", "tiny"]
        assert problems(d) == [("orphan_running", "embed"), ("orphan_running", "tiny")]
        shown = {
            s["id"]: (s["phase"], s["vram_observed_mib"], s["problem"]["code"])
            for s in d.rpc("service.list")
            if s["problem"]
        }
        assert shown == {"embed": ("ready", 5000, "orphan_running"), "tiny": ("ready", 1000, "orphan_running")}
        device = d.rpc("device.list")[0]
        assert (device["foreign_mib"], device["committed_mib"]) == (0, 6000)
        operation = d.switch("code")
        assert (operation["stopped"], operation["started"]) == (["embed", "tiny"], ["code"])
        assert (d.status()["state"], problems(d), d.refusals()) == ("converged", [], [])
        assert {s["id"] for s in d.rpc("service.list")} == {"code", "spare"}
        assert loaded(d) == {"code"}
        assert d.box is not None
        assert {path.name for path in d.box.unit_dir.glob("gpumod-*")} == {
            "gpumod-code.service",
            "gpumod-spare.service",
        }


def test_an_orphan_may_be_ended_by_hand_and_is_forgotten(systemd: Daemon):
    with systemd as d:
        assert d.box is not None
        d.switch("rag")
        (d.config / "services/tiny.yaml").unlink()
        d.mode("rag", "embed")
        d.rpc("daemon.reload")
        assert d.rpc("service.stop", id="tiny", wait=True)["stopped"] == ["tiny"]
        assert (d.status()["state"], problems(d), loaded(d)) == ("converged", [], {"embed"})
        d.box.systemctl("start", "gpumod-spare")
        until(lambda: problems(d) == [("orphan_running", "spare")])
        d.box.systemctl("stop", "gpumod-spare")
        until(lambda: problems(d) == [])
        until(lambda: d.status()["state"] == "converged")


def test_a_restart_by_hand_is_seen_at_once_and_never_fought(systemd: Daemon):
    with systemd as d:
        assert d.box is not None
        d.switch("rag")
        before = pids(d)
        d.box.systemctl("restart", "gpumod-tiny")
        until(lambda: pids(d)["tiny"] not in (None, before["tiny"]) and d.ready() == {"embed", "tiny"})
        assert (d.status()["state"], problems(d), pids(d)["embed"]) == ("converged", [], before["embed"])
        assert len(d.rpc("operation.list")) == 1
        story = [line["text"] for line in d.rpc("service.explain", id="tiny")["story"]]
        assert "stopped outside gpumodd" in story
        assert "started outside gpumodd" in story


def test_of_a_failed_unit_without_a_definition_nothing_is_left(systemd: Daemon):
    systemd.policy["drift"] = "report"
    with systemd as d:
        d.switch("rag")
        pid = pids(d)["tiny"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: problems(d) == [("unit_failed", "tiny")])
        (d.config / "services/tiny.yaml").unlink()
        d.mode("rag", "embed")
        d.rpc("daemon.reload")
        assert (d.status()["state"], problems(d)) == ("converged", [])
        assert loaded(d) == {"embed"}
