"""The contract's words on drift and on what survives a daemon, sentence by sentence, on both backends."""

import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import GPU, Daemon, RpcFailure, until
from tests.support.sandbox import Sandbox

real = pytest.mark.real


def problems(d: Daemon) -> list[tuple[str, str | None]]:
    return [(p["code"], p["service"]) for p in d.status()["problems"]]


def standing(d: Daemon) -> tuple[str | None, str | None, str]:
    status = d.status()
    return status["mode"], status["desired_mode"], status["state"]


def settled(d: Daemon) -> str:
    """The state once what was found running has answered."""
    until(lambda: not {"loading", "starting"} & set(d.phases().values()))
    return str(d.status()["state"])


def kill(d: Daemon, service: str) -> None:
    os.kill(d.rpc("service.get", id=service)["pid"], signal.SIGKILL)


@pytest.fixture
def systemd(sandbox: Sandbox, tmp_path: Path) -> "Callable[[], Daemon]":
    """Makes a daemon in the sandbox with a mode of two services; not started yet."""
    made: list[Daemon] = []

    def make() -> Daemon:
        d = Daemon(tmp_path / f"d{len(made)}", box=sandbox, nvml=True)
        made.append(d)
        for id, mib in (("embed", 5000), ("tiny", 1000), ("code", 15000)):
            d.service(id, mib)
        d.mode("rag", "embed", "tiny")
        return d

    yield make  # type: ignore[misc]
    for d in made:
        d.__exit__()


# -- crashes --------------------------------------------------------------------------------------------------


def test_a_crash_is_reported_and_with_heal_mended(daemon: Daemon):
    with daemon as d:
        d.switch("rag")
        kill(d, "embed")
        heal = until(lambda: next((o for o in d.rpc("operation.list") if o["kind"] == "heal"), None))
        assert d.rpc("operation.wait", id=heal["id"])["state"] == "succeeded"
        assert (standing(d), d.ready()) == (("rag", "rag", "converged"), {"embed", "tiny"})


def test_an_exit_0_that_nobody_asked_for_is_a_crash(daemon: Daemon):
    daemon.policy["drift"] = "report"
    daemon.service("tiny", 1000, "--fail-at-s", "0.6", "--exit-code", "0")
    with daemon as d:
        d.switch("rag")
        until(lambda: d.phases()["tiny"] not in ("ready", "stopping", "releasing"))
        assert problems(d) == [("unit_failed", "tiny")]
        assert standing(d) == ("rag", "rag", "degraded")


def test_a_service_that_crashes_again_and_again_is_left_alone_longer_each_time(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    d.service("tiny", 1000, "--fail-at-s", "0.3")
    d.mode("rag", "tiny")
    with d:
        d.switch("rag")
        pauses: list[float] = []
        for _ in range(2):
            until(lambda: d.phases()["tiny"] == "backoff")
            began = time.monotonic()
            assert "tried again in" in d.rpc("service.explain", id="tiny")["why"]
            assert (d.status()["state"], problems(d)) == ("degraded", [("unit_failed", "tiny")])
            until(lambda: d.phases()["tiny"] != "backoff")
            pauses.append(time.monotonic() - began)
        assert pauses[1] > 1.3 * pauses[0] > 0.6
        until(lambda: d.phases()["tiny"] == "backoff")
        d.service("tiny", 1000)
        d.rpc("daemon.reload")
        assert d.switch("rag")["started"] == ["tiny"]
        assert (standing(d), problems(d)) == (("rag", "rag", "converged"), [])


def test_a_repair_that_has_no_room_waits_and_says_so(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    d.service("a", 5000)
    d.mode("m", "a")
    with d:
        d.switch("m")
        kill(d, "a")
        until(lambda: d.phases()["a"] == "backoff")
        d.table.set_foreign(GPU, 22000)
        until(lambda: d.status()["state"] == "blocked")
        assert standing(d) == ("m", "m", "blocked")
        d.table.set_foreign(GPU, 0)
        until(lambda: standing(d) == ("m", "m", "converged"), within=20)
        assert d.refusals() == []


def test_a_service_that_answers_badly_is_degraded_until_it_recovers_or_is_restarted(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    port = d.service("a", 1000, health={"interval_s": 0.1, "failures": 2, "recoveries": 2})
    d.mode("m", "a")

    def answer(health: str) -> None:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/demo/health?{health}", data=b"").close()

    with d:
        d.switch("m")
        for _ in range(2):
            answer("error")
            until(lambda: d.phases()["a"] == "degraded")
            assert (standing(d), problems(d)) == (("m", "m", "degraded"), [("unhealthy", "a")])
            answer("ok")
            until(lambda: d.phases()["a"] == "ready")
            assert (standing(d), problems(d)) == (("m", "m", "converged"), [])
        answer("error")
        until(lambda: d.phases()["a"] == "degraded")
        again = d.switch("m")
        assert (again["stopped"], again["started"], again["kept"]) == (["a"], ["a"], [])
        assert standing(d) == ("m", "m", "converged")


# -- what people do without gpumodd ---------------------------------------------------------------------------


@real
def test_a_stop_outside_is_told_and_never_fought_and_survives_the_daemon(systemd: "Callable[[], Daemon]"):
    with systemd() as d:
        assert d.box is not None
        d.switch("rag")
        d.box.systemctl("stop", "gpumod-tiny")
        until(lambda: d.phases()["tiny"] == "stopped")
        for again in (None, signal.SIGTERM, signal.SIGKILL):
            if again is not None:
                d.stop(again)
                d.start()
            assert (settled(d), problems(d)) == ("degraded", [("stopped_outside", "tiny")])
            assert d.phases()["tiny"] == "stopped"
        assert d.switch("rag")["started"] == ["tiny"]
        assert (d.status()["state"], problems(d)) == ("converged", [])


@real
def test_a_start_outside_is_taken_for_what_it_is(systemd: "Callable[[], Daemon]"):
    with systemd() as d:
        assert d.box is not None
        d.switch("rag")
        d.box.systemctl("stop", "gpumod-tiny")
        until(lambda: d.phases()["tiny"] == "stopped")
        d.box.systemctl("start", "gpumod-tiny")  # wanted: all is well again
        until(lambda: standing(d) == ("rag", "rag", "converged"))
        d.box.systemctl("start", "gpumod-code")  # not wanted by anybody
        until(lambda: d.phases()["code"] == "ready")
        assert (d.status()["state"], problems(d)) == ("degraded", [("orphan_running", "code")])
        assert d.switch("rag")["stopped"] == ["code"]
        assert d.status()["state"] == "converged"


@real
def test_a_unit_without_a_definition_is_shown_and_blank_ends_it(systemd: "Callable[[], Daemon]"):
    with systemd() as d:
        d.switch("rag")
        (d.config / "services/tiny.yaml").unlink()
        d.mode("rag", "embed")
        assert d.rpc("daemon.reload")["removed"] == ["tiny"]
        assert problems(d) == [("orphan_running", "tiny")]
        d.stop()
        d.start()
        assert (settled(d), problems(d)) == ("degraded", [("orphan_running", "tiny")])
        assert d.switch("blank")["stopped"] == ["embed", "tiny"]
        assert (d.used_mib(), d.status()["state"]) == (0, "converged")


@real
def test_generated_units_are_in_their_slice_and_nothing_else_has_such_a_name(systemd: "Callable[[], Daemon]"):
    with systemd() as d:
        assert d.box is not None
        d.switch("rag")
        assert d.box.systemctl("show", "-P", "Slice", "gpumod-embed.service") == "gpumod.slice"
        units = {path.name for path in d.box.unit_dir.glob("gpumod-*")}
        assert units == {f"gpumod-{id}.service" for id in ("code", "embed", "tiny")}


@real
def test_services_of_systemd_keep_running_when_the_daemon_ends(systemd: "Callable[[], Daemon]"):
    with systemd() as d:
        assert d.box is not None
        assert d.process is not None
        d.switch("rag")
        assert d.rpc("daemon.shutdown") == {"services_end": False}
        assert d.process.wait(10) == 0
        assert d.box.systemctl("is-active", "gpumod-embed", "gpumod-tiny") == "active\nactive"
        d.start()
        assert (settled(d), d.ready(), d.used_mib()) == ("converged", {"embed", "tiny"}, 6000)
        assert len(d.rpc("operation.list")) == 1  # nothing was done to them


@real
def test_a_bus_that_goes_away_and_comes_back_costs_nothing(systemd: "Callable[[], Daemon]"):
    with systemd() as d:
        assert d.box is not None
        d.switch("rag")
        pids = {s["id"]: s["pid"] for s in d.status()["services"]}
        os.kill(int(d.box.systemctl("show", "-P", "MainPID", "dbus.service")), signal.SIGKILL)
        until(lambda: "units_lost" in d.log)
        until(lambda: d.status()["state"] == "converged")
        assert {s["id"]: s["pid"] for s in d.status()["services"]} == pids
        assert d.switch("blank")["stopped"] == ["embed", "tiny"]
        assert "Traceback" not in d.log


@real
def test_a_reload_while_the_bus_is_away_fails_and_works_when_it_is_back(systemd: "Callable[[], Daemon]"):
    with systemd() as d:
        assert d.box is not None
        d.rpc("service.start", id="tiny", wait=True)
        lost = d.log.count("units_lost")
        d.box.systemctl("stop", "dbus.socket", "dbus.service")
        try:
            until(lambda: d.log.count("units_lost") > lost)
            assert ("units_unreachable", None) in problems(d)
            port = d.service("tiny", 1000)
            with pytest.raises(RpcFailure):
                d.rpc("daemon.reload")
            assert d.rpc("service.get", id="tiny")["port"] != port
        finally:
            start_bus(d.box)
        until(lambda: not problems(d))
        assert d.rpc("daemon.reload")["changed"] == ["tiny"]
        assert d.rpc("service.restart", id="tiny", wait=True)["started"] == ["tiny"]
        assert d.rpc("service.get", id="tiny")["port"] == port


def start_bus(box: Sandbox) -> None:
    """systemctl reaches the manager without a bus."""
    box.systemctl("start", "dbus.socket")


# -- what survives a daemon -----------------------------------------------------------------------------------


def test_manual_starts_and_stops_survive_a_restart(daemon: Daemon):
    with daemon as d:
        d.switch("rag")
        d.rpc("service.stop", id="tiny", wait=True)
        d.rpc("service.start", id="code", wait=True)
        before = {s["id"]: s["pid"] for s in d.status()["services"]}
        for how in (signal.SIGTERM, signal.SIGKILL):
            d.stop(how)
            d.start()
            until(lambda: standing(d) == ("rag", "rag", "converged"))
            assert d.ready() == {"code", "embed"}
            after = {s["id"]: s["pid"] for s in d.status()["services"]}
            assert (after == before) == (d.box is not None)  # systemd's services have never noticed
            assert d.used_mib() == 20000


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_services_of_the_process_backend_end_with_the_daemon(tmp_path: Path, how: signal.Signals):
    d = Daemon(tmp_path / "d")
    d.service("a", 1000, "--engine-child", stop_timeout_s=1)
    d.service("b", 1000, "--ignore-sigterm", stop_timeout_s=1)
    d.mode("m", "a", "b")
    with d:
        d.switch("m")
        pids = [p["pid"] for p in d.rpc("device.list")[0]["processes"]] + [s["pid"] for s in d.rpc("service.list")]
        d.settings["policy"] = {"restore_mode_at_start": False}
        d.stop(how)
        d.start()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert (d.used_mib(), d.ready()) == (0, set())
        assert standing(d) == ("m", "m", "degraded")


def test_leftovers_are_known_by_more_than_their_pid(tmp_path: Path):
    """A record that names somebody else's process by now ends nobody."""
    d = Daemon(tmp_path / "d")
    d.service("a", 1000)
    with d:
        d.rpc("service.start", id="a", wait=True)
        record = next((d.state / "processes").glob("a*.run"))
        stolen = record.read_text().replace(str(d.rpc("service.get", id="a")["pid"]), str(os.getpid()))
        d.rpc("service.stop", id="a", wait=True)
        d.stop()
        record.write_text(stolen)
        d.start()
        assert Path(f"/proc/{os.getpid()}").exists()
        assert not record.exists()


def test_an_operation_that_was_open_at_a_crash_goes_on_under_its_own_id(daemon: Daemon):
    daemon.service("slow", 3000, "--load-s", "1.2")
    daemon.mode("slow", "slow")
    with daemon as d:
        d.switch("rag")
        operation = d.rpc("mode.switch", id="slow")
        until(lambda: d.phases()["slow"] == "loading")
        d.stop(signal.SIGKILL)
        d.start()
        first = d.status()
        assert (first["state"], first["operation"]["id"]) == ("switching", operation["id"])
        assert d.rpc("operation.wait", id=operation["id"])["state"] == "succeeded"
        assert (standing(d), d.refusals()) == (("slow", "slow", "converged"), [])


def test_a_mode_is_restored_at_the_start_unless_told_otherwise(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    d.service("a", 1000)
    d.mode("m", "a")
    with d:
        d.switch("m")
        d.stop()
        d.start()
        restore = until(lambda: next((o for o in d.rpc("operation.list") if o["kind"] == "restore"), None))
        assert d.rpc("operation.wait", id=restore["id"])["started"] == ["a"]
        d.policy["restore_mode_at_start"] = False
        d.stop()
        d.start()
        assert standing(d) == ("m", "m", "degraded")
        assert d.ready() == set()
        assert d.switch("m")["started"] == ["a"]


def test_a_failed_unit_is_told_with_its_last_words(daemon: Daemon):
    daemon.service("tiny", 1000, "--fail-at-s", "0.3", "--load-s", "9", "--last-words", "no kernel image")
    with daemon as d:
        with pytest.raises(RpcFailure) as failure:
            d.rpc("service.start", id="tiny", wait=True)
        assert failure.value.number == -32011
        operation = failure.value.data["details"]["operation"]
        assert any("no kernel image" in line for line in operation["error"]["log"])
        assert any("no kernel image" in line for line in d.rpc("service.logs", id="tiny")["lines"])
