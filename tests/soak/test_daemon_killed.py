"""`kill -9` of the daemon, at each boundary of a switch's steps and at moments of chance."""

import pytest

from tests.soak.stage import PATIENCE_S, Stage, chance, pause, rounds

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
        picked = every if rounds(0) else sorted(chance("boundaries").sample(every, 7))
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


def test_at_moments_of_chance(stage: Stage):
    luck = chance("moments")
    with stage.running():
        begin(stage)
        mode = "b"
        for _ in range(rounds(4, 100)):
            target = other(mode)
            id = stage.switch(target)
            delay_s = luck.random() * 0.9
            pause(delay_s)
            stage.kill()
            print(f"killed {delay_s:.3f} s into operation {id}, {mode} to {target}")
            mode = recover(stage, mode, target, id)
