"""The contract's words on status, operations, simulations and switching, sentence by sentence."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import GPU, Daemon, RpcFailure, until


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Daemon]:
    """A machine of subprocesses and simulated devices; not started yet."""
    d = Daemon(tmp_path / "d")
    d.service("chat", 16000)
    d.service("code", 15000)
    d.service("embed", 5000)
    d.service("tiny", 1000)
    d.service("slow", 3000, "--load-s", "30")
    d.service("bad", 2000, "--fail-at-s", "0.2", "--load-s", "30", "--last-words", "no kernel image")
    d.mode("chat", "chat", "tiny")
    d.mode("code", "code", "embed")
    d.mode("rag", "embed", "tiny")
    d.mode("slow", "slow", "tiny")
    d.mode("bad", "bad", "embed")
    d.mode("huge", "chat", "code")
    yield d
    d.__exit__()


def standing(d: Daemon) -> tuple[str | None, str | None, str]:
    status = d.status()
    return status["mode"], status["desired_mode"], status["state"]


def failed(d: Daemon, mode: str, **how: Any) -> dict[str, Any]:
    """The operation of a switch that ran and failed."""
    with pytest.raises(RpcFailure) as failure:
        d.switch(mode, **how)
    assert (failure.value.number, failure.value.code) == (-32011, "failed")
    operation: dict[str, Any] = failure.value.data["details"]["operation"]
    return operation


def refused(d: Daemon, method: str, **params: Any) -> dict[str, Any]:
    """The error's data of a refusal."""
    with pytest.raises(RpcFailure) as refusal:
        d.rpc(method, **params)
    assert (refusal.value.number, refusal.value.code) == (-32010, "refused")
    return refusal.value.data


def reasons(d: Daemon, method: str, **params: Any) -> list[str]:
    return [reason["code"] for reason in refused(d, method, **params)["details"]["reasons"]]


# -- mode, desired_mode, state --------------------------------------------------------------------------------


def test_before_the_first_switch_the_mode_is_blank_and_nothing_is_desired(plain: Daemon):
    with plain as d:
        assert standing(d) == ("blank", None, "converged")
        assert d.status()["operation"] is None


def test_while_a_switch_runs_the_mode_is_the_old_one(plain: Daemon):
    with plain as d:
        d.switch("rag")
        operation = d.rpc("mode.switch", id="slow")
        assert standing(d) == ("rag", "slow", "switching")
        assert d.status()["operation"]["id"] == operation["id"]
        assert d.rpc("mode.get", id="rag")["active"]
        d.rpc("operation.cancel", id=operation["id"])
        d.rpc("operation.wait", id=operation["id"])
        assert standing(d) == ("rag", "rag", "converged")


@pytest.mark.parametrize(
    ("policy", "state", "after", "left"),
    [
        ("rollback", "rolled_back", ("rag", "rag", "converged"), {"embed", "tiny"}),
        ("keep", "failed", (None, "bad", "degraded"), {"embed"}),
        ("stop", "failed", (None, None, "converged"), {"embed"}),
    ],
)
def test_what_becomes_of_a_failed_switch(plain: Daemon, policy: str, state: str, after: tuple, left: set[str]):
    """Rollback returns to what ran, keep leaves what came up, stop ends what had been started."""
    with plain as d:
        d.switch("rag")
        operation = failed(d, "bad", on_failure=policy)
        assert (operation["state"], operation["error"]["code"]) == (state, "unit_failed")
        assert any("no kernel image" in line for line in operation["error"]["log"])
        assert {"code", "message", "hint", "details", "log"} <= operation["error"].keys()
        assert [s["service"] for s in operation["steps"] if s["state"] == "failed"] == ["bad"]
        assert (standing(d), d.ready()) == (after, left)
        assert d.rpc("operation.get", id=operation["id"]) == operation
        d.switch("rag")
        assert standing(d) == ("rag", "rag", "converged")


def test_a_service_that_is_still_loading_counts_and_can_be_stopped(plain: Daemon):
    with plain as d:
        d.rpc("mode.switch", id="slow")
        until(lambda: d.phases()["slow"] == "loading")
        assert d.status()["devices"][0]["committed_mib"] == 4000
        assert d.rpc("service.stop", id="slow", wait=True)["stopped"] == ["slow"]
        assert d.phases()["slow"] == "stopped"


# -- operations -----------------------------------------------------------------------------------------------


def test_steps_stand_in_an_order_in_which_they_may_run(plain: Daemon):
    plain.service("chat", 16000, "--linger-ms", "200")
    with plain as d:
        d.switch("chat")
        for steps in (d.rpc("mode.simulate", id="code")["steps"], d.switch("code")["steps"]):
            ids = [step["id"] for step in steps]
            assert len(set(ids)) == len(ids)
            for at, step in enumerate(steps):
                assert set(step["after"]) <= set(ids[:at])
        by_key = {(s["verb"], s["service"]): s for s in steps}
        assert by_key["start", "code"]["after"] == [by_key["wait_release", "chat"]["id"]]
        assert by_key["wait_release", "chat"]["after"] == [by_key["stop", "chat"]["id"]]
        assert by_key["wait_ready", "embed"]["after"] == [by_key["start", "embed"]["id"]]
        assert {s["state"] for s in steps} == {"done"}
        for step in steps:
            assert all(by["finished_at"] <= step["started_at"] for by in steps if by["id"] in step["after"])


def test_an_operation_lists_what_it_did_sorted(plain: Daemon):
    with plain as d:
        first = d.switch("rag")
        assert (first["started"], first["stopped"], first["kept"]) == (["embed", "tiny"], [], [])
        second = d.switch("code")
        assert (second["started"], second["stopped"], second["kept"]) == (["code"], ["tiny"], ["embed"])
        assert (second["woken"], second["slept"]) == ([], [])
        assert second["seconds"] > 0
        assert first["created_at"] <= first["finished_at"] <= second["created_at"]
        assert [o["id"] for o in d.rpc("operation.list")] == [second["id"], first["id"]]


def test_each_verb_has_its_kind_of_operation(plain: Daemon):
    with plain as d:
        kinds = [
            d.rpc(f"service.{verb}", id="tiny", wait=True)["kind"] for verb in ("start", "restart", "stop", "stop")
        ]
        assert kinds == ["start", "restart", "stop", "stop"]
        assert d.switch("rag")["kind"] == "switch"


def test_operations_are_remembered_across_daemons(plain: Daemon):
    with plain as d:
        done = d.switch("rag")
        d.stop()
        d.start()
        until(lambda: d.status()["state"] == "converged")
        assert d.rpc("operation.get", id=done["id"])["state"] == "succeeded"
        assert int(d.switch("blank")["id"]) > int(done["id"])


# -- switching ------------------------------------------------------------------------------------------------


def test_a_switch_replaces_manual_starts_and_clears_manual_stops(plain: Daemon):
    with plain as d:
        d.switch("rag")
        d.rpc("service.start", id="code", wait=True)
        d.rpc("service.stop", id="tiny", wait=True)
        assert (d.ready(), standing(d)) == ({"code", "embed"}, ("rag", "rag", "converged"))
        again = d.switch("rag")
        assert (again["started"], again["stopped"], again["kept"]) == (["tiny"], ["code"], ["embed"])


def test_pinned_services_stay_but_not_in_blank(plain: Daemon):
    plain.service("pin", 700, pinned=True)
    with plain as d:
        d.rpc("service.start", id="pin", wait=True)
        assert d.switch("rag")["kept"] == ["pin"]
        assert d.ready() == {"embed", "pin", "tiny"}
        assert d.switch("blank")["stopped"] == ["embed", "pin", "tiny"]


def test_blank_exists_without_a_file_and_cannot_be_deleted(plain: Daemon):
    with plain as d:
        assert d.rpc("mode.get", id="blank")["services"] == []
        with pytest.raises(RpcFailure) as kept:
            d.rpc("mode.delete", id="blank")
        assert kept.value.code == "conflict"


def test_a_refusal_touches_nothing(plain: Daemon):
    with plain as d:
        d.switch("rag")
        before = d.status()
        assert reasons(d, "mode.switch", id="huge") == ["vram_insufficient"]
        after = d.status()
        assert [s["pid"] for s in after["services"]] == [s["pid"] for s in before["services"]]
        assert (after["mode"], after["desired_mode"], after["state"]) == ("rag", "rag", "converged")
        assert len(d.rpc("operation.list")) == 1


def test_quiesce_refuses_with_the_time_to_wait_and_can_be_passed(plain: Daemon):
    plain.policy["quiesce_s"] = 30
    with plain as d:
        d.switch("rag")
        d.switch("blank")
        for method, id in (("mode.switch", "rag"), ("service.start", "tiny")):
            data = refused(d, method, id=id)
            assert [r["code"] for r in data["details"]["reasons"]] == ["quiesce_active"]
            assert 20 < data["retry_after_s"] <= 30
        assert d.switch("blank")["state"] == "succeeded"
        assert d.switch("rag", quiesce=False)["forced"] is False
        d.switch("blank")
        assert d.switch("rag", force=True)["forced"] is True


def test_a_quiesce_inside_a_switch_is_waited_for(plain: Daemon):
    plain.policy["quiesce_s"] = 0.5
    with plain as d:
        d.switch("chat")
        operation = d.switch("code")
        released = max(s["finished_at"] for s in operation["steps"] if s["verb"] == "wait_release")
        started = min(s["started_at"] for s in operation["steps"] if (s["verb"], s["service"]) == ("start", "code"))
        assert operation["seconds"] >= 0.5
        assert started > released


def test_force_passes_memory_refusals_and_no_other_and_is_recorded(plain: Daemon):
    plain.service("unknown", None)
    plain.service("hungry", 100, ram_mib=16_000_000)
    plain.command("nowhere", "/no/such/program", vram_mib=0)
    plain.service("pinned_away", 100, devices=["GPU-nope"])
    plain.service("mighty", 100, "--load-s", "0.1", devices=[0])
    with plain as d:
        for id, reason in (("unknown", "vram_unknown"), ("hungry", "ram_insufficient")):
            assert reasons(d, "service.start", id=id) == [reason]
            forced = d.rpc("service.start", id=id, force=True, wait=True)
            assert (forced["state"], forced["forced"]) == ("succeeded", True)
        for id, reason in (("nowhere", "file_missing"), ("pinned_away", "device_unavailable")):
            assert reasons(d, "service.start", id=id, force=True) == [reason]
        assert d.rpc("operation.list")[0]["forced"] is True


def test_the_numbers_of_a_refusal_add_up(plain: Daemon):
    plain.policy["vram_limit"] = "50%"
    with plain as d:
        d.switch("rag")
        reason = refused(d, "service.start", id="chat")["details"]["reasons"][0]
        numbers = reason["details"]
        assert (reason["code"], reason["service"], reason["device"]) == ("vram_insufficient", "chat", GPU)
        assert (numbers["total_mib"], numbers["limit_mib"], numbers["committed_mib"]) == (24564, 12282, 6000)
        assert (numbers["needed_mib"], numbers["available_mib"]) == (16000, 12282 - 6000)


def test_a_limit_counts_for_the_device_it_names_and_shows(plain: Daemon):
    plain.policy["vram_limit"] = {GPU: 7000, "1": "10%"}
    with plain as d:
        d.switch("rag")
        assert [(v["uuid"], v["limit_mib"]) for v in d.rpc("device.list")] == [(GPU, 7000)]
        numbers = refused(d, "service.start", id="chat")["details"]["reasons"][0]["details"]
        assert (numbers["limit_mib"], numbers["available_mib"]) == (7000, 1000)
        assert [(p["code"], p["details"]) for p in d.status()["problems"]] == [("device_unknown", {"devices": ["1"]})]


def test_overcommit_warn_starts_and_tells(plain: Daemon):
    plain.policy["overcommit"] = "warn"
    plain.service("chat", 16000, "--vram-mib", "8000")  # takes less than it says
    with plain as d:
        assert d.switch("huge")["state"] == "succeeded"
        assert [p["code"] for p in d.status()["problems"]] == ["overcommitted"]
        assert d.status()["state"] == "converged"
        assert not d.rpc("mode.simulate", id="huge")["fits"]


# -- simulations ----------------------------------------------------------------------------------------------


def test_a_simulation_adds_up_and_touches_nothing(plain: Daemon):
    plain.table.set_foreign(GPU, 3000)
    with plain as d:
        d.switch("rag")
        operations, before = d.rpc("operation.list"), d.status()["services"]
        for asked in ({"id": "code"}, {"services": ["code"], "add": ["embed"]}, {"id": "rag", "add": ["code"]}):
            simulation = d.rpc("mode.simulate", **asked)
            device = simulation["devices"][0]
            needed = sum(s["vram_mib"] for s in simulation["services"])
            assert device["needed_mib"] == needed
            assert device["headroom_mib"] == 24564 - 512 - 3000 - needed
            assert simulation["fits"] == (device["headroom_mib"] >= 0)
        assert not d.rpc("mode.simulate", id="huge")["fits"]
        assert d.rpc("mode.simulate", id="huge")["blocked"][0]["code"] == "vram_insufficient"
        assert d.rpc("mode.simulate", id="rag", remove=["tiny"])["steps"][0]["service"] == "tiny"
        assert (d.rpc("operation.list"), d.status()["services"]) == (operations, before)


def test_a_simulation_says_what_a_switch_would_refuse(plain: Daemon):
    plain.service("unknown", None)
    with plain as d:
        simulation = d.rpc("mode.simulate", services=["unknown"])
        assert (simulation["fits"], simulation["blocked"][0]["code"]) == (False, "vram_unknown")
        with pytest.raises(RpcFailure) as missing:
            d.rpc("mode.simulate", services=["nope"])
        assert missing.value.code == "not_found"


# -- services -------------------------------------------------------------------------------------------------


def test_stopping_ends_what_depends_on_it_and_starting_brings_what_it_needs(plain: Daemon):
    plain.service("db", 100)
    plain.service("api", 100, depends_on=["db"])
    plain.mode("app", "api")
    with plain as d:
        assert d.rpc("service.start", id="api", wait=True)["started"] == ["api", "db"]
        assert d.rpc("service.stop", id="db", wait=True)["stopped"] == ["api", "db"]
        d.switch("app")
        assert d.rpc("service.stop", id="api", wait=True)["stopped"] == ["api"]
        assert (d.ready(), d.status()["state"], d.status()["problems"]) == ({"db"}, "converged", [])
        assert d.rpc("service.restart", id="db", wait=True)["started"] == ["db"]
        assert d.switch("app")["started"] == ["api"]


def test_a_service_tells_where_it_is_and_why(plain: Daemon):
    with plain as d:
        d.switch("rag")
        embed, code = d.rpc("service.get", id="embed"), d.rpc("service.get", id="code")
        assert (embed["phase"], embed["mode_member"], embed["devices"]) == ("ready", True, [GPU])
        assert (embed["vram_mib"], embed["vram_source"], embed["vram_observed_mib"]) == (5000, "declared", 5000)
        assert embed["unit"] == "gpumod-embed.service"
        assert (code["phase"], code["mode_member"], code["pid"], code["devices"]) == ("stopped", False, None, [])
        told = d.rpc("service.explain", id="embed")
        assert "mode rag" in " ".join(told["because"])
        assert told["would_change"]
        assert [entry["at"] for entry in told["story"]] == sorted(entry["at"] for entry in told["story"])


def test_a_request_that_is_joined_is_answered_once_for_each(plain: Daemon):
    with plain as d:
        first = d.rpc("mode.switch", id="slow")
        began = time.monotonic()
        second = d.rpc("mode.switch", id="slow")
        assert (second["id"], time.monotonic() - began < 5) == (first["id"], True)
        assert d.switch("blank")["stopped"] == ["slow", "tiny"]
