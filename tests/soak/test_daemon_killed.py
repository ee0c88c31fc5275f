"""`kill -9` of the daemon, at each boundary of a switch's steps and at moments of chance."""

import pytest

from tests.soak.stage import PATIENCE_S, RpcFailure, Stage, chance, pause, rounds
from tests.support.daemon import until

pytestmark = pytest.mark.real


def other(mode: str) -> str:
    return "b" if mode == "a" else "a"


def begin(stage: Stage) -> int:
    """Both modes have been reached once; returns how many moments a switch between them has."""
    id = stage.switch("a")
    assert id is not None and stage.ended(id)["state"] == "succeeded"
    stage.account("a")
    stage.arm(1 << 30)
    id = stage.switch("b")
    assert id is not None and stage.ended(id)["state"] == "succeeded"
    moments = stage.disarm()
    seen = stage.account("b")
    assert sorted(service for service, _ in seen["runs"]) == sorted(stage.modes["b"] - {"keeper"})
    return len(moments)


def reach(stage: Stage, mode: str) -> None:
    id = stage.switch(mode)
    assert id is not None and stage.ended(id)["state"] == "succeeded", stage.story()


def recover(stage: Stage, came_from: str, target: str, id: str | None) -> str:
    """The next daemon: what was said yes to is finished under its own id, and nothing was done twice."""
    stage.daemon.start()
    if id is None:  # killed before it could answer: the operation exists as a whole or not at all
        newest = stage.daemon.rpc("operation.list")[0]
        if newest["target"] == target and newest["id"] not in stage.asked:
            id = newest["id"]
            stage.asked.append(newest["id"])
    reached = came_from
    if id is not None:
        ended = stage.ended(id)
        assert ended["state"] == "succeeded", stage.story()
        assert (ended["kind"], ended["target"]) == ("switch", target)
        assert (set(ended["started"]), set(ended["stopped"])) == (
            stage.modes[target] - {"keeper"},
            stage.modes[came_from] - {"keeper"},
        ), stage.story()
        reached = target
    seen = stage.account(reached)
    coming = stage.modes[target] - {"keeper"} if id is not None else set()
    assert sorted(service for service, _ in seen["runs"]) == sorted(coming), "each came once, and nothing else did"
    return reached


def test_at_every_boundary_of_a_switch_in_both_directions(stage: Stage):
    with stage.running():
        count = begin(stage)
        mode = "b"
        every = list(range(1, count + 1))
        picked = every if rounds(0) else sorted(chance("boundaries").sample(every, 5))
        for moment in picked * (2 if rounds(0) else 1):
            target = other(mode)
            stage.arm(moment)
            id = stage.switch(target)
            dead = stage.died(PATIENCE_S / 10)
            passed = stage.disarm()
            print(f"killed at {passed[-1] if dead else 'no'} moment of {count}, {mode} to {target}, operation {id}")
            if not dead:
                stage.kill()
            mode = recover(stage, mode, target, id)
            if mode != target:
                again = stage.switch(target)
                assert again is not None and stage.ended(again)["state"] == "succeeded"
                stage.account(target)
                mode = target


def test_at_moments_of_chance_and_again_while_it_recovers(stage: Stage):
    luck = chance("moments")
    with stage.running():
        begin(stage)
        mode = "b"
        for _ in range(rounds(2)):
            target = other(mode)
            id = stage.switch(target)
            delay_s = luck.random() * 0.9
            pause(delay_s)
            stage.kill()
            print(f"killed {delay_s:.3f} s into operation {id}, {mode} to {target}")
            while luck.random() < 0.3:
                stage.daemon.start(wait=False)
                pause(luck.random() * 1.5)
                stage.kill()
                print("and again")
            mode = recover(stage, mode, target, id)


def test_while_a_member_fails_the_policy_is_kept(stage: Stage):
    """Killed before, while or after the member goes wrong, the operation ends as its policy says."""
    luck = chance("policies")
    stage.service("bad", 6000, "--load-s", "2", "--fail-at-s", "0.3")
    stage.mode("worse", "keeper", "b3", "bad")
    ends = {"rollback": ("rolled_back", "a"), "keep": ("failed", None), "stop": ("failed", None)}
    left = {"rollback": stage.modes["a"], "keep": {"keeper", "b3"}, "stop": {"keeper"}}
    with stage.running():
        for _ in range(rounds(1, 30)):
            policy = luck.choice(list(ends))
            reach(stage, "a")
            stage.account("a")
            id = stage.switch("worse", on_failure=policy)
            delay_s = luck.random()
            pause(delay_s)
            stage.kill()
            print(f"killed {delay_s:.3f} s into operation {id}, {policy}")
            stage.daemon.start()
            assert id is not None
            ended = stage.ended(id)
            assert (ended["state"], ended["error"]["code"]) == (ends[policy][0], "unit_failed"), stage.story()
            until(lambda policy=policy: set(stage.cgroups()) == left[policy] == stage.daemon.ready(), why=policy)
            assert stage.daemon.status()["mode"] == ends[policy][1]


def test_cancelled_at_any_moment_it_leads_back(stage: Stage):
    luck = chance("cancel")
    with stage.running():
        mode = "a"
        reach(stage, mode)
        for _ in range(rounds(1, 50)):
            stage.account(mode)
            target = other(mode)
            id = stage.switch(target)
            assert id is not None
            delay_s = luck.random() * 0.6
            pause(delay_s)
            try:
                stage.daemon.rpc("operation.cancel", id=id)
            except RpcFailure as late:
                assert late.code == "conflict"
            if luck.random() < 0.3:
                stage.kill()
                stage.daemon.start()
            end = stage.ended(id)["state"]
            print(f"cancelled {delay_s:.3f} s into operation {id}, {mode} to {target}: {end}")
            assert end in ("cancelled", "succeeded"), stage.story()
            mode = target if end == "succeeded" else mode
        stage.account(mode)
