"""The sandbox is a real user manager, and nothing of it outlives the test."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.sandbox import REPOSITORY, Sandbox, SandboxError

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("sandbox_possible")]
UID = random.SystemRandom().randrange(20_000, 59_000)  # two test runs may share a machine


def processes_below(root: str) -> list[int]:
    """Processes whose environment names this sandbox, wherever they went."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if root.encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def cgroups_of(box: Sandbox) -> list[str]:
    return [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if folder.endswith(box.cgroup)]


def runs_sleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


def wait_until(condition, what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_unit_runs_and_its_output_is_in_the_journal(sandbox: Sandbox) -> None:
    sandbox.run(
        [
            "systemd-run",
            "--user",
            "--wait",
            "--unit=hello",
            "-p",
            "SyslogIdentifier=hello",
            "echo",
            "well met",
        ]
    )
    wait_until(
        lambda: "well met" in sandbox.run(["journalctl", "-t", "hello", "-o", "cat"], check=False),
        "no journal",
    )
    assert sandbox.cgroup in Path(f"/proc/{sandbox.systemctl('show', '-P', 'MainPID', 'dbus')}/cgroup").read_text()


def test_what_runs_inside_is_outside_of_the_managers_cgroup(sandbox: Sandbox) -> None:
    assert f"0::{sandbox.cgroup}/session.scope" in sandbox.run(["cat", "/proc/self/cgroup"])
    with sandbox.popen(["sleep", "60"]) as process:
        wait_until(
            lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n",
            "popen's pid is not the program's",
        )
        process.kill()


def test_nothing_of_the_test_runs_environment_gets_in(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUMOD_SECRET", "x")
    assert "GPUMOD_SECRET" not in sandbox.run(["env"])
    assert "A=b" in sandbox.run(["env"], env={"A": "b"})


def test_an_unprivileged_manager() -> None:
    with Sandbox(UID) as box:
        box.run(["systemd-run", "--user", "--wait", "--unit=who", "-p", "SyslogIdentifier=who", "id", "-u"])
        wait_until(lambda: str(UID) in box.run(["journalctl", "-t", "who", "-o", "cat"], check=False), "no journal")
        assert box.run([sys.executable, "-c", "import os, sdbus; print(os.getuid())"]).strip() == str(UID)
        with pytest.raises(SandboxError, match="Permission denied"):
            box.run(["touch", "/etc/passwd"])


def test_the_bus_can_be_restarted() -> None:
    with Sandbox() as box:
        before = box.systemctl("show", "-P", "MainPID", "dbus")
        box.systemctl("restart", "dbus.service")
        assert before != box.systemctl("show", "-P", "MainPID", "dbus") != "0"
        wait_until(
            lambda: "systemd1" in box.run(["busctl", "--user", "list", "--acquired"], check=False),
            "no manager",
        )


@pytest.mark.parametrize("uid", [None, UID], ids=["root", "user"])
def test_nothing_is_left(uid: int | None) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    with Sandbox(uid) as box:
        box.run(["systemd-run", "--user", "--unit=deaf", "sh", "-c", "trap '' TERM; setsid sleep 600 & sleep 600"])
        stray = box.popen(["sleep", "600"])
        wait_until(lambda: runs_sleep(stray.pid), "it did not start")
        assert processes_below(str(box.root))
        assert cgroups_of(box)
    assert stray.wait() == -9
    assert processes_below(str(box.root)) == []
    assert cgroups_of(box) == []
    assert not box.root.exists()
    assert Path("/proc/self/mounts").read_text() == mounts


def test_nothing_is_left_when_the_test_run_is_killed() -> None:
    code = (
        "import time; from tests.support.sandbox import Sandbox\n"
        "with Sandbox() as box: print(box.root, box.cgroup, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as run:
        assert run.stdout
        root, cgroup = run.stdout.readline().split()
        run.kill()
    wait_until(lambda: not processes_below(root), "processes are left")
    wait_until(lambda: not Path(root).exists(), "files are left")
    assert not [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if folder.endswith(cgroup)]


def test_a_sandbox_that_cannot_start_says_why() -> None:
    with Sandbox(UID), pytest.raises(SandboxError, match="File exists"), Sandbox(UID):
        pass
