"""Simulations for real: with the daemon and without it, what would make it fit, and that following the advice works."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpumodd.demo.table import Device
from tests.support import tiny_gguf
from tests.support.daemon import GPU, Daemon, RpcFailure, free_port


def offline(daemon: Daemon, *words: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """What `gpumodd simulate` answers, and what it says beside it."""
    shown = daemon.run("gpumodd", "simulate", *words, "--json", check=False)
    assert shown.returncode == code, shown.stdout + shown.stderr
    return json.loads(shown.stdout), shown.stderr


def traces(*folders: Path) -> Mapping[Path, tuple[int, int]]:
    """Everything there is, with size and time of the last change."""
    found = [path for folder in folders for path in [folder, *folder.rglob("*")] if path.exists()]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


# -- what would make it fit -----------------------------------------------------------------------------------


def test_a_refusal_says_what_would_make_it_fit(daemon: Daemon):
    with daemon as d:
        with pytest.raises(RpcFailure) as refused:
            d.switch("huge")
        found = refused.value.data["details"]["alternatives"]
        assert [a["message"] for a in found] == ["leave out code", "leave out chat"]
        assert refused.value.data["hint"] == "to make it fit, leave out code"
        assert d.rpc("mode.simulate", id="huge")["alternatives"] == found
        for instead in found:
            assert d.rpc("mode.simulate", id="huge", remove=instead["remove"])["fits"]
        shown = d.ctl("switch", "huge", check=False)
        assert shown.returncode == 4
        assert "hint: to make it fit, leave out code\n      or leave out chat\n" in shown.stderr
        assert (
            "To make it fit, one of:\n  leave out code\n  leave out chat"
            in d.ctl("simulate", "huge", check=False).stdout
        )


def test_who_follows_the_advice_gets_there(daemon: Daemon):
    daemon.service("keeper", 6000, pinned=True)
    daemon.service("cheap", 5000, pinned=True)
    with daemon as d:
        for service in ("keeper", "cheap"):
            d.rpc("service.start", id=service, wait=True)
        with pytest.raises(RpcFailure) as refused:
            d.switch("chat")
        best, *others = refused.value.data["details"]["alternatives"]
        assert {*best["stop"], *(s for other in others for s in other["stop"])} == {"keeper", "cheap"}
        assert best["cost_s"] == min(a["cost_s"] for a in (best, *others) if a["stop"])
        for service in best["stop"]:
            d.rpc("service.stop", id=service, wait=True)
        assert d.switch("chat")["state"] == "succeeded"
        assert d.ready() == {"chat", "tiny", "keeper", "cheap"} - set(best["stop"])


def test_a_move_to_another_device(new_daemon: Callable[[], Daemon]):
    d = new_daemon()
    d.table.create(Device(GPU, 0, 24564), Device("GPU-other", 1, 24564))
    d.service("bound", 16000, devices=[0])
    d.service("free", 10000)
    d.mode("one", "free")
    d.mode("both", "bound", "free")
    with d:
        d.switch("one")
        with pytest.raises(RpcFailure) as refused:
            d.switch("both")
        found = {a["message"]: a for a in refused.value.data["details"]["alternatives"]}
        move = found["move free to device 1 (stop it first, then it starts there)"]
        assert move["devices"] == {"free": ["GPU-other"]}
        assert "move bound to device 1 (`devices:` in services/bound.yaml)" in found
        d.rpc("service.stop", id="free", wait=True)
        d.switch("both")
        assert {s["id"]: s["devices"] for s in d.status()["services"]} == {"bound": [GPU], "free": ["GPU-other"]}


def test_foreign_processes_come_last_and_are_named(daemon: Daemon):
    with daemon as d:
        d.table.hold(GPU, 9000, pid=os.getpid())
        *_, last = d.rpc("mode.simulate", id="chat")["alternatives"]
        assert (last["end"], last["remove"], last["stop"]) == ([os.getpid()], [], [])
        assert last["message"].startswith(f"end the foreign process {os.getpid()} (")
        assert last["message"].endswith("9000 MiB)")
        d.table.free(GPU, pid=os.getpid())
        assert d.rpc("mode.simulate", id="chat")["fits"]


def test_a_simulation_looks_anew(daemon: Daemon):
    with daemon as d:
        d.table.set_foreign(GPU, 9000)
        device = d.rpc("mode.simulate", id="rag")["devices"][0]
        assert (device["foreign_mib"], device["headroom_mib"]) == (9000, 24564 - 512 - 9000 - 6000)


def test_what_stays_on_somebody_elses_behalf_is_told_apart(daemon: Daemon):
    daemon.service("keeper", 3000, pinned=True)
    with daemon as d:
        d.rpc("service.start", id="keeper", wait=True)
        device = d.rpc("mode.simulate", id="rag")["devices"][0]
        assert (device["needed_mib"], device["used_by_others_mib"]) == (9000, 3000)
        assert "3000 MiB of it for services that stay" in d.ctl("simulate", "rag").stdout


def test_where_overcommitting_is_allowed_what_would_fit_is_told_all_the_same(daemon: Daemon):
    daemon.policy["overcommit"] = "warn"
    with daemon as d:
        shown = d.rpc("mode.simulate", id="huge")
        assert (shown["fits"], shown["blocked"]) == (False, [])
        assert [a["message"] for a in shown["alternatives"]] == ["leave out code", "leave out chat"]
        (note,) = shown["notes"]
        assert note.startswith(("cannot start code on ", "cannot start chat on "))
        assert note.endswith("; a switch goes ahead all the same (`overcommit: warn`)")


# -- any set of services --------------------------------------------------------------------------------------


def test_a_list_of_services_with_and_without(daemon: Daemon):
    with daemon as d:
        shown = json.loads(
            d.ctl("simulate", "--services", "chat,embed", "--remove", "embed", "--add", "tiny", "--json").stdout
        )
        assert [s["id"] for s in shown["services"]] == ["chat", "tiny"]
        assert (shown["mode"], shown["devices"][0]["needed_mib"]) == (None, 17000)
        assert not d.rpc("mode.simulate", services=["chat", "code"])["fits"]
        assert d.rpc("mode.simulate", id="blank", add=["embed"])["devices"][0]["needed_mib"] == 5000
        for words in (
            (),
            ("rag", "--services", "chat"),
            ("rag", "--context", "embed"),
            ("rag", "--context", "embed=0"),
        ):
            assert d.ctl("simulate", *words, check=False).returncode == 2
        for words in (("--services", "nope"), ("rag", "--add", "nope"), ("rag", "--context", "nope=1")):
            assert "cannot find service 'nope'" in d.ctl("simulate", *words, check=False).stderr
        assert "not among what is simulated" in d.ctl("simulate", "rag", "--context", "chat=1", check=False).stderr


def test_a_declared_figure_does_not_follow_the_context(daemon: Daemon):
    with daemon as d:
        shown = d.rpc("mode.simulate", id="rag", context={"embed": 4096})
        assert shown["devices"][0]["needed_mib"] == 6000
        assert [s["context"] for s in shown["services"]] == [4096, None]
        assert shown["notes"] == [
            "embed: its memory is declared (`vram_mib: 5000`), so it counts the same with any context"
        ]
        assert "Note: embed: its memory is declared" in d.ctl("simulate", "rag", "--context", "embed=4096").stdout


def test_an_estimated_figure_follows_the_context(daemon: Daemon, tmp_path: Path):
    model = tiny_gguf.write(tmp_path / "tiny.gguf")
    daemon.settings["drivers"] = {"llamacpp": {"command": ["/bin/true"]}}
    llama = {"id": "llama", "driver": "llamacpp", "model": str(model), "context": 1 << 20, "port": free_port()}
    daemon.write("services/llama.yaml", llama)
    daemon.mode("long", "llama", "embed")
    daemon.mode("full", "llama", "chat", "embed")
    with daemon as d:
        large = d.rpc("mode.simulate", id="long")["devices"][0]["needed_mib"] - 5000
        small = d.rpc("mode.simulate", id="long", context={"llama": 4096})
        assert 0 < small["devices"][0]["needed_mib"] - 5000 < large
        assert small["notes"] == []
        # Room for half of it beside the others: less context is what takes nothing away.
        d.table.set_foreign(GPU, 24564 - 512 - 21000 - large // 2)
        best, *_ = d.rpc("mode.simulate", id="full")["alternatives"]
        (context,) = best["context"].values()
        assert best["message"].startswith(f"run llama with a context of {context} instead of 1048576 (")
        assert d.rpc("mode.simulate", id="full", context=best["context"])["fits"]
        shown = d.ctl("simulate", "full", "--context", f"llama={context}")
        assert shown.stdout.startswith("Fits: ")


# -- without a daemon -----------------------------------------------------------------------------------------


def test_without_a_daemon_the_answer_is_the_same(daemon: Daemon):
    daemon.service("keeper", 3000, pinned=True)
    with daemon as d:
        d.rpc("service.start", id="keeper", wait=True)
        d.switch("rag")
        for mode, code in (("rag", 0), ("code", 0), ("huge", 4)):
            answer, remark = offline(d, mode, code=code)
            assert answer == d.rpc("mode.simulate", id=mode)
            assert remark.startswith("gpumodd runs (pid ")
            assert "`gpumodctl simulate` asks it" in remark
        expected = d.rpc("mode.simulate", id="code")
        d.stop()
        before = traces(d.state, d.config)
        answer, remark = offline(d, "code")
        assert (traces(d.state, d.config), remark) == (before, "")
        if d.box is not None:  # its services go on
            assert answer == expected
        else:
            assert [(s["verb"], s["service"]) for s in answer["steps"] if s["verb"] != "wait_ready"] == [
                ("start", "code"),
                ("start", "embed"),
                ("start", "keeper"),  # is pinned and still wanted
            ]


def test_on_a_machine_where_it_never_ran(daemon: Daemon):
    daemon.configure()
    shown = daemon.run("gpumodd", "simulate", "rag")
    assert shown.stdout.startswith("Fits: 6000 / 24564 MiB (headroom: 18052 MiB)")
    assert shown.stderr == ""
    assert not daemon.state.exists()
    answer, _ = offline(daemon, "--services", "chat,code", code=4)
    assert [a["message"] for a in answer["alternatives"]] == ["leave out code", "leave out chat"]
    error, told = offline(daemon, "nope", code=2)
    assert (error["code"], error["data"]["code"]) == (-32004, "not_found")
    assert told.startswith("gpumodd: cannot find mode 'nope'")
    daemon.write("services/broken.yaml", "id: [")
    error, told = offline(daemon, "rag", code=1)
    assert error["data"]["code"] == "invalid_config"
    assert "broken.yaml" in told
    assert "Traceback" not in told
    assert not daemon.state.exists()


def test_a_state_file_that_cannot_be_read_is_told_and_left_alone(daemon: Daemon):
    daemon.configure()
    daemon.state.mkdir()
    state = daemon.state / "state.db"
    state.write_bytes(b"not a database" * 100)
    daemon._own(daemon.state)
    answer, remark = offline(daemon, "rag")
    assert answer["fits"]
    assert "nothing is taken to be desired: cannot use" in remark
    assert str(state) in remark
    assert state.read_bytes() == b"not a database" * 100
