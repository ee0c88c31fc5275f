"""Model servers that die, hang, linger and will not end, in the middle of a switch and at rest, under every policy."""

import os
import signal
from collections.abc import Callable
from itertools import product

import pytest

from tests.soak.stage import RpcFailure, Stage, chance, rounds
from tests.support.daemon import until

pytestmark = pytest.mark.real

POLICIES = ("rollback", "keep", "stop")
LOADING = ("--load-s", "0.8")


def reach(stage: Stage, mode: str) -> None:
    id = stage.switch(mode)
    assert id is not None and stage.ended(id)["state"] == "succeeded", stage.story()


def pid_of(stage: Stage, service: str) -> int:
    """Its main process, once it has one."""
    return int(until(lambda: stage.daemon.rpc("service.get", id=service)["pid"], why=f"{service} has a process"))


# -- incoming -------------------------------------------------------------------------------------------------


def crashes(stage: Stage) -> tuple[str, ...]:
    return (*LOADING, "--fail-at-s", "0.3")


def asks_for_too_much(stage: Stage) -> tuple[str, ...]:
    return ("--oom",)


def is_killed(stage: Stage) -> tuple[str, ...]:
    return LOADING


def hangs(stage: Stage) -> tuple[str, ...]:
    return LOADING


def answers_badly(stage: Stage) -> tuple[str, ...]:
    return ("--error-health", "--ignore-sigterm")


BLOWS: dict[Callable[[Stage], tuple[str, ...]], signal.Signals] = {is_killed: signal.SIGKILL, hangs: signal.SIGSTOP}
INCOMING = {
    crashes: "unit_failed",
    asks_for_too_much: "unit_failed",
    is_killed: "unit_failed",
    hangs: "health_timeout",
    answers_badly: "health_timeout",
}


def test_an_incoming_service_that_goes_wrong_is_answered_by_the_policy(stage: Stage):
    """`bad` joins b3 and the keeper where all of `a` was."""
    for fault in INCOMING:
        name = fault.__name__.replace("_", "-")
        stage.service(name, 6000, *fault(stage), startup_timeout_s=1.5, stop_timeout_s=1)
        stage.mode(f"with-{name}", "keeper", "b3", name)
    pairs = list(product(INCOMING, POLICIES))
    if not rounds(0):  # three faults, and each policy once
        luck = chance("policies")
        pairs = list(zip(luck.sample(list(INCOMING), 3), luck.sample(POLICIES, 3), strict=True))
    with stage.running():
        for fault, policy in pairs:
            name = fault.__name__.replace("_", "-")
            print(f"{name}, {policy}")
            reach(stage, "a")
            stage.account("a")
            id = stage.switch(f"with-{name}", on_failure=policy)
            assert id is not None
            if fault in BLOWS:
                os.kill(pid_of(stage, name), BLOWS[fault])
            ended = stage.ended(id)
            assert ended["error"]["code"] == INCOMING[fault], stage.story()
            assert ended["state"] == ("rolled_back" if policy == "rollback" else "failed"), stage.story()
            if policy == "rollback":
                stage.account("a")
            else:
                left = {"keeper", "b3"} if policy == "keep" else {"keeper"}
                assert stage.daemon.status()["mode"] is None
                until(lambda left=left: set(stage.cgroups()) == left == stage.daemon.ready())


# -- leaving --------------------------------------------------------------------------------------------------


def test_a_leaving_service_that_will_not_let_go_holds_up_no_more_than_it_must(stage: Stage):
    stage.service("deaf", 9000, "--ignore-sigterm", stop_timeout_s=1)
    stage.service("frozen", 9000, stop_timeout_s=1)
    stage.service("orphaning", 9000, "--engine-child", stop_timeout_s=1)
    stage.service("clinging", 9000, "--linger-ms", "1500")
    stage.mode("odd", "keeper", "deaf", "frozen")
    stage.mode("odd-2", "keeper", "orphaning", "clinging")
    with stage.running():
        for number in range(rounds(1, 10)):
            target = "ab"[number % 2]
            reach(stage, "odd")
            stage.account("odd")
            os.kill(pid_of(stage, "frozen"), signal.SIGSTOP)
            reach(stage, target)
            stage.account(target)
            reach(stage, "odd-2")
            stage.account("odd-2")
            id = stage.switch(target)
            assert id is not None
            until(lambda: stage.daemon.phases()["orphaning"] != "ready")
            ended = stage.ended(id)
            assert ended["state"] == "succeeded", stage.story()
            steps = {(s["verb"], s["service"]): s for s in ended["steps"]}
            assert steps["wait_release", "clinging"]["state"] == "done"
            stage.account(target)


def test_memory_that_does_not_come_back_fails_the_switch_by_its_policy(stage: Stage):
    stage.daemon.policy["release_timeout_s"] = 1
    stage.service("clinging", 15000, "--linger-ms", "600000")
    stage.mode("c", "keeper", "clinging")
    with stage.running():
        for policy in POLICIES if rounds(0) else [chance("lost memory").choice(POLICIES)]:
            print(policy)
            reach(stage, "c")
            stage.account("c")
            id = stage.switch("a", on_failure=policy)
            assert id is not None
            ended = stage.ended(id)
            assert ended["error"]["code"] == "vram_not_released", stage.story()
            assert ended["state"] in ("failed", "rolled_back"), stage.story()
            until(lambda: not stage.daemon.status()["operation"])
            assert stage.daemon.refusals() == []
            with pytest.raises(RpcFailure, match="refused"):
                stage.daemon.rpc("mode.switch", id="a")
            stage.daemon.table.settle()
            id = stage.switch("a")
            if policy == "rollback":  # it came back, and leaves once more
                until(lambda: "releasing" in stage.daemon.phases().values())
                stage.daemon.table.settle()
            assert id is not None and stage.ended(id)["state"] == "succeeded", stage.story()
            stage.account("a")


# -- at rest --------------------------------------------------------------------------------------------------


def test_a_ready_service_that_dies_comes_back_and_nothing_else_notices(stage: Stage):
    luck = chance("at rest")
    with stage.running():
        reach(stage, "a")
        stage.account("a")
        for _ in range(rounds(1, 30)):
            reach(stage, "a")  # whoever asks anew does not wait for what failed before
            victim = luck.choice(sorted(stage.modes["a"]))
            pid = pid_of(stage, victim)
            os.kill(pid, signal.SIGKILL)
            until(lambda victim=victim, pid=pid: stage.daemon.rpc("service.get", id=victim)["pid"] not in (None, pid))
            seen = stage.account("a")
            assert [service for service, _ in seen["runs"]] == [victim]
