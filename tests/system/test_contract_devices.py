"""The contract's words on devices and on how memory is given and given back, sentence by sentence."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpumodd.demo.table import Device
from tests.support.daemon import Daemon, RpcFailure, until

LARGE, SMALL = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"


on_both = pytest.mark.parametrize("two", ["simulated", "nvml"], indirect=True)


@pytest.fixture
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A machine with a large and a small device, read from the table or, `on_both`, by pynvml too; not started yet."""
    d = Daemon(tmp_path / "d", nvml=getattr(request, "param", "") == "nvml")
    d.table.create(Device(LARGE, 0, 24564, name="Large"), Device(SMALL, 1, 4094, name="Small"))
    yield d
    d.table.settle()
    d.__exit__()


def device(d: Daemon, index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = d.rpc("device.list")[index]
    return found


def reason(d: Daemon, service: str, **how: Any) -> dict[str, Any]:
    """The only reason why this service is not started."""
    with pytest.raises(RpcFailure) as refusal:
        d.rpc("service.start", id=service, **how)
    assert refusal.value.code == "refused"
    (only,) = refusal.value.data["details"]["reasons"]
    return dict(only)


# -- figures --------------------------------------------------------------------------------------------------


def test_what_a_device_says_adds_up(two: Daemon):
    two.service("a", 3000)
    two.service("lazy", 4000, "--vram-mib", "1000")
    with two as d:
        d.table.set_foreign(LARGE, 700)
        stranger = hold(d, LARGE, 300)
        d.rpc("service.start", id="a", wait=True)
        d.rpc("service.start", id="lazy", wait=True)
        seen = until(lambda: found if (found := device(d))["foreign_mib"] == 1000 else None)
        assert (seen["uuid"], seen["index"], seen["name"], seen["total_mib"]) == (LARGE, 0, "Large", 24564)
        assert (seen["used_mib"], seen["free_mib"]) == (5000, 24564 - 5000)
        assert seen["committed_mib"] == 3000 + 4000
        owners = {(p["service"], p["used_mib"]) for p in seen["processes"]}
        assert owners == {("a", 3000), ("lazy", 1000), (None, 300)}
        assert (d.status()["problems"], d.status()["state"]) == ([], "converged")
        end(stranger)
        until(lambda: device(d)["foreign_mib"] == 700)


def hold(d: Daemon, uuid: str, mib: int) -> "subprocess.Popen[bytes]":
    """A stranger that holds memory."""
    script = (
        "import sys; from gpumodd.demo.table import DeviceTable;"
        "DeviceTable(sys.argv[1]).hold(sys.argv[2], int(sys.argv[3])); print(flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(d.root / "devices.table"), uuid, str(mib)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    process.communicate()


def test_while_memory_lingers_the_service_is_releasing_and_nothing_is_foreign(two: Daemon):
    two.service("a", 3000, "--linger-ms", "1500")
    with two as d:
        d.rpc("service.start", id="a", wait=True)
        operation = d.rpc("service.stop", id="a")
        until(lambda: d.phases()["a"] == "releasing")
        seen, status = device(d), d.status()
        assert (seen["used_mib"], seen["foreign_mib"], seen["committed_mib"]) == (3000, 0, 3000)
        assert (seen["processes"], status["state"]) == ([], "switching")
        assert d.rpc("operation.wait", id=operation["id"])["seconds"] >= 1.4
        seen = device(d)
        assert (seen["used_mib"], seen["foreign_mib"], seen["committed_mib"]) == (0, 0, 0)
        assert (d.phases()["a"], d.status()["state"]) == ("stopped", "converged")


def test_memory_that_does_not_come_back_fails_the_operation_and_blocks(two: Daemon):
    two.policy["release_timeout_s"] = 0.6
    two.service("a", 20000, "--linger-ms", "60000")
    two.service("b", 20000, devices=[0])
    two.mode("b", "b")
    with two as d:
        d.rpc("service.start", id="a", wait=True)
        with pytest.raises(RpcFailure) as failure:
            d.switch("b", on_failure="keep")
        operation = failure.value.data["details"]["operation"]
        assert (operation["state"], operation["error"]["code"]) == ("failed", "vram_not_released")
        assert "b" not in operation["started"]
        until(lambda: device(d)["foreign_mib"] == 20000)
        assert d.status()["state"] in ("blocked", "degraded")
        assert reason(d, "b")["code"] == "vram_insufficient"
        d.table.settle()
        until(lambda: device(d)["foreign_mib"] == 0)
        assert d.switch("b")["state"] == "succeeded"
        assert d.refusals() == []


# -- placement ------------------------------------------------------------------------------------------------


def test_a_service_goes_where_it_is_pinned(two: Daemon):
    two.service("by_index", 3000, devices=[1])
    two.service("by_uuid", 3000, devices=[LARGE])
    two.service("anywhere", 3000)
    two.service("both", 6000, device_count=2)
    two.mode("m", "by_index", "by_uuid", "anywhere")
    with two as d:
        d.switch("m")
        places = {s["id"]: s["devices"] for s in d.status()["services"]}
        assert places == {"by_index": [SMALL], "by_uuid": [LARGE], "anywhere": [LARGE], "both": []}
        held = {index: {p["service"] for p in device(d, index)["processes"]} for index in (0, 1)}
        assert held == {0: {"by_uuid", "anywhere"}, 1: {"by_index"}}
        d.switch("blank")
        d.rpc("service.start", id="both", wait=True)
        assert d.rpc("service.get", id="both")["devices"] == [LARGE, SMALL]
        assert [device(d, index)["used_mib"] for index in (0, 1)] == [3000, 3000]
        assert d.refusals() == []


def test_a_device_that_does_not_exist_is_unavailable(two: Daemon):
    for id, devices in (("a", [7]), ("b", ["GPU-nope"]), ("c", [0, 7])):
        two.service(id, 100, devices=devices)
    two.service("many", 300, device_count=3)
    with two as d:
        for id, missing in (("a", ["7"]), ("b", ["GPU-nope"]), ("c", ["7"]), ("many", [])):
            told = reason(d, id)
            assert (told["code"], told["details"]["missing"]) == ("device_unavailable", missing)


def test_what_does_not_fit_its_device_is_refused_though_another_has_room(two: Daemon):
    two.service("a", 5000, devices=[1])
    with two as d:
        told = reason(d, "a")
        assert (told["code"], told["device"], told["details"]["total_mib"]) == ("vram_insufficient", SMALL, 4094)


# -- trouble --------------------------------------------------------------------------------------------------


@on_both
def test_a_lost_device_is_a_problem_and_nothing_is_started_on_it(two: Daemon):
    two.service("a", 3000, devices=[0])
    two.service("b", 3000, devices=[1])
    two.service("free", 500)
    two.mode("m", "a", "b")
    with two as d:
        d.switch("m")
        d.table.set_lost(LARGE)
        problem = until(lambda: next((p for p in d.status()["problems"]), None))
        assert (problem["code"], problem["device"]) == ("device_lost", LARGE)
        assert d.status()["state"] == "converged"
        with pytest.raises(RpcFailure) as refusal:
            d.rpc("service.restart", id="a")
        assert refusal.value.data["details"]["reasons"][0]["code"] == "device_unhealthy"
        assert d.rpc("service.start", id="free", wait=True)["state"] == "succeeded"
        assert d.rpc("service.get", id="free")["devices"] == [SMALL]
        assert d.switch("blank")["stopped"] == ["a", "b", "free"]
        assert (d.ready(), d.status()["state"]) == (set(), "converged")
        d.table.set_lost(LARGE, 0)
        until(lambda: not d.status()["problems"], within=20)
        assert d.switch("m")["state"] == "succeeded"


@on_both
def test_a_driver_that_fails_stops_starts_and_nothing_else(two: Daemon):
    two.service("a", 3000)
    two.service("b", 3000)
    with two as d:
        d.rpc("service.start", id="a", wait=True)
        table = d.root / "devices.table"
        aside = table.rename(table.with_suffix(".aside"))
        try:
            until(lambda: [p["code"] for p in d.status()["problems"]] in (["devices_unreadable"], ["device_lost"] * 2))
            assert reason(d, "b")["code"] in ("telemetry_stale", "device_unhealthy")
            assert d.phases()["a"] == "ready"
        finally:
            aside.rename(table)
        until(lambda: not d.status()["problems"], within=20)
        assert d.rpc("service.start", id="b", wait=True)["state"] == "succeeded"


# -- processes ------------------------------------------------------------------------------------------------


@on_both
def test_a_child_that_forks_away_is_the_services_and_is_ended_with_it(two: Daemon):
    two.service("a", 3000, "--fork-away")
    with two as d:
        d.rpc("service.start", id="a", wait=True)
        seen = until(lambda: device(d)["processes"])
        assert [(p["service"], p["used_mib"]) for p in seen] == [("a", 3000)]
        assert seen[0]["pid"] != d.rpc("service.get", id="a")["pid"]
        d.rpc("service.stop", id="a", wait=True)
        assert not Path(f"/proc/{seen[0]['pid']}").exists()
        assert device(d)["used_mib"] == 0


def test_an_engine_that_survives_its_server_is_still_the_services(two: Daemon):
    two.policy["drift"] = "report"
    two.service("a", 3000, "--engine-child", stop_timeout_s=1)
    two.mode("m", "a")
    with two as d:
        d.switch("m")
        os.kill(d.rpc("service.get", id="a")["pid"], signal.SIGKILL)
        until(lambda: d.phases()["a"] not in ("ready", "stopping", "releasing"))
        assert device(d)["used_mib"] == 0
        assert device(d)["foreign_mib"] == 0


def test_a_service_that_ignores_sigterm_is_ended_in_time(two: Daemon):
    two.service("a", 3000, "--ignore-sigterm", stop_timeout_s=0.5)
    with two as d:
        d.rpc("service.start", id="a", wait=True)
        assert 0.5 <= d.rpc("service.stop", id="a", wait=True)["seconds"] < 5
        assert device(d)["used_mib"] == 0


# -- health ---------------------------------------------------------------------------------------------------


@on_both
def test_a_device_that_is_too_hot_gets_nothing_new_and_keeps_what_it_has(two: Daemon):
    two.service("a", 1000, devices=[1])
    two.service("b", 1000, devices=[1])
    two.service("anywhere", 1000)
    cool, hot = ((SMALL, "temperature", 50), (SMALL, "shutdown", 98)), ((SMALL, "temperature", 95),)
    two.table.set_faults(*cool)
    with two as d:
        d.rpc("service.start", id="a", wait=True)
        d.table.set_faults(*hot, *cool[1:])
        why = reason(d, "b")
        assert (why["code"], why["device"]) == ("device_unhealthy", SMALL)
        assert (why["details"]["temperature_c"], why["details"]["shutdown_c"]) == (95, 98)
        status = d.status()
        assert [(p["code"], p["device"]) for p in status["problems"]] == [("device_unhealthy", SMALL)]
        assert (status["state"], d.ready()) == ("converged", {"a"})
        assert (device(d, 1)["temperature_c"], "95 °C" in device(d, 1)["unhealthy"]) == (95, True)
        assert (device(d)["temperature_c"], device(d)["unhealthy"]) == (None, None)
        d.rpc("service.start", id="anywhere", wait=True)
        assert d.rpc("service.get", id="anywhere")["devices"] == [LARGE]
        d.table.set_faults(*cool)
        d.rpc("service.start", id="b", wait=True)  # judged on a fresh look
        assert (d.status()["problems"], d.ready()) == ([], {"a", "b", "anywhere"})


@on_both
def test_a_device_with_damaged_memory_gets_nothing_new(two: Daemon):
    two.service("a", 1000, devices=[1])
    two.table.set_faults((SMALL, "ecc-volatile", 3), (SMALL, "remap-failed", 1))
    with two as d:
        why = reason(d, "a", force=True)
        assert (why["code"], why["details"]["ecc_uncorrected"]) == ("device_unhealthy", 3)
        assert "vendor" in why["hint"]
