"""Switching modes for real: the daemon, its units, its devices and its client."""

import json
import os
import signal
import time

import pytest

from tests.support.daemon import GPU, Daemon, RpcFailure, free_port, until


def test_modes_follow_each_other_and_the_truth_is_told(daemon: Daemon):
    with daemon as d:
        assert d.status()["mode"] == "blank"
        first = d.switch("chat")
        assert (first["state"], first["started"], first["stopped"]) == ("succeeded", ["chat", "tiny"], [])
        assert d.used_mib() == 17000
        second = d.switch("code")
        assert (second["started"], second["stopped"], second["kept"]) == (["code", "embed"], ["chat", "tiny"], [])
        third = d.switch("rag")
        assert (third["started"], third["stopped"], third["kept"]) == (["tiny"], ["code"], ["embed"])
        status = d.status()
        assert (status["mode"], status["desired_mode"], status["state"]) == ("rag", "rag", "converged")
        assert d.ready() == {"embed", "tiny"}
        device = status["devices"][0]
        assert (device["used_mib"], device["foreign_mib"], device["committed_mib"]) == (6000, 0, 6000)
        assert {p["service"] for p in device["processes"]} == {"embed", "tiny"}
        assert d.switch("rag")["kept"] == ["embed", "tiny"]
        d.switch("blank")
        assert (d.used_mib(), d.status()["mode"], d.refusals()) == (0, "blank", [])


def test_a_switch_that_cannot_fit_is_refused_with_numbers(daemon: Daemon):
    with daemon as d:
        d.switch("rag")
        with pytest.raises(RpcFailure) as refused:
            d.switch("huge")
        assert (refused.value.number, refused.value.code) == (-32010, "refused")
        reason = refused.value.data["details"]["reasons"][0]
        assert reason["code"] == "vram_insufficient"
        assert reason["details"]["total_mib"] == 24564
        assert d.ready() == {"embed", "tiny"}
        assert [op["target"] for op in d.rpc("operation.list")] == ["rag"]


def test_simulate_says_what_the_switch_then_does(daemon: Daemon):
    with daemon as d:
        d.switch("chat")
        simulation = d.rpc("mode.simulate", id="code")
        assert simulation["fits"]
        assert simulation["devices"][0]["headroom_mib"] == 24564 - 512 - 20000
        planned = {(s["verb"], s["service"]) for s in simulation["steps"]}
        operation = d.switch("code")
        assert {(s["verb"], s["service"]) for s in operation["steps"] if s["verb"] != "inspect"} == planned
        assert not d.rpc("mode.simulate", id="huge")["fits"]


def test_foreign_memory_counts_against_what_fits(daemon: Daemon):
    daemon.table.set_foreign(GPU, 8000)
    with daemon as d:
        with pytest.raises(RpcFailure) as refused:
            d.switch("chat")
        assert refused.value.data["details"]["reasons"][0]["details"]["foreign_mib"] == 8000
        assert d.status()["devices"][0]["foreign_mib"] == 8000
        d.switch("rag")
        assert d.status()["state"] == "converged"


def test_a_start_waits_for_memory_that_lingers(daemon: Daemon):
    daemon.service("chat", 16000, "--linger-ms", "700")
    with daemon as d:
        d.switch("chat")
        operation = d.switch("code")
        steps = {(s["verb"], s["service"]): s for s in operation["steps"]}
        assert steps["start", "code"]["started_at"] >= steps["wait_release", "chat"]["finished_at"]
        assert steps["start", "embed"]["started_at"] < steps["wait_release", "chat"]["finished_at"]
        assert operation["seconds"] >= 0.7
        assert d.refusals() == []


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (("--fail-at-s", "0.3", "--load-s", "5", "--last-words", "cannot open shared object"), "unit_failed"),
        (("--fail-at-s", "0", "--exit-code", "0"), "unit_failed"),
        (("--hang-health",), "health_timeout"),
        (("--error-health",), "health_timeout"),
        (("--redirect-health",), "health_timeout"),
        (("--endless-health",), None),
        (("--oom", "--load-s", "0.2"), "unit_failed"),
    ],
)
def test_a_member_that_fails_brings_the_machine_back(daemon: Daemon, fault: tuple[str, ...], code: str | None):
    daemon.service("bad", 2000, *fault, startup_timeout_s=2, health={"timeout_s": 0.5})
    daemon.mode("bad", "embed", "bad")
    with daemon as d:
        d.switch("chat")
        if code is None:  # a 200 with an endless body is a 200
            assert d.switch("bad")["state"] == "succeeded"
            return
        with pytest.raises(RpcFailure) as failed:
            d.switch("bad")
        operation = failed.value.data["details"]["operation"]
        assert (failed.value.number, operation["state"], operation["error"]["code"]) == (-32011, "rolled_back", code)
        assert (operation["started"], operation["back"]["started"]) == (["bad", "embed"], ["chat", "tiny"])
        assert set(operation["stopped"]) >= {"chat", "tiny"}
        assert set(operation["back"]["stopped"]) >= {"embed"}
        if "--last-words" in fault:
            assert any("cannot open shared object" in line for line in operation["error"]["log"])
        assert d.ready() == {"chat", "tiny"}
        status = d.status()
        assert (status["mode"], status["state"]) == ("chat", "converged")


def test_keep_and_stop_policies(daemon: Daemon):
    daemon.service("bad", 2000, "--fail-at-s", "0.2", "--load-s", "5")
    daemon.mode("bad", "embed", "bad")
    with daemon as d:
        d.switch("chat")
        with pytest.raises(RpcFailure):
            d.switch("bad", on_failure="keep")
        assert d.ready() == {"embed"}
        assert (d.status()["mode"], d.status()["state"]) == (None, "degraded")
        d.switch("chat")
        with pytest.raises(RpcFailure):
            d.switch("bad", on_failure="stop")
        assert d.ready() == set()
        assert d.status()["mode"] is None


def test_blank_ends_what_ignores_sigterm_and_what_never_gets_ready(daemon: Daemon):
    daemon.service("stubborn", 2000, "--ignore-sigterm", stop_timeout_s=1)
    daemon.service("hung", 2000, "--hang-health")
    daemon.mode("odd", "stubborn", "hung")
    with daemon as d:
        d.rpc("mode.switch", id="odd")
        until(lambda: d.phases()["stubborn"] == "ready" and d.phases()["hung"] == "loading")
        operation = d.switch("blank")
        assert operation["stopped"] == ["hung", "stubborn"]
        assert d.used_mib() == 0
        assert d.status()["state"] == "converged"


def test_a_port_taken_by_a_stranger_is_refused(daemon: Daemon):
    import socket

    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        daemon.service("late", 1000, port=stranger.getsockname()[1])
        daemon.mode("late", "late")
        with daemon as d, pytest.raises(RpcFailure) as refused:
            d.switch("late")
        reason = refused.value.data["details"]["reasons"][0]
        assert reason["code"] == "port_conflict"
        assert str(os.getpid()) in reason["message"]


def test_a_stranger_that_answers_does_not_make_a_service_ready(daemon: Daemon):
    port = free_port()
    daemon.command("silent", "sleep", "60", port=port, vram_mib=0, startup_timeout_s=2)
    daemon.mode("silent", "silent")
    with daemon as d:
        answer = d.rpc("mode.switch", id="silent")
        until(lambda: d.phases()["silent"] == "loading")
        stranger = d.popen([d.python, "-m", "gpumodd.demo.model_server", "--port", str(port)])
        try:
            ended = d.rpc("operation.wait", id=answer["id"])
        finally:
            stranger.kill()
            stranger.wait()
        assert ended["state"] == "rolled_back"
        assert ended["error"]["code"] == "port_conflict"


def test_two_services_on_one_port_take_turns(daemon: Daemon):
    port = free_port()
    daemon.service("one", 1000, port=port)
    daemon.service("two", 1000, port=port)
    daemon.mode("one", "one")
    daemon.mode("two", "two")
    with daemon as d:
        for mode in ("one", "two", "one"):
            d.switch(mode)
            assert d.ready() == {mode}


def test_dependencies_come_first_and_leave_last(daemon: Daemon):
    daemon.service("db", 100)
    daemon.service("api", 100, depends_on=["db"])
    daemon.mode("app", "api")
    with daemon as d:
        up = {(s["verb"], s["service"]): s for s in d.switch("app")["steps"]}
        assert up["start", "api"]["started_at"] >= up["wait_ready", "db"]["finished_at"]
        down = {(s["verb"], s["service"]): s for s in d.switch("blank")["steps"]}
        assert down["stop", "db"]["started_at"] >= down["stop", "api"]["finished_at"]


def test_a_crash_is_healed_and_a_switch_repairs_what_is_not(daemon: Daemon):
    daemon.policy["drift"] = "heal"
    with daemon as d:
        d.switch("rag")
        pid = next(s["pid"] for s in d.status()["services"] if s["id"] == "embed")
        os.kill(pid, signal.SIGKILL)
        until(lambda: d.phases()["embed"] != "ready")
        until(lambda: d.status()["state"] == "converged")
        assert d.rpc("operation.list")[0]["kind"] == "heal"
        assert d.ready() == {"embed", "tiny"}


def test_without_healing_the_same_switch_says_what_it_started(daemon: Daemon):
    daemon.policy["drift"] = "report"
    with daemon as d:
        d.switch("rag")
        pid = next(s["pid"] for s in d.status()["services"] if s["id"] == "embed")
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: d.status()["problems"])[0]["code"] == "unit_failed"
        assert d.status()["state"] == "degraded"
        again = d.switch("rag")
        assert (again["started"], again["kept"]) == (["embed"], ["tiny"])


def test_service_verbs(daemon: Daemon):
    with daemon as d:
        d.switch("rag")
        assert d.rpc("service.start", id="code", wait=True)["started"] == ["code"]
        assert d.status()["state"] == "converged"
        before = d.rpc("service.get", id="code")["pid"]
        assert d.rpc("service.restart", id="code", wait=True)["started"] == ["code"]
        assert d.rpc("service.get", id="code")["pid"] != before
        d.rpc("service.stop", id="code", wait=True)
        assert d.rpc("service.get", id="code")["phase"] == "stopped"
        assert any("ready" in line for line in d.rpc("service.logs", id="embed")["lines"])
        told = d.rpc("service.explain", id="embed")
        assert told["phase"] == "ready" and told["story"]
        with pytest.raises(RpcFailure) as unknown:
            d.rpc("service.start", id="embd")
        assert (unknown.value.code, "did you mean embed" in unknown.value.data["hint"]) == ("not_found", True)


def test_a_second_switch_supersedes_and_the_same_one_joins(daemon: Daemon):
    daemon.service("slow", 3000, "--load-s", "20")
    daemon.mode("slow", "slow")
    with daemon as d:
        first = d.rpc("mode.switch", id="slow")
        assert d.rpc("mode.switch", id="slow")["id"] == first["id"]
        until(lambda: d.phases()["slow"] == "loading")
        assert d.switch("rag")["stopped"] == ["slow"]
        old = d.rpc("operation.get", id=first["id"])
        assert (old["state"], old["error"]["code"]) == ("cancelled", "conflict")


def test_cancel_goes_back(daemon: Daemon):
    daemon.service("slow", 3000, "--load-s", "20")
    daemon.mode("slow", "slow")
    with daemon as d:
        d.switch("rag")
        operation = d.rpc("mode.switch", id="slow")
        d.rpc("operation.cancel", id=operation["id"])
        assert d.rpc("operation.wait", id=operation["id"])["state"] == "cancelled"
        assert d.ready() == {"embed", "tiny"}
        assert d.status()["mode"] == "rag"


@pytest.mark.parametrize("delay_s", [0.0, 0.15, 0.4])
def test_a_killed_daemon_comes_back_and_finishes(daemon: Daemon, delay_s: float):
    daemon.service("slow", 3000, "--load-s", "1")
    daemon.mode("slow", "slow", "tiny")
    with daemon as d:
        d.switch("chat")
        operation = d.rpc("mode.switch", id="slow")
        deadline = time.monotonic() + delay_s
        until(lambda: time.monotonic() >= deadline)
        d.stop(signal.SIGKILL)
        d.start()
        ended = d.rpc("operation.wait", id=operation["id"])
        assert ended["state"] == "succeeded", ended["error"]
        until(lambda: d.status()["state"] == "converged")
        assert d.ready() == {"slow", "tiny"}
        assert d.used_mib() == 4000
        assert d.refusals() == []


def test_sigterm_in_the_middle_of_a_switch(daemon: Daemon):
    daemon.service("slow", 3000, "--load-s", "0.6")
    daemon.mode("slow", "slow")
    with daemon as d:
        operation = d.rpc("mode.switch", id="slow")
        assert d.stop() == 0
        assert "Traceback" not in d.log
        d.start()
        assert d.rpc("operation.wait", id=operation["id"])["state"] == "succeeded"
        assert d.ready() == {"slow"}


def test_sighup_and_reload_touch_only_what_changed(daemon: Daemon):
    with daemon as d:
        d.switch("rag")
        pids = {s["id"]: s["pid"] for s in d.status()["services"] if s["pid"]}
        d.mode("extra", "tiny")
        assert d.process is not None
        d.process.send_signal(signal.SIGHUP)
        until(lambda: "extra" in {m["id"] for m in d.rpc("mode.list")})
        d.service("fresh", 500)
        result = d.rpc("daemon.reload")
        assert (result["added"], result["removed"], result["errors"]) == (["fresh"], [], [])
        d.write("services/fresh.yaml", "id: fresh\ndriver: exce\n")
        broken = d.rpc("daemon.reload")
        assert (broken["errors"][0]["line"], broken["errors"][0]["hint"]) == (2, "did you mean exec?")
        assert {s["id"]: s["pid"] for s in d.status()["services"] if s["pid"]} == pids
        assert "fresh" in {s["id"] for s in d.rpc("service.list")}


def test_a_second_daemon_names_the_first(daemon: Daemon):
    import subprocess

    with daemon as d:
        assert d.process is not None
        second = d.popen([d.python, "-m", "gpumodd", "run"], stderr=subprocess.PIPE, text=True)
        _, err = second.communicate(timeout=20)
        assert second.returncode == 1
        assert str(d.process.pid) in err


def test_modes_are_made_and_removed_over_the_socket(daemon: Daemon):
    with daemon as d:
        made = d.rpc("mode.create", id="duo", name="Duo", description="two: of them", services=["embed", "tiny"])
        assert (made["vram_mib"], made["services"]) == (6000, ["embed", "tiny"])
        assert d.switch("duo")["started"] == ["embed", "tiny"]
        with pytest.raises(RpcFailure):
            d.rpc("mode.create", id="duo", services=[])
        with pytest.raises(RpcFailure) as bad:
            d.rpc("mode.create", id="bad", services=["nope"])
        assert bad.value.code == "invalid_config"
        assert not (d.config / "modes/bad.yaml").exists()
        d.rpc("mode.delete", id="duo")
        assert "duo" not in {m["id"] for m in d.rpc("mode.list")}


def test_the_client_shows_it(daemon: Daemon):
    with daemon as d:
        out = d.ctl("switch", "rag").stdout
        assert "Started" in out and "embed" in out
        status = json.loads(d.ctl("status", "--json").stdout)
        assert status["mode"] == "rag"
        assert d.ctl("simulate", "rag").stdout.startswith("Fits: 6000 / 24564 MiB (headroom: 18052 MiB)")
        assert d.ctl("switch", "huge", check=False).returncode == 4
        assert d.ctl("switch", "nope", check=False).returncode == 2
        assert "Traceback" not in d.log
