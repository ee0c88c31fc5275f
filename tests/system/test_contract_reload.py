"""The contract's words on changing the configuration under a running daemon, sentence by sentence."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, RpcFailure, until
from tests.support.sandbox import Sandbox

OFTEN = {"interval_s": 0.2, "failures": 1}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon in mode rag: embed and tiny are ready."""
    d = Daemon(tmp_path / "d")
    d.service("embed", 5000, aliases=["e"])
    d.service("tiny", 1000, health=OFTEN)
    d.mode("rag", "embed", "tiny")
    with d:
        d.switch("rag")
        yield d
        assert "Traceback" not in d.log


def pids(d: Daemon) -> dict[str, int | None]:
    return {s["id"]: s["pid"] for s in d.rpc("service.list")}


def problems(d: Daemon) -> list[tuple[str, str | None]]:
    return [(p["code"], p["service"]) for p in d.status()["problems"]]


# -- daemon.reload --------------------------------------------------------------------------------------------


def test_a_reload_counts_and_touches_nothing_that_runs(running: Daemon):
    before = pids(running)
    running.service("fresh", 500)
    running.mode("rag", "embed")
    (running.config / "modes/solo.yaml").write_text("id: solo\nservices: [tiny]\n")
    result = running.rpc("daemon.reload")
    assert (result["added"], result["changed"], result["removed"]) == (["fresh", "solo"], ["rag"], [])
    assert result["unchanged"] == ["blank", "embed", "tiny"]
    assert result["errors"] == []
    (running.config / "modes/solo.yaml").unlink()
    assert running.rpc("daemon.reload")["removed"] == ["solo"]
    assert pids(running) == before | {"fresh": None}


def test_a_bad_file_leaves_the_last_good_state(running: Daemon):
    before = running.rpc("mode.list"), running.rpc("service.list")
    running.write("services/tiny.yaml", "id: tiny\ndriver: exec\nvram: 3\n")
    running.write("modes/rag.yaml", "{")
    result = running.rpc("daemon.reload")
    assert (result["added"], result["changed"], result["removed"]) == ([], [], [])
    assert {(e["file"], e["line"]) for e in result["errors"]} >= {("services/tiny.yaml", 3), ("modes/rag.yaml", 1)}
    assert (running.rpc("mode.list"), running.rpc("service.list")) == before
    assert running.switch("rag")["kept"] == ["embed", "tiny"]


def test_a_running_service_goes_on_with_what_it_was_started_with(running: Daemon):
    """Its port moves in the file: it is still well, and told to run an old definition."""
    before = pids(running)
    running.service("tiny", 1000, health=OFTEN)
    assert running.rpc("daemon.reload")["changed"] == ["tiny"]
    with pytest.raises(AssertionError, match="not within"):
        until(lambda: running.phases()["tiny"] != "ready", within=1.0)
    assert (pids(running), problems(running)) == (before, [("definition_changed", "tiny")])
    assert running.status()["state"] == "converged"
    assert running.rpc("service.restart", id="tiny", wait=True)["started"] == ["tiny"]
    assert problems(running) == []


def test_a_switch_restarts_what_is_stale_and_nothing_else(running: Daemon):
    before = pids(running)
    running.service("tiny", 1000, health=OFTEN)
    assert running.rpc("daemon.reload")["stale"] == ["tiny"]
    assert {s["id"]: s["stale"] for s in running.rpc("service.list")} == {"embed": False, "tiny": True}
    operation = running.switch("rag")
    assert (operation["stopped"], operation["started"], operation["kept"]) == (["tiny"], ["tiny"], ["embed"])
    after = pids(running)
    assert (after["embed"] == before["embed"], after["tiny"] == before["tiny"]) == (True, False)
    assert not any(s["stale"] for s in running.rpc("service.list"))


def test_what_does_not_reach_the_process_changes_at_once_and_restarts_nothing(running: Daemon):
    before = pids(running)
    spec = json.loads((running.config / "services/tiny.yaml").read_text())
    running.write("services/tiny.yaml", {**spec, "name": "Tiny!", "aliases": ["t"], "priority": 60, "vram_mib": 1001})
    running.process.send_signal(signal.SIGHUP)
    until(lambda: running.rpc("service.get", id="tiny")["name"] == "Tiny!")
    assert running.rpc("service.get", id="t")["vram_mib"] == 1001
    assert running.rpc("daemon.reload", restart_changed=True)["restarted"] == []
    assert running.switch("rag")["kept"] == ["embed", "tiny"]
    assert (pids(running), problems(running)) == (before, [])


@pytest.mark.real
def test_systemd_s_units_keep_their_runs_through_a_reload(sandbox: Sandbox, tmp_path: Path):
    d = Daemon(tmp_path / "d", box=sandbox, nvml=True)
    d.service("embed", 5000)
    d.service("tiny", 1000)
    d.mode("rag", "embed", "tiny")

    def runs() -> dict[str, str]:
        return {id: sandbox.systemctl("show", "-P", "InvocationID", f"gpumod-{id}") for id in ("embed", "tiny")}

    with d:
        d.switch("rag")
        before = runs()
        assert all(before.values())
        d.service("tiny", 1000)
        d.service("fresh", 500)
        assert d.rpc("daemon.reload")["stale"] == ["tiny"]
        d.process.send_signal(signal.SIGHUP)
        until(lambda: d.log.count("reloaded") == 2)
        assert runs() == before
        d.stop()
        d.start()  # it remembers what its services were started with
        until(lambda: d.ready() == {"embed", "tiny"})
        assert [s["id"] for s in d.rpc("service.list") if s["stale"]] == ["tiny"]
        assert d.switch("rag")["started"] == ["tiny"]
        after = runs()
        assert (after["embed"] == before["embed"], after["tiny"] == before["tiny"]) == (True, False)


@pytest.mark.parametrize("earlier", [True, False])
def test_what_runs_with_an_old_definition_is_restarted_if_asked(running: Daemon, earlier: bool):
    before = pids(running)
    running.service("tiny", 1000, health=OFTEN)
    if earlier:
        running.rpc("daemon.reload")
    assert running.rpc("daemon.reload", restart_changed=True)["restarted"] == ["tiny"]
    until(lambda: running.status()["state"] == "converged" and not problems(running))
    after = pids(running)
    assert (after["embed"] == before["embed"], after["tiny"] == before["tiny"]) == (True, False)


def test_a_restart_that_is_refused_is_not_called_one(running: Daemon):
    before = pids(running)
    running.service("tiny", 1000, health=OFTEN)
    running.command("embed", "/nowhere/at/all", vram_mib=5000)
    result = running.rpc("daemon.reload", restart_changed=True)
    assert (result["restarted"], result["stale"]) == (["tiny"], ["embed", "tiny"])
    until(lambda: running.status()["operation"] is None and "tiny" in running.ready())
    assert (pids(running)["embed"], "restart_refused" in running.log) == (before["embed"], True)


def test_a_running_service_whose_definition_goes_is_shown_until_it_is_ended(running: Daemon):
    (running.config / "services/tiny.yaml").unlink()
    running.mode("rag", "embed")
    assert running.rpc("daemon.reload")["removed"] == ["tiny"]
    assert problems(running) == [("orphan_running", "tiny")]
    assert running.rpc("service.get", id="tiny")["pid"]
    with pytest.raises(RpcFailure) as gone:
        running.rpc("service.start", id="tiny")
    assert gone.value.code == "not_found"
    assert running.switch("rag")["stopped"] == ["tiny"]
    assert (running.status()["state"], running.ready()) == ("converged", {"embed"})


def test_a_policy_that_changes_counts_from_then_on(running: Daemon):
    running.write(
        "gpumodd.yaml",
        {
            "devices": {"backend": "simulated", "table": str(running.root / "devices.table")},
            "units": {"backend": "process"},
            "policy": {"vram_reserve_mib": 4000, "ram_reserve_mib": 64},
        },
    )
    assert running.rpc("daemon.reload")["errors"] == []
    assert running.rpc("mode.simulate", id="rag")["devices"][0]["headroom_mib"] == 24564 - 4000 - 6000


def test_check_tells_what_is_wrong_and_takes_nothing_over(running: Daemon):
    assert running.rpc("config.check") == {"problems": []}
    running.write("modes/more.yaml", "id: more\nservices: [embd]\n")
    (problem,) = running.rpc("config.check")["problems"]
    assert (problem["file"], problem["line"], "embed" in problem["hint"]) == ("modes/more.yaml", 2, True)
    assert "more" not in {m["id"] for m in running.rpc("mode.list")}


# -- mode.create and mode.delete ------------------------------------------------------------------------------


def test_a_mode_is_written_as_yaml_and_works_at_once_and_after_a_restart(running: Daemon):
    made = running.rpc("mode.create", id="duo", name="Zwei: #1", description='"both"\nof them', services=["tiny", "e"])
    assert (made["name"], made["description"]) == ("Zwei: #1", '"both"\nof them')
    assert (made["services"], made["vram_mib"], made["active"]) == (["tiny", "embed"], 6000, False)
    running.stop()
    running.start()
    until(lambda: running.status()["state"] == "converged")
    assert running.rpc("mode.get", id="duo") == made
    assert running.switch("duo")["kept"] == ["embed", "tiny"]
    assert running.rpc("mode.delete", id="duo")["id"] == "duo"
    assert not (running.config / "modes/duo.yaml").exists()


REFUSED = [
    ({"id": "rag", "services": []}, "conflict"),
    ({"id": "blank", "services": []}, "conflict"),
    ({"id": "new", "services": ["nope"]}, "invalid_config"),
    ({"id": "new", "services": ["tiny", "tiny"]}, "invalid_config"),
    ({"id": "../new", "services": []}, "invalid_params"),
    ({"id": "New", "services": []}, "invalid_params"),
    ({"id": "new"}, "invalid_params"),
]


def test_a_mode_that_cannot_be_is_refused_and_leaves_no_file(running: Daemon):
    files = {path.name: path.read_text() for path in (running.config / "modes").iterdir()}
    for params, code in REFUSED:
        with pytest.raises(RpcFailure) as refused:
            running.rpc("mode.create", **params)
        assert (params, refused.value.code) == (params, code)
        assert {path.name: path.read_text() for path in (running.config / "modes").iterdir()} == files


def test_while_the_configuration_is_broken_no_mode_is_half_changed(running: Daemon):
    running.write("services/broken.yaml", "id: broken\n")
    for method, params in (("mode.create", {"id": "new", "services": []}), ("mode.delete", {"id": "rag"})):
        with pytest.raises(RpcFailure) as refused:
            running.rpc(method, **params)
        assert refused.value.code == "invalid_config"
        assert "services/broken.yaml" in str(refused.value)
    assert sorted(path.name for path in (running.config / "modes").iterdir()) == ["rag.yaml"]
    assert {m["id"] for m in running.rpc("mode.list")} == {"blank", "rag"}
