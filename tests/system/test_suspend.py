"""A real daemon on a machine that sleeps: its boot clock jumps, its processes have noticed nothing."""

from pathlib import Path

import pytest

from tests.support.daemon import GPU, Daemon, until
from tests.support.suspend import Lid

NIGHT_S = 8 * 3600


@pytest.fixture
def lid(tmp_path: Path) -> Lid:
    return Lid(tmp_path, slept_before_s=3 * 24 * 3600)  # what was slept before the daemon started is no sleep of its


@pytest.fixture
def laptop(tmp_path: Path, lid: Lid) -> Daemon:
    """A daemon with two services and the modes one and two; not started yet."""
    d = Daemon(tmp_path / "d")
    d.extra_env |= lid.environment
    d.service("slow", 3000, "--load-s", "0.8", startup_timeout_s=10)
    d.service("other", 3000, health={"interval_s": 0.3, "failures": 1})
    d.mode("one", "slow", "other")
    d.mode("two", "other")
    return d


def test_a_load_that_a_sleep_interrupts_comes_to_its_end(laptop: Daemon, lid: Lid):
    with laptop as d:
        assert "resumed" not in d.log
        operation = d.rpc("mode.switch", id="one")
        until(lambda: d.phases()["slow"] == "loading")
        lid.shut(NIGHT_S)
        assert d.rpc("operation.wait", id=operation["id"])["state"] == "succeeded"
        assert d.log.count("resumed") == 1
        assert (d.status()["state"], d.status()["problems"]) == ("converged", [])
        story = [line["text"] for line in d.rpc("service.explain", id="slow")["story"]]
        assert f"the machine slept for {NIGHT_S} s" in story


def test_a_release_that_a_sleep_interrupts_is_waited_for(laptop: Daemon, lid: Lid):
    laptop.policy["release_timeout_s"] = 15
    laptop.service("held", 20000, "--linger-ms", "60000")
    laptop.service("big", 20000)
    laptop.mode("big", "big")
    with laptop as d:
        d.rpc("service.start", id="held", wait=True)
        operation = d.rpc("mode.switch", id="big")
        until(lambda: d.phases()["held"] == "releasing")
        with d.table.edit() as table:  # late releases end by the boot clock, which is about to jump
            table.devices[GPU] = table.devices[GPU]._replace(foreign_mib=0)
            table.holds = [hold._replace(until_ms=hold.until_ms + 10**12) for hold in table.holds]
        lid.shut(NIGHT_S)
        until(lambda: "resumed" in d.log)
        assert d.rpc("operation.get", id=operation["id"])["state"] == "running"
        with d.table.edit() as table:
            table.holds.clear()
        assert d.rpc("operation.wait", id=operation["id"])["state"] == "succeeded"
        assert d.refusals() == []


def test_what_runs_goes_on_and_is_seen_anew(laptop: Daemon, lid: Lid):
    with laptop as d:
        d.switch("one")
        pids = {s["id"]: s["pid"] for s in d.status()["services"]}
        lid.shut(NIGHT_S)
        until(lambda: "resumed" in d.log)
        until(lambda: not d.rpc("device.list")[0]["stale"])
        assert (d.status()["state"], d.status()["problems"]) == ("converged", [])
        assert {s["id"]: s["pid"] for s in d.status()["services"]} == pids
        assert d.switch("two")["stopped"] == ["slow"]


def test_a_daemon_that_is_restarted_after_a_sleep_counts_no_sleep(laptop: Daemon, lid: Lid):
    with laptop as d:
        operation = d.rpc("mode.switch", id="one")
        until(lambda: d.phases()["slow"] == "loading")
        d.stop()
        lid.shut(NIGHT_S)
        d.start()
        assert d.rpc("operation.wait", id=operation["id"])["state"] == "succeeded"
        assert "resumed" not in d.log
        assert d.status()["state"] == "converged"
