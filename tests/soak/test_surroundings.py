"""What the daemon stands on gives way: the disk, the bus, the driver, the whole machine."""

import json
from pathlib import Path

import pytest

from tests.soak.stage import GPUS, Stage, chance, pause, rounds
from tests.support.daemon import until
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.real


def problems(stage: Stage) -> set[str]:
    return {problem["code"] for problem in stage.daemon.status()["problems"]}


def reach(stage: Stage, mode: str) -> None:
    id = stage.switch(mode)
    assert id is not None and stage.ended(id)["state"] == "succeeded", stage.story()


def moving(stage: Stage) -> bool:
    return bool({"stopping", "releasing", "starting", "loading"} & set(stage.daemon.phases().values()))


# -- disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_in_the_middle_of_a_switch(stage: Stage):
    stage.service("b1", 16000, "--load-s", "2")  # so that the disk is full before all is over
    stage.daemon.state.mkdir(parents=True)
    stage.box.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(stage.daemon.state)])
    ballast = stage.daemon.state / "ballast"
    try:
        with stage.running():
            reach(stage, "a")
            stage.account("a")
            id = stage.switch("b")
            assert id is not None
            until(lambda: moving(stage), why="it has begun")
            stage.box.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], check=False)
            until(lambda: "state_unwritable" in problems(stage), why="it is told")
            stage.box.run(["rm", str(ballast)])
            ended = stage.ended(id)
            until(lambda: "state_unwritable" not in problems(stage))
            if ended["state"] == "succeeded":
                seen = stage.account("b")
                assert sorted(s for s, _ in seen["runs"]) == sorted(stage.modes["b"] - {"keeper"})
            else:  # the state file had a last page to fill, the file for a service's environment had none
                assert (ended["state"], "No space left" in ended["error"]["message"]) == ("rolled_back", True), ended
                stage.account("a")
    finally:
        stage.box.run(["umount", str(stage.daemon.state)])


# -- bus ------------------------------------------------------------------------------------------------------


def break_bus(stage: Stage) -> None:
    """Not while it comes up: systemd 252 then waits 90 s for the greeting of a bus that it has not reaped yet."""
    until(lambda: "units_unreachable" not in problems(stage), why="the bus is back")
    noticed = stage.daemon.log.count("units_lost")
    stage.box.systemctl("kill", "--signal=KILL", "dbus.service")
    until(lambda: stage.daemon.log.count("units_lost") > noticed, why="it is noticed")


def test_the_bus_dies_while_idle_and_in_the_middle_of_a_switch(stage: Stage):
    luck = chance("bus")
    with stage.running():
        reach(stage, "a")
        stage.account("a")
        break_bus(stage)
        stage.account("a")
        mode = "a"
        for _ in range(rounds(3, 30)):
            target = "b" if mode == "a" else "a"
            id = stage.switch(target)
            assert id is not None
            for _ in range(luck.choice([1, 1, 2, 3])):
                pause(luck.random() * 0.4)
                break_bus(stage)
            assert stage.ended(id)["state"] == "succeeded", stage.story()
            seen = stage.account(target)
            assert sorted(s for s, _ in seen["runs"]) == sorted(stage.modes[target] - {"keeper"})
            mode = target


def test_no_bus_for_a_while(stage: Stage):
    with stage.running():
        reach(stage, "a")
        stage.account("a")
        id = stage.switch("b")
        until(lambda: moving(stage), why="it has begun")
        stage.box.systemctl("stop", "dbus.socket", "dbus.service")
        until(lambda: "units_unreachable" in problems(stage), why="it is told")
        assert stage.daemon.status()["state"] == "switching"
        stage.box.systemctl("start", "dbus.socket", "dbus.service")
        assert id is not None and stage.ended(id)["state"] == "succeeded", stage.story()
        stage.account("b")
        assert not problems(stage)


@pytest.mark.long
def test_no_bus_for_longer_than_a_switch_waits(stage: Stage):
    stage.daemon.policy["release_timeout_s"] = 2
    with stage.running():
        reach(stage, "a")
        stage.account("a")
        for _ in range(rounds(1, 5)):
            id = stage.switch("b")
            until(lambda: moving(stage), why="it has begun")
            stage.box.systemctl("stop", "dbus.socket", "dbus.service")
            assert id is not None
            ended = stage.ended(id)
            assert (ended["state"], ended["error"]["code"]) == ("failed", "units_unreachable"), stage.story()
            stage.box.systemctl("start", "dbus.socket", "dbus.service")
            until(lambda: stage.modes["a"] <= stage.daemon.ready(), within=60, why="what is desired is mended")
            until(lambda: not stage.daemon.status()["operation"])
            orphans = {p["service"] for p in stage.daemon.status()["problems"] if p["code"] == "orphan_running"}
            assert set(stage.cgroups()) - stage.modes["a"] == orphans, "what it had begun to start is told"
            reach(stage, "a")
            stage.account("a")


# -- driver ---------------------------------------------------------------------------------------------------


def lose_device(stage: Stage) -> None:
    stage.daemon.table.set_lost(GPUS[1])


def library_error(stage: Stage) -> None:
    stage.daemon.table.set_faults(("*", "nvmlDeviceGetMemoryInfo", 999))


def library_hangs(stage: Stage) -> None:
    stage.daemon.table.set_faults(("*", "nvmlDeviceGetMemoryInfo", "hang"))


def mend(stage: Stage) -> None:
    stage.daemon.table.set_lost(GPUS[1], 0)
    stage.daemon.table.set_faults()


def test_the_driver_gives_way_while_idle_and_in_the_middle_of_a_switch(stage: Stage):
    with stage.running():
        reach(stage, "a")
        stage.account("a")
        mode = "a"
        faults = [lose_device, library_error, library_hangs] * rounds(1, 5)
        for fault in faults if rounds(0) else [lose_device, chance("driver").choice(faults[1:])]:
            print(f"{fault.__name__} at {mode}")
            if fault is lose_device or rounds(0):
                fault(stage)
                until(lambda: problems(stage) & {"device_lost", "devices_unreadable"}, why="it is told")
                mend(stage)
                until(lambda: not problems(stage), why="it is over")
                assert stage.account(mode)["runs"] == [], "nothing was restarted for that"
            target = "b" if mode == "a" else "a"
            id = stage.switch(target)
            assert id is not None
            until(lambda: moving(stage), why="it has begun")
            fault(stage)
            until(lambda: problems(stage) & {"device_lost", "devices_unreadable"}, why="it is told")
            mend(stage)
            ended = stage.ended(id)["state"]
            assert ended in ("succeeded", "rolled_back"), stage.story()
            mode = target if ended == "succeeded" else mode
            stage.account(mode)


# -- the whole machine ----------------------------------------------------------------------------------------


def reboot(stage: Stage, box: Sandbox, boot: str) -> None:
    """The daemon, the manager and every process are gone; what comes up is another boot of the same machine."""
    stage.kill()
    if stage.witness is not None:
        stage.witness.told()
        stage.witness.close()
        stage.witness = None
    stage.box = stage.daemon.box = box
    stage.root.joinpath("boot_id").write_text(f"{boot}\n")
    box.run(["mount", "--bind", str(stage.root / "boot_id"), "/proc/sys/kernel/random/boot_id"])


@pytest.mark.parametrize("restore", [True, False])
def test_the_machine_starts_anew(stage: Stage, restore: bool):
    stage.daemon.policy["restore_mode_at_start"] = restore
    with Sandbox() as second:
        with Sandbox() as first:
            stage.box = stage.daemon.box = first
            stage.daemon.start()
            reach(stage, "a")
            reboot(stage, second, "22222222-2222-4222-8222-222222222222")
        stage.daemon.table.settle()  # no driver holds memory over a boot
        with stage.running():
            if restore:
                seen = stage.account("a")
                newest = stage.daemon.rpc("operation.list")[0]
                assert (newest["kind"], newest["state"]) == ("restore", "succeeded")
                assert sorted(s for s, _ in seen["runs"]) == sorted(stage.modes["a"])
            else:
                status = stage.daemon.status()
                assert (status["desired_mode"], status["state"]) == ("a", "degraded"), json.dumps(status)
                assert stage.units() == {}
                reach(stage, "a")
                stage.account("a")


def test_the_machine_starts_anew_in_the_middle_of_a_switch(stage: Stage, tmp_path: Path):
    with Sandbox() as second:
        with Sandbox() as first:
            stage.box = stage.daemon.box = first
            stage.daemon.start()
            reach(stage, "a")
            id = stage.switch("b")
            until(lambda: moving(stage), why="it has begun")
            reboot(stage, second, "33333333-3333-4333-8333-333333333333")
        stage.daemon.table.settle()
        with stage.running():
            assert id is not None and stage.ended(id)["state"] == "succeeded", stage.story()
            stage.account("b")
