"""Runs inside the sandbox's mount namespace: makes it, holds it, and takes everything in it down at the end.

Owns the mounts, the cgroups, journald and the user manager. It ends when its standard input ends, so a test
run that is killed leaves nothing behind either. Started by `tests.support.sandbox` with one JSON object.
"""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

FAREWELL = "the files are mine"
CGROUPS = Path("/sys/fs/cgroup")
PR_SET_CHILD_SUBREAPER = 36
JOURNALD_CONF = """\
[Journal]
Storage=persistent
Audit=no
ReadKMsg=no
ForwardToSyslog=no
ForwardToWall=no
"""


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


def make_mounts(box: Path, python_prefix: str, uid: int) -> None:
    # The host's journal, buses and manager are out of sight; `/run/systemd/system` says "booted by systemd".
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/log")
    for folder in (
        "/run/systemd/system",
        "/run/systemd/journal",
        "/run/systemd/journald.conf.d",
        "/var/log/journal",
    ):
        Path(folder).mkdir(parents=True)
    Path("/run/systemd/journald.conf.d/sandbox.conf").write_text(JOURNALD_CONF)
    # Only a persistent journal is split by user, so that an unprivileged user can read the own part of it;
    # journald writes one from the start when it believes that the early journal has been flushed.
    Path("/run/systemd/journal/flushed").touch()
    subprocess.run(["umount", "--lazy", str(CGROUPS)], check=True)
    mount("-t", "cgroup2", "cgroup2", str(CGROUPS))
    if uid:
        name_user(box, uid)
        open_python(box, python_prefix)


def name_user(box: Path, uid: int) -> None:
    """dbus-daemon refuses a uid without a passwd entry."""
    for path, line in (
        (Path("/etc/passwd"), f"sandbox:x:{uid}:{uid}::{box}/home:/bin/sh\n"),
        (Path("/etc/group"), f"sandbox:x:{uid}:\n"),
    ):
        copy = box / path.name
        copy.write_text(path.read_text() + line)
        copy.chmod(0o644)
        mount("--bind", str(copy), str(path))


def open_python(box: Path, prefix: str) -> None:
    """Where the interpreter lives below a private home directory, show it alone, in a readable one."""
    closed = [parent for parent in Path(prefix).parents if not parent.stat().st_mode & 0o001]
    if closed:
        stand_in = box / "python"
        stand_in.mkdir()
        mount("--bind", prefix, str(stand_in))
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(closed[-1]))
        Path(prefix).mkdir(parents=True)
        mount("--move", str(stand_in), prefix)
        stand_in.rmdir()


def enter(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text("0")


def make_slice(slice_: Path) -> None:
    """Fails when the number is taken."""
    while True:
        slice_.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another sandbox has just removed the empty parent
            slice_.mkdir()
            return


def make_cgroups(slice_: Path, service: Path, uid: int) -> None:
    for folder in (service, slice_ / "session.scope", slice_ / "journald.scope"):
        folder.mkdir()
    if uid:  # what systemd delegates to a user's manager
        for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(service / name, uid, uid)


def start(spec: dict, slice_: Path, service: Path) -> None:
    """journald, then the manager; each in its cgroup from its first instruction on."""
    log = sys.stderr
    enter(slice_ / "journald.scope")
    subprocess.Popen(["/lib/systemd/systemd-journald"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    while not Path("/run/systemd/journal/stdout").exists():
        time.sleep(0.002)
    enter(service)
    subprocess.Popen(
        ["/lib/systemd/systemd", "--user"],
        env=spec["env"],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        user=spec["uid"],
        group=spec["uid"],
        extra_groups=[],
    )
    enter(CGROUPS)


def take_down(slice_: Path) -> None:
    """Kill all, reap all, then remove the cgroups from the leaves up."""
    (slice_ / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        reap()
        try:
            for folder, _, _ in os.walk(slice_, topdown=False):
                Path(folder).rmdir()  # EBUSY while a killed process is still on its way out
            break
        except OSError:
            time.sleep(0.005)
    with contextlib.suppress(OSError):  # another sandbox, or the machine's own user.slice
        slice_.parent.rmdir()


@functools.cache
def wait_for_the_end() -> str:
    """Blocks until the test run closes the pipe or is gone; returns what it said last."""
    return sys.stdin.read()


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    spec = json.loads(sys.argv[1])
    box, number = Path(spec["box"]), spec["number"]
    slice_ = CGROUPS / "user.slice" / f"user-{number}.slice"  # journald knows a user's unit by this path
    service = slice_ / f"user@{number}.service"
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        make_mounts(box, spec["python_prefix"], spec["uid"])
        make_slice(slice_)
        try:
            make_cgroups(slice_, service, spec["uid"])
            start(spec, slice_, service)
            print("started", flush=True)
            wait_for_the_end()
        finally:
            take_down(slice_)
    except Exception:
        traceback.print_exc()
        print("failed", flush=True)
    if wait_for_the_end() != FAREWELL:  # the test run was killed: nobody else removes the files
        shutil.rmtree(box, ignore_errors=True)


if __name__ == "__main__":
    main()
