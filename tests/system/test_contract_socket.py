"""The contract's section on the socket, sentence by sentence: JSON-RPC, ids, errors, limits, subscriptions."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpumodd.wire.methods import METHODS
from tests.support.daemon import Daemon, RpcFailure, until
from tests.system.talk import LINE, Talk

UNBUILT = ("service.sleep", "service.wake", "model.list", "job.create", "nope", "")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests here; each leaves it as it was."""
    d = Daemon(tmp_path_factory.mktemp("socket") / "d")
    d.service("embed", 5000, aliases=["e"])
    d.service("slow", 5000, "--load-s", "30", aliases=["s"])
    # Control characters: six bytes each in JSON, one in the log.
    noise = "head -c 240000 /dev/zero | tr '\\0' '\\001' | fold -w 200; exec sleep 60"
    d.command("wordy", "sh", "-c", noise, vram_mib=0, aliases=["w"])
    d.mode("rag", "embed")
    d.mode("slow", "slow")
    with d:
        yield d
        assert "Traceback" not in d.log


@pytest.fixture
def talk(daemon: Daemon) -> Iterator[Talk]:
    with Talk(daemon.socket) as talk:
        yield talk


# -- JSON-RPC 2.0 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [1, -7, 0, "a", "", "\u00e9", 1.5, 12345678901234567890])
def test_any_string_or_number_is_an_id_and_comes_back(talk: Talk, id: object):
    talk.send({"jsonrpc": "2.0", "id": id, "method": "daemon.hello"})
    assert talk.read()["id"] == id


def test_a_notification_gets_no_reply_and_is_carried_out(talk: Talk):
    talk.send({"jsonrpc": "2.0", "method": "daemon.hello", "params": {"role": "read"}})
    talk.send({"jsonrpc": "2.0", "method": "no.such.thing"})
    assert talk.refused("daemon.reload")["code"] == -32001


def test_a_batch_is_answered_as_one_line_without_its_notifications(talk: Talk):
    hello = {"jsonrpc": "2.0", "method": "daemon.hello"}
    talk.send([hello | {"id": 1}, hello, hello | {"id": "b", "method": "nope"}, 3])
    replies = talk.read()
    assert sorted((str(r["id"]), r.get("error", {}).get("code", 0)) for r in replies) == [
        ("1", 0),
        ("None", -32600),
        ("b", -32601),
    ]
    talk.send([hello, hello])
    assert talk.call("daemon.hello")["protocol"] == 1


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"{nonsense\n", -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "daemon.hello"\n', -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}\n', -32700),
        (b"[" * 100_000 + b"\n", -32700),
        (b"[]\n", -32600),
        (b"3\n", -32600),
        (b'{"id": 1, "method": "daemon.hello"}\n', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 3}\n', -32600),
        (b'{"jsonrpc": "2.0", "id": [], "method": "daemon.hello"}\n', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "daemon.hello", "params": 3}\n', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "daemon.hello", "params": {"x": 3}}\n', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "service.get", "params": []}\n', -32602),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "service.get", "params": [1, 2, 3]}\n', -32602),
    ],
)
def test_what_is_wrong_with_a_request_has_its_standard_number(talk: Talk, line: bytes, number: int):
    talk.send(line)
    reply = talk.read()
    assert (reply["jsonrpc"], reply["error"]["code"]) == ("2.0", number)
    assert reply["id"] in (None, 1)
    assert talk.call("daemon.hello")["protocol"] == 1


def test_params_may_be_given_by_position(talk: Talk):
    talk.send({"jsonrpc": "2.0", "id": 9, "method": "service.get", "params": ["embed"]})
    assert talk.reply(9)["result"]["id"] == "embed"


def test_replies_come_in_any_order(daemon: Daemon, talk: Talk):
    operation = talk.call("mode.switch", id="slow")["id"]
    waiting = talk.ask("operation.wait", id=operation)
    assert talk.call("status.get")["operation"]["id"] == operation
    assert not talk.unasked
    talk.call("operation.cancel", id=operation)
    assert talk.reply(waiting)["result"]["state"] == "cancelled"


def test_a_client_that_has_sent_everything_still_gets_its_answers(daemon: Daemon, talk: Talk):
    for _ in range(3):
        talk.ask("status.get")
    talk.socket.shutdown(1)
    assert [talk.read()["id"] for _ in range(3)] == [1, 2, 3]


# -- limits ---------------------------------------------------------------------------------------------------


def test_a_line_of_a_mebibyte_is_taken_and_a_longer_one_is_too_large(talk: Talk):
    request = b'{"jsonrpc": "2.0", "id": 1, "method": "daemon.hello"}'
    talk.send(request + b" " * (LINE - len(request)) + b"\n")
    assert talk.read()["id"] == 1
    talk.send(request + b" " * (LINE + 1 - len(request)) + b"\n")
    reply = talk.read()
    assert (reply["error"]["code"], reply["error"]["data"]["code"], reply["id"]) == (-32013, "too_large", None)
    assert talk.call("daemon.hello")["protocol"] == 1


def test_an_answer_of_more_than_a_mebibyte_is_too_large(daemon: Daemon, talk: Talk):
    talk.call("service.start", id="wordy", wait=True)
    assert len(until(lambda: talk.call("service.logs", id="w", lines=100)["lines"])) == 100
    error = until(lambda: talk.reply(talk.ask("service.logs", id="w", lines=5000)).get("error"))
    assert (error["code"], error["data"]["code"]) == (-32013, "too_large")
    talk.call("service.stop", id="w", wait=True)


def test_256_connections_are_served(daemon: Daemon):
    talks = [Talk(daemon.socket) for _ in range(256)]
    try:
        sent = [talk.ask("status.get") for talk in talks]
        for talk, id in zip(talks, sent, strict=True):
            assert "result" in talk.reply(id)
    finally:
        for talk in talks:
            talk.__exit__()


# -- who is there ---------------------------------------------------------------------------------------------


def test_hello_says_who_answers_and_what_it_can_do(daemon: Daemon, talk: Talk):
    assert daemon.process is not None
    hello = talk.call("daemon.hello", client="test", protocol=1, actor="me")
    assert {"protocol", "version", "pid", "started_at", "capabilities"} <= hello.keys()
    assert hello["pid"] == daemon.process.pid
    assert set(hello["capabilities"]) == set(METHODS)


@pytest.mark.parametrize("method", UNBUILT)
def test_a_method_that_is_not_built_does_not_exist(talk: Talk, method: str):
    assert method not in talk.call("daemon.hello")["capabilities"]
    assert talk.refused(method, id="embed")["code"] == -32601


def test_a_role_only_lowers_a_connections_rights(talk: Talk):
    assert talk.call("daemon.hello", role="operate")["role"] == "operate"
    assert talk.refused("daemon.reload")["data"]["code"] == "permission_denied"
    assert talk.call("daemon.hello", role="read")["role"] == "read"
    assert talk.refused("mode.switch", id="rag")["code"] == -32001
    assert talk.refused("daemon.hello", role="admin")["code"] == -32001
    assert talk.call("status.get")["mode"] == "blank"


def test_the_actor_of_an_operation_is_remembered(talk: Talk):
    talk.call("daemon.hello", actor="night shift")
    operation = talk.call("mode.switch", id="blank", wait=True)
    assert "night shift" in operation["why"]


# -- looking things up ----------------------------------------------------------------------------------------

WITH_SERVICE = ("service.get", "service.start", "service.stop", "service.restart", "service.logs", "service.explain")
WITH_MODE = ("mode.get", "mode.switch", "mode.delete", "mode.simulate")
WITH_OPERATION = ("operation.get", "operation.wait", "operation.cancel")


@pytest.mark.parametrize("method", [*WITH_SERVICE, *WITH_MODE, *WITH_OPERATION])
def test_an_unknown_id_is_not_found_and_the_hint_lists_those_that_exist(talk: Talk, method: str):
    if method in WITH_OPERATION:
        existing = [talk.call("mode.switch", id="blank", wait=True)["id"]]
    else:
        existing = ["embed", "slow", "wordy"] if method in WITH_SERVICE else ["blank", "rag", "slow"]
    for unknown in ("nope", "../rag", "a\nb", "é" * 200):
        error = talk.refused(method, id=unknown)
        assert (error["code"], error["data"]["code"]) == (-32004, "not_found")
        assert all(id in error["data"]["hint"] for id in existing)


def test_an_alias_is_as_good_as_an_id(talk: Talk):
    assert talk.call("service.get", id="e")["id"] == "embed"
    assert talk.call("service.explain", id="e")["id"] == "embed"
    assert talk.call("service.logs", id="e") == {"lines": []}
    assert talk.call("service.start", id="e", wait=True)["target"] == "embed"
    assert talk.call("service.restart", id="e", wait=True)["started"] == ["embed"]
    assert talk.call("service.stop", id="e", wait=True)["stopped"] == ["embed"]
    assert [s["id"] for s in talk.call("mode.simulate", services=["e"], add=["s"])["services"]] == ["embed", "slow"]
    assert talk.call("mode.simulate", id="rag", remove=["e"])["services"] == []
    assert talk.call("mode.create", id="made", services=["e"])["services"] == ["embed"]
    talk.call("mode.delete", id="made")


def test_an_operation_that_has_ended_can_be_read_and_waited_for_and_not_cancelled(talk: Talk):
    operation = talk.call("mode.switch", id="blank", wait=True)
    assert talk.call("operation.get", id=operation["id"]) == operation
    assert talk.call("operation.wait", id=operation["id"]) == operation
    assert talk.call("operation.list", limit=1) == [operation]
    error = talk.refused("operation.cancel", id=operation["id"])
    assert (error["code"], error["data"]["code"]) == (-32009, "conflict")


# -- events ---------------------------------------------------------------------------------------------------


def test_a_subscription_begins_with_the_status_and_tells_what_follows(daemon: Daemon, talk: Talk):
    subscription = talk.call("events.subscribe")
    assert subscription["status"].keys() == talk.call("status.get").keys()
    daemon.switch("rag")
    first = talk.event("operation", target="rag", state="running")
    assert first["cursor"] > subscription["cursor"]
    assert talk.event("service", service="embed", to="ready")["at"].endswith("Z")
    assert talk.event("operation", target="rag", state="succeeded")
    daemon.switch("blank")


def test_a_subscription_resumes_behind_a_cursor(daemon: Daemon, talk: Talk):
    cursor = talk.call("events.subscribe", topics=["operation"])["cursor"]
    daemon.switch("rag")
    daemon.switch("blank")
    seen = []
    while not seen or seen[-1]["data"].items() < {"target": "blank", "state": "succeeded"}.items():
        seen.append(talk.event("operation"))
        if (seen[-1]["data"]["target"], seen[-1]["data"]["state"]) == ("blank", "succeeded"):
            break
    assert [e["cursor"] for e in seen] == sorted({e["cursor"] for e in seen})
    with Talk(daemon.socket) as late:
        late.call("events.subscribe", topics=["operation"], after=cursor)
        assert [late.event("operation") for _ in seen] == seen


def test_topics_are_chosen_by_name(daemon: Daemon, talk: Talk):
    talk.call("events.subscribe", topics=["service"])
    daemon.switch("rag")
    daemon.switch("blank")
    until_stopped = talk.event()
    while until_stopped["data"] != {"service": "embed", "from": "stopping", "to": "stopped"}:
        assert until_stopped["topic"] == "service"
        until_stopped = talk.event()
    assert talk.refused("events.subscribe", topics=["weather"])["code"] == -32602


# -- switching over the socket --------------------------------------------------------------------------------


def test_without_waiting_the_running_operation_comes_at_once(talk: Talk):
    operation = talk.call("mode.switch", id="slow")
    assert (operation["state"], operation["kind"], operation["target"]) == ("running", "switch", "slow")
    talk.call("operation.cancel", id=operation["id"])
    assert talk.call("operation.wait", id=operation["id"])["state"] == "cancelled"


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("method", ["mode.switch", "service.start"])
def test_progress_tells_each_step_as_it_changes(talk: Talk, method: str, wait: bool):
    id = talk.ask(method, id="rag" if method == "mode.switch" else "embed", wait=wait, progress=True)
    operation = talk.reply(id)["result"]
    while not wait and ("wait_ready", "done") not in told(talk):
        talk.unasked.append(talk.read())
    assert {m["method"] for m in talk.unasked} == {"progress"}
    assert {m["params"]["operation"] for m in talk.unasked} == {operation["id"]}
    assert [step for step in told(talk) if step[0] == "start"][-1] == ("start", "done")
    assert told(talk)[-1] == ("wait_ready", "done")
    talk.call("mode.switch", id="blank", wait=True)


def told(talk: Talk) -> list[tuple[str, str]]:
    return [(m["params"]["step"]["verb"], m["params"]["step"]["state"]) for m in talk.unasked]


def test_a_client_that_goes_away_cancels_nothing(daemon: Daemon):
    with Talk(daemon.socket) as hasty:
        hasty.send({"jsonrpc": "2.0", "id": 1, "method": "mode.switch", "params": {"id": "rag", "wait": True}})
        until(lambda: daemon.status()["desired_mode"] == "rag")
    until(lambda: daemon.status()["mode"] == "rag")
    daemon.switch("blank")


def test_waiting_for_a_superseded_switch_ends_with_a_conflict(daemon: Daemon, talk: Talk):
    waiting = talk.ask("mode.switch", id="slow", wait=True)
    until(lambda: daemon.status()["operation"] is not None)
    assert daemon.switch("rag")["state"] == "succeeded"
    error = talk.reply(waiting)["error"]
    assert (error["code"], error["data"]["code"]) == (-32009, "conflict")
    superseded = error["data"]["details"]["operation"]
    assert (superseded["state"], superseded["error"]["code"]) == ("cancelled", "conflict")
    daemon.switch("blank")


def test_the_newest_of_many_switches_wins(daemon: Daemon, talk: Talk):
    asked = [talk.ask("mode.switch", id=mode) for mode in ("slow", "rag", "slow", "blank", "rag")]
    operations = [talk.reply(id)["result"]["id"] for id in asked]
    ends = [talk.call("operation.wait", id=id)["state"] for id in operations]
    assert ends[-1] == "succeeded"
    assert set(ends[:-1]) <= {"cancelled", "succeeded"}
    assert (daemon.status()["mode"], daemon.ready()) == ("rag", {"embed"})
    daemon.switch("blank")


def test_a_refusal_is_an_error_at_once_whether_waited_for_or_not(daemon: Daemon, talk: Talk):
    daemon.table.set_foreign(daemon.rpc("device.list")[0]["uuid"], 20000)
    try:
        for wait in (True, False):
            error = talk.refused("mode.switch", id="rag", wait=wait)
            assert (error["code"], error["data"]["code"]) == (-32010, "refused")
            assert error["data"]["details"]["reasons"][0]["code"] == "vram_insufficient"
            assert "MiB" in error["message"]
    finally:
        daemon.table.set_foreign(daemon.rpc("device.list")[0]["uuid"], 0)
        until(lambda: daemon.rpc("device.list")[0]["foreign_mib"] == 0)


# -- shapes ---------------------------------------------------------------------------------------------------


def test_results_have_the_published_fields(daemon: Daemon, talk: Talk, tmp_path: Path):
    operation = talk.call("mode.switch", id="rag", wait=True)
    status = talk.call("status.get")
    simulation = talk.call("mode.simulate", id="slow")
    shapes = {
        "Status": (status, "mode desired_mode state devices services operation problems"),
        "Device": (
            status["devices"][0],
            "uuid index name total_mib used_mib foreign_mib committed_mib free_mib sampled_at processes",
        ),
        "Process": (status["devices"][0]["processes"][0], "pid used_mib service"),
        "Service": (
            status["services"][0],
            "id name driver model aliases depends_on phase mode_member unit pid port devices vram_mib vram_source"
            " vram_observed_mib sleep_level since problem",
        ),
        "Mode": (talk.call("mode.get", id="rag"), "id name description services vram_mib active"),
        "Simulation": (simulation, "fits devices services steps blocked alternatives"),
        "Forecast": (simulation["devices"][0], "uuid total_mib needed_mib headroom_mib"),
        "Operation": (
            operation,
            "id kind target state started woken stopped slept kept steps error created_at finished_at seconds",
        ),
        "Step": (operation["steps"][1], "id verb service after state why started_at finished_at error"),
    }
    for name, (value, fields) in shapes.items():
        assert set(fields.split()) <= value.keys(), name
    assert talk.call("device.list") == status["devices"] or talk.call("device.list")[0]["uuid"]
    assert [s["id"] for s in talk.call("service.list")] == [s["id"] for s in status["services"]]
    assert all(json.dumps(step["why"]) != '""' for step in operation["steps"])
    talk.call("mode.switch", id="blank", wait=True)


def test_figures_after_an_operation_are_newer_than_its_last_step(daemon: Daemon):
    for mode in ("rag", "rag", "blank"):
        operation = daemon.switch(mode)
        sampled = daemon.status()["devices"][0]["sampled_at"]
        assert sampled >= max(step["finished_at"] for step in operation["steps"])


def test_a_bad_call_is_never_a_traceback(daemon: Daemon, talk: Talk):
    for method in sorted(METHODS.keys() - {"daemon.shutdown"}):
        for params in ({"id": 3}, {"id": "a" * 300}, {"nope": 1}, {"services": [3]}, {"id": None}, {"id": "\0"}):
            talk.reply(talk.ask(method, **params))
        talk.send({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"id": "\ud800"}})
        assert talk.read()["error"]["code"] in (-32700, -32602)
    with pytest.raises(RpcFailure):
        daemon.rpc("service.start", id="")
    assert "Traceback" not in daemon.log
