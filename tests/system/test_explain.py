"""What a person reads: services, operations and refusals explain themselves, on the real thing."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.daemon import GPU, Daemon, RpcFailure, until
from tests.system.talk import Talk


@pytest.fixture
def stage(new_daemon: Callable[[], Daemon]) -> Daemon:
    d = new_daemon()
    d.service("base", 1000, "--load-s", "0.5")
    d.service("top", 1000, "--load-s", "0.1", depends_on=["base"])
    d.service("slow", 15000, "--term-s", "0.5", "--linger-ms", "500")
    d.service("code", 15000)
    d.service("broken", 2000, "--fail-at-s", "0.2", "--load-s", "5")
    d.mode("pair", "top")
    d.mode("slow", "slow")
    d.mode("giant", "slow", "code")
    d.mode("broken", "broken")
    return d


def told(d: Daemon, *words: str) -> str:
    """What the client prints, as one line: where it breaks lines is the terminal's business."""
    return " ".join(d.ctl(*words).stdout.split())


def test_a_service_is_explained_in_every_phase_it_goes_through(stage: Daemon):
    with stage as d:
        d.ctl("switch", "pair", "--no-wait")
        until(lambda: d.phases()["base"] == "loading")
        waiting = told(d, "service", "explain", "top")
        assert "top is stopped: no process of it runs. - operation 1: switch pair, asked by gpumodctl (pid " in waiting
        assert "will start it once base is ready" in waiting
        assert "it depends on base, which is loading" in waiting
        assert "gpumodctl operation cancel 1" in waiting
        until(lambda: d.phases()["top"] == "ready")
        ready = told(d, "service", "explain", "base")
        assert "it is wanted by top, which depends on it" in ready
        assert "it holds 1000 MiB on device 0 (1000 declared)" in ready
        assert "asked to start on device 0, 1000 MiB (operation 1: switch pair, asked by gpumodctl (pid " in ready
        assert "loading → ready after " in ready

        d.ctl("switch", "slow")
        assert d.ctl("switch", "giant", check=False).returncode == 4
        assert "refused: cannot start code on Stub GPU (device 0)" in told(d, "service", "explain", "code")
        d.ctl("switch", "pair", "--no-wait")
        until(lambda: d.phases()["slow"] == "releasing")
        assert "its memory is not back: 15000 MiB on device 0" in told(d, "service", "explain", "slow")
        until(lambda: d.status()["state"] == "converged")

        os.kill(d.rpc("service.get", id="base")["pid"], signal.SIGKILL)
        until(lambda: d.phases()["base"] == "backoff")
        crashed = told(d, "service", "explain", "base")
        assert "base ended by itself: killed by signal 9" in crashed
        assert "it is tried again in " in crashed
        until(lambda: d.phases()["base"] == "ready")
        assert "heal base, it was wanted and did not run)" in told(d, "service", "explain", "base")


def test_an_operation_tells_both_directions_with_times_and_causes(stage: Daemon):
    with stage as d:
        d.switch("pair")
        failed = d.ctl("switch", "broken", check=False)
        assert failed.returncode == 5
        assert "Rolled back: started base, top" in failed.stderr
        operation = d.rpc("operation.get", id="2")
        assert {"base", "top"} <= set(operation["stopped"])
        assert (operation["started"], operation["back"]["started"]) == (["broken"], ["base", "top"])
        steps = operation["steps"]
        assert all(s["cause"].startswith("switch broken, asked by gpumodctl") for s in steps if not s["back"])
        assert all(s["cause"].startswith("the way back: broken ended by itself") for s in steps if s["back"])
        done = [s for s in steps if s["state"] == "done"]
        assert all(s["seconds"] is not None and s["seconds"] >= 0 for s in done)
        critical = [s for s in steps if s["critical"]]
        assert critical[0]["verb"] == "inspect" and critical[-1]["verb"] == "wait_ready"
        # The path is a chain without holes: what it is made of adds up to what the whole took, or nearly so.
        assert sum(s["seconds"] for s in critical) >= 0.8 * operation["seconds"]
        with Talk(d.socket) as talk:
            talk.call("events.subscribe", topics=["operation"], after=0)
            turned = talk.event("operation", operation="2", turned_back=True)["data"]
            assert (turned["state"], turned["error"]["code"]) == ("running", "unit_failed")
            assert talk.event("operation", operation="2", state="rolled_back")["data"].get("turned_back") is None
        shown = told(d, "operation", "show", "2")
        assert "State: rolled back" in shown
        assert "The way back: broken ended by itself: exit-code, exit status 1" in shown
        assert "start top wanted, 1000 MiB on device 0; waited until base was ready" in shown


def test_the_status_names_who_holds_the_memory(stage: Daemon):
    stage.table.set_foreign(GPU, 600)
    with stage as d:
        table = str(d.root / "devices.table")
        stranger = d.popen([d.python, "-m", "gpumodd.demo.model_server", "--table", table, "--vram-mib", "700"])
        try:
            d.ctl("switch", "slow")
            until(lambda: d.status()["devices"][0]["foreign_mib"] == 1300)
            device = d.status()["devices"][0]
            assert device["unlisted_mib"] == 600
            assert [(h["service"], h["used_mib"], h["committed_mib"]) for h in device["holdings"]] == [
                ("slow", 15000, 15000)
            ]
            (foreign,) = [p for p in device["processes"] if p["service"] is None]
            assert (foreign["pid"], foreign["used_mib"], foreign["name"][:6]) == (stranger.pid, 700, "python")
            shown = told(d, "status")
            assert "slow 15000 MiB" in shown
            assert f"(pid {stranger.pid}) 700 MiB, 600 MiB that no listed process holds" in shown
            assert f"left for services: {24564 - 512 - 1300 - 15000} MiB (reserve 512)" in shown
            d.ctl("switch", "pair", "--no-wait")
            until(lambda: d.phases()["slow"] == "releasing")
            assert "being released: slow 15000 MiB" in told(d, "status")
            assert "Next: `gpumodctl operation show 2`" in told(d, "status")
        finally:
            stranger.terminate()
            stranger.wait(10)


def test_a_host_name_is_this_machine_or_refused(stage: Daemon):
    stage.service("six", 1000, "--host", "::1", host="localhost")
    stage.service("lost", 1000, host="no-such-host.invalid")
    stage.service("odd", 1000, host="a" * 64)
    with stage as d:
        d.rpc("service.start", id="six", wait=True)
        assert d.phases()["six"] == "ready"
        for service in ("lost", "odd"):
            with pytest.raises(RpcFailure) as refused:
                d.rpc("service.start", id=service)
            (reason,) = refused.value.data["details"]["reasons"]
            assert (reason["code"], "Errno" in reason["message"]) == ("host_unknown", False)
            assert reason["message"].startswith(f"cannot start {service}: cannot resolve the host name ")


def test_a_machine_without_a_driver_says_so_once(tmp_path):
    d = Daemon(tmp_path / "d")
    d.settings = {"devices": {"backend": "amdgpu"}}  # what no machine of this version has
    d.service("base", 1000)
    with d:
        until(lambda: "code=no_devices" in d.log)
        d.rpc("service.start", id="base", wait=True)
        assert "no_devices" in told(d, "status")
        d.stop()
    assert d.log.count("no GPU is watched") == 1
