"""A real daemon whose driver goes away, hangs, or loses a device in the middle of a switch, and gets it back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpumodd.demo.table import Device
from tests.support.daemon import Daemon, RpcFailure, until
from tests.system.talk import Talk

FIRST, SECOND = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"
on_both = pytest.mark.parametrize("two", ["simulated", "nvml"], indirect=True)
on_nvml = pytest.mark.parametrize("two", ["nvml"], indirect=True)


@pytest.fixture
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """Two devices and two services that fill the first one in turn; not started yet."""
    d = Daemon(tmp_path / "d", nvml=request.param == "nvml")
    d.table.create(Device(FIRST, 0, 24564, name="First"), Device(SECOND, 1, 24564, name="Second"))
    d.policy["release_timeout_s"] = 30
    d.service("a", 20000, "--linger-ms", "60000", devices=[FIRST])
    d.service("b", 20000, devices=[FIRST])
    d.service("beside", 1000, devices=[SECOND])
    d.mode("a", "a", "beside")
    d.mode("b", "b", "beside")
    yield d
    d.table.settle()
    d.__exit__()


def codes(d: Daemon) -> list[str]:
    return [p["code"] for p in d.status()["problems"]]


def pids(d: Daemon) -> dict[str, int | None]:
    return {s["id"]: s["pid"] for s in d.rpc("service.list")}


def switching(d: Daemon) -> dict[str, Any]:
    """A switch from a to b that waits for the memory of a."""
    d.switch("a")
    operation: dict[str, Any] = d.rpc("mode.switch", id="b")
    until(lambda: d.phases()["a"] == "releasing")
    return operation


def arrives(d: Daemon, operation: dict[str, Any]) -> None:
    """With the memory back the switch comes to its end, and nothing was started before there was room."""
    assert d.rpc("operation.get", id=operation["id"])["state"] == "running"
    assert d.phases()["b"] == "stopped"
    d.table.settle()
    done = d.rpc("operation.wait", id=operation["id"])
    assert (done["state"], done["started"], done["kept"]) == ("succeeded", ["b"], ["beside"])
    until(lambda: d.status()["state"] == "converged" and not codes(d))
    assert d.refusals() == []


@on_nvml
def test_a_driver_that_goes_away_in_the_middle_of_a_switch_only_delays_it(two: Daemon):
    with two as d:
        operation = switching(d)
        table = d.root / "devices.table"
        aside = table.rename(table.with_suffix(".aside"))
        try:
            until(lambda: codes(d) == ["devices_unreadable"])
            assert d.phases()["b"] == "stopped"
        finally:
            aside.rename(table)
        until(lambda: codes(d) == [])
        arrives(d, operation)


@on_nvml
def test_a_driver_that_hangs_in_the_middle_of_a_switch_only_delays_it(two: Daemon):
    with two as d:
        operation = switching(d)
        before = pids(d)["beside"]
        d.table.set_faults(("*", "nvmlDeviceGetMemoryInfo", "hang"))
        until(lambda: codes(d) == ["devices_unreadable"])
        assert "has not answered" in d.status()["problems"][0]["message"]
        d.table.set_faults()
        until(lambda: codes(d) == [])
        arrives(d, operation)
        assert pids(d)["beside"] == before


@on_nvml
def test_a_device_that_falls_off_in_the_middle_of_a_switch_is_waited_for(two: Daemon):
    with two as d:
        operation = switching(d)
        d.table.set_lost(FIRST)
        until(lambda: codes(d) == ["device_lost"])
        assert d.phases()["b"] == "stopped"
        d.table.settle()
        d.table.set_lost(FIRST, 0)
        until(lambda: codes(d) == [], within=20)
        done = d.rpc("operation.wait", id=operation["id"])
        assert (done["state"], done["started"]) == ("succeeded", ["b"])
        assert d.refusals() == []


@on_both
def test_who_runs_on_a_device_that_vanishes_is_left_alone_and_known_again_when_it_returns(two: Daemon):
    with two as d:
        d.switch("a")
        before = pids(d)
        with d.table.edit() as table:
            gone, holds = table.devices.pop(FIRST), table.holds
            table.holds = [hold for hold in holds if hold.uuid != FIRST]
            table.devices[SECOND] = table.devices[SECOND]._replace(index=0)  # who is left moves up
        until(lambda: codes(d) == ["device_lost"])
        assert (d.status()["state"], d.ready(), pids(d)) == ("converged", {"a", "beside"}, before)
        with d.table.edit() as table:
            table.devices[FIRST] = gone._replace(index=1)
            table.holds = holds
        until(lambda: codes(d) == [], within=20)
        shown = {v["uuid"]: (v["index"], v["committed_mib"], v["foreign_mib"]) for v in d.rpc("device.list")}
        assert shown == {SECOND: (0, 1000, 0), FIRST: (1, 20000, 0)}
        assert (d.status()["state"], d.ready(), pids(d)) == ("converged", {"a", "beside"}, before)
        assert len(d.rpc("operation.list")) == 1


@on_both
def test_subscribers_hear_of_devices_and_modes(two: Daemon):
    with two as d, Talk(d.socket) as talk:
        talk.call("events.subscribe", topics=["device", "mode"])
        table = d.root / "devices.table"
        aside = table.rename(table.with_suffix(".aside"))
        try:
            gone = talk.event()
            assert (gone["topic"], gone["data"]["device"]) == ("device", None)
            assert (gone["data"]["state"], gone["data"]["code"]) == ("problem", "devices_unreadable")
            assert gone["data"]["message"]
        finally:
            aside.rename(table)
        assert talk.event("device")["data"]["state"] == "over"
        d.switch("a")
        wanted = talk.event()
        assert (wanted["topic"], wanted["data"]) == (
            "mode",
            {"mode": "blank", "desired_mode": "a", "was": {"mode": "blank", "desired_mode": None}},
        )
        assert talk.event()["data"] == {"mode": "a", "desired_mode": "a", "was": {"mode": "blank", "desired_mode": "a"}}
        line = d.ctl("events", "--topics", "mode", "--after", "0", "-n", "1").stdout
        assert line.split()[2:] == ["mode", "blank,", "wanted:", "a"]


@on_both
def test_a_lost_device_is_news_once_and_so_is_its_return(two: Daemon):
    with two as d, Talk(d.socket) as talk:
        talk.call("events.subscribe", topics=["device"])
        d.table.set_lost(SECOND)
        lost = talk.event()["data"]
        assert (lost["device"], lost["index"], lost["name"], lost["state"]) == (SECOND, 1, "Second", "lost")
        d.table.set_lost(SECOND, 0)
        back = talk.event()["data"]
        assert (back["device"], back["state"], back["code"]) == (SECOND, "back", "device_lost")


@on_nvml
def test_a_driver_that_hangs_from_the_first_call_on_is_stale_news_and_no_missing_device(two: Daemon):
    two.table.set_faults(("*", "nvmlInitWithFlags", "hang"))
    with two as d:
        for service in ("a", "b"):
            with pytest.raises(RpcFailure) as refused:
                d.rpc("service.start", id=service)
            (reason,) = refused.value.data["details"]["reasons"]
            assert (reason["code"], "has not answered" in reason["message"]) == ("telemetry_stale", True)
        d.table.set_faults()
        until(lambda: codes(d) == [])
        d.rpc("service.start", id="beside", wait=True)
