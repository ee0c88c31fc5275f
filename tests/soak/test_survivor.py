"""A process that survives SIGKILL, for real: held by a tracer at the door of its exit."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.soak.stage import PATIENCE_S, RpcFailure, Stage, rounds
from tests.support.daemon import until

pytestmark = pytest.mark.real


@contextmanager
def unkillable(pid: int) -> Iterator[None]:
    """Inside the block no signal ends this process."""
    grip = Path(__file__).with_name("grip.py")
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, "-I", "-S", str(grip), str(pid)], text=True, **streams) as holder:
        assert holder.stdin and holder.stdout
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.stdin.close()


def reach(stage: Stage, mode: str) -> None:
    id = stage.switch(mode)
    assert id is not None and stage.ended(id)["state"] == "succeeded", stage.story()


def refused(stage: Stage, method: str, **params: Any) -> set[str]:
    """Why it is: the codes."""
    with pytest.raises(RpcFailure) as caught:
        stage.daemon.rpc(method, **params)
    return {reason["code"] for reason in caught.value.data["details"]["reasons"]}


def trapped(stage: Stage, pid: int) -> bool:
    """It is told, counted and still the one process of its service."""
    status = stage.daemon.status()
    told = {(p["code"], p["service"]) for p in status["problems"]}
    assert stage.cgroups()["stuck"] == {pid}
    return ("stop_failed", "stuck") in told and stage.daemon.phases()["stuck"] == "failed"


@pytest.mark.parametrize("who", ["server", "engine"] if rounds(0) else ["engine"])
def test_what_fits_around_it_works_and_it_is_never_started_beside_itself(stage: Stage, who: str):
    stage.impatient()
    stage.service("stuck", 9000, *(["--engine-child"] if who == "engine" else []), stop_timeout_s=1)
    stage.service("beside", 14000)
    stage.service("large", 20000)
    stage.mode("s", "stuck", "keeper")
    stage.mode("l", "large", "beside")  # one of them comes to stand beside the survivor
    stage.mode("ll", "large", "a1")  # no room for both
    stage.mode("around", "b1", "b3")
    with stage.running():
        reach(stage, "s")
        pid = next(hold.pid for hold in stage.daemon.table.read().holds if hold.mib == 9000)
        known = {pid, stage.units()["stuck"]}
        with unkillable(pid):
            id = stage.switch("l")
            assert id is not None
            until(lambda: {"large", "beside"} <= stage.daemon.ready(), why="what fits does not wait for it")
            ended = stage.ended(id)
            assert (ended["state"], ended["error"]["code"]) == ("failed", "stop_failed"), stage.story()
            assert trapped(stage, pid), stage.story()
            status = stage.daemon.status()
            assert status["state"] == "blocked"
            assert sum(device["committed_mib"] for device in status["devices"]) == 9000 + 20000 + 14000
            assert refused(stage, "mode.switch", id="ll") == {"vram_insufficient"}
            assert refused(stage, "service.start", id="stuck") & {"stop_failed"}
            reach(stage, "around")
            stage.kill()
            stage.daemon.start()
            until(lambda: trapped(stage, pid), within=PATIENCE_S, why="the next daemon meets it, too")
            assert refused(stage, "service.start", id="stuck") & {"stop_failed"}
            reach(stage, "l")
        until(lambda: "stuck" not in stage.cgroups(), why="let go, it ends")
        seen = stage.account("l")
        assert {pid for service, pid in seen["runs"] if service == "stuck"} <= known, "it was not started again"
        assert stage.daemon.status()["problems"] == []
        reach(stage, "s")
        stage.account("s")
