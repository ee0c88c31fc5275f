"""No root: the user manager, the bus and the daemon belong to an ordinary user."""

from pathlib import Path

import pytest

from tests.support.daemon import Daemon, until
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.real

UID = 1234


def test_switches_as_an_ordinary_user(sandbox_possible: None, tmp_path_factory: pytest.TempPathFactory):
    with Sandbox(uid=UID) as box:
        d = Daemon(box.root / "d", box=box, nvml=True)
        d.service("chat", 16000, "--load-s", "0.2")
        d.service("code", 15000, "--load-s", "0.2", "--linger-ms", "200")
        d.service("bad", 1000, "--fail-at-s", "0.2", "--load-s", "9", "--last-words", "no such layer")
        d.mode("chat", "chat")
        d.mode("code", "code")
        d.mode("bad", "bad")
        with d:
            assert d.process is not None
            assert Path(f"/proc/{d.process.pid}").stat().st_uid == UID
            for mode in ("chat", "code", "chat"):
                assert d.switch(mode)["started"] == [mode]
            pid = d.rpc("service.get", id="chat")["pid"]
            assert Path(f"/proc/{pid}").stat().st_uid == UID
            failed = d.ctl("switch", "bad", check=False)
            assert failed.returncode == 5, failed.stderr
            assert "no such layer" in failed.stderr
            until(lambda: d.status()["state"] == "converged")
            assert d.ready() == {"chat"}
            assert d.refusals() == []
