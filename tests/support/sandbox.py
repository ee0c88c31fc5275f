"""A real `systemd --user` with its D-Bus and its journal, in a mount namespace of its own.

Owns the life of one sandbox; what happens inside the namespace is in `sandbox_holder`. The runtime directory
(with the bus), the home directory and the cgroups (the same hierarchy everywhere) are visible from outside
too, so a test may talk to the manager directly, or run a process inside with `popen` and `run`.

It needs root for the mounts. With `uid` the manager, the bus and everything run inside belong to that user;
take one between 1000 and 60000, others get no journal of their own.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.sandbox_holder import FAREWELL

REPOSITORY = Path(__file__).parents[2]
HOLDER = Path(__file__).with_name("sandbox_holder.py")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEEDED = ("unshare", "nsenter", "setpriv", "mount", "dbus-daemon", "busctl", "journalctl", "systemctl")
UNSHARE = ("unshare", "--mount", "--propagation", "private")
VENDOR_UNITS = Path("/usr/lib/systemd/user")
VENDOR_NAMES = (  # what a manager needs to start, stop and end; no user's sockets and daemons
    *("basic.target", "default.target", "exit.target", "shutdown.target"),
    *("sockets.target", "timers.target", "paths.target"),
    *("app.slice", "session.slice", "background.slice", "systemd-exit.service"),
)
OWN_UNITS = {
    # The manager finds a restarted bus again only if it started that bus itself. Tests end it as often as they like.
    "dbus.socket": "[Unit]\nDescription=Message bus socket\n[Socket]\nListenStream=%t/bus\nTriggerLimitIntervalSec=0\n",
    "dbus.service": (
        "[Unit]\nDescription=Message bus\nRequires=dbus.socket\nStartLimitIntervalSec=0\n"
        "[Service]\nType=notify\nNotifyAccess=main\nSlice=session.slice\n"
        "ExecStart=/usr/bin/dbus-daemon --session --address=systemd: --nofork --nopidfile"
        " --systemd-activation --syslog-only\n"
    ),
    "default.target.wants/dbus.service": "",
}


class SandboxError(Exception):
    """The sandbox did not come up; the text ends with the log of what runs inside."""


def missing() -> str:
    """Why no sandbox can run on this machine, or an empty string."""
    if os.geteuid() != 0:
        return "needs root for a private mount namespace"
    if not Path("/lib/systemd/systemd").exists() or not Path("/lib/systemd/systemd-journald").exists():
        return "systemd is not installed"
    if absent := [name for name in NEEDED if shutil.which(name, path=PATH) is None]:
        return f"not installed: {' '.join(absent)}"
    if not Path("/etc/machine-id").exists() or not Path("/etc/machine-id").read_text().strip():
        return "journald needs /etc/machine-id"
    if "cgroup2" not in Path("/proc/filesystems").read_text():
        return "the kernel has no cgroup2"
    probe = subprocess.run(
        [*UNSHARE, "sh", "-c", "umount --lazy /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no private cgroup2 mount: {probe.stderr.strip()}" if probe.returncode else ""


class Sandbox:
    """One manager. `with Sandbox() as box:` starts it; leaving the block ends every process in it."""

    def __init__(self, uid: int | None = None) -> None:
        self.uid = uid or 0
        self.root = Path()
        self.runtime_dir = Path()
        self.home = Path()
        self.env: dict[str, str] = {}
        self._holder: subprocess.Popen[str] | None = None
        self._slice = ""
        self._log = ""

    def __enter__(self) -> "Sandbox":
        self.root = Path(tempfile.mkdtemp(prefix="gpumod-sandbox-"))
        self.root.chmod(0o755)
        self.runtime_dir, self.home = self.root / "run", self.root / "home"
        self._write_files()
        number = self.uid or random.SystemRandom().randrange(70_000, 2_000_000)
        self._slice = f"user.slice/user-{number}.slice"
        # The address is an abstract socket: nothing to clean up, and reachable from any mount namespace.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind("\0gpumod-sandbox-" + self.root.name)
            ready.settimeout(20)
            try:
                self._start(number, "@gpumod-sandbox-" + self.root.name)
                while b"READY=1" not in ready.recv(4096):
                    pass
                self._wait_for_bus()
            except BaseException as error:
                self.__exit__()
                if isinstance(error, OSError | SandboxError):
                    raise SandboxError(f"{error}\n{self.log()}") from error
                raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._holder is not None:
            assert self._holder.stdin and self._holder.stdout
            with contextlib.suppress(BrokenPipeError):
                self._holder.stdin.write(FAREWELL)
                self._holder.stdin.close()
            self._holder.wait(timeout=30)
            self._holder.stdout.close()
            self._holder = None
        self._log = self.log()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def cgroup(self) -> str:
        """The cgroup of everything in this sandbox, as /proc/PID/cgroup spells it."""
        return "/" + self._slice

    @property
    def unit_dir(self) -> Path:
        """Where generated units belong."""
        return self.home / ".config/systemd/user"

    def inside(self, *argv: str | Path, cwd: Path = REPOSITORY) -> list[str]:
        """The command line that runs this one inside, as the sandbox's user, in a cgroup that is not the
        manager's."""
        assert self._holder is not None
        enter = f'echo 0 >"/sys/fs/cgroup/{self._slice}/session.scope/cgroup.procs" && cd "$0" && exec "$@"'
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"] if self.uid else []
        namespace = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        return [str(word) for word in ("nsenter", namespace, "sh", "-c", enter, cwd, *drop, *argv)]

    def seen(self, path: str | Path) -> Path:
        """From outside, the file that this path names inside."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def popen(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path = REPOSITORY, **kw: Any
    ) -> subprocess.Popen[Any]:
        """Start a process inside; its pid is the program's own. Its environment is the sandbox's and `env` on top,
        nothing of the test run's."""
        return subprocess.Popen(self.inside(*argv, cwd=cwd), env={**self.env, **(env or {})}, **kw)

    def run(self, argv: Sequence[str | Path], *, check: bool = True, timeout: float = 30, **kw: Any) -> str:
        """Run a process inside to its end and return its output, errors included."""
        with self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw) as process:
            try:
                out, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if check and process.returncode:
            raise SandboxError(f"{argv} ended with {process.returncode}:\n{out}")
        return out

    def systemctl(self, *args: str, check: bool = True) -> str:
        return self.run(["systemctl", "--user", *args], check=check).strip()

    def log(self) -> str:
        """What the holder, the manager and journald said to their standard error."""
        path = self.root / "sandbox.log"
        return path.read_text(errors="replace") if path.exists() else self._log

    def _write_files(self) -> None:
        for folder in (self.runtime_dir, self.unit_dir, self.home / ".local/state", self.home / ".cache"):
            folder.mkdir(parents=True)
        for path in (self.runtime_dir, self.home, *self.home.rglob("*")):
            path.chmod(0o700)
            os.chown(path, self.uid, self.uid)
        units = self.root / "units"
        (units / "default.target.wants").mkdir(parents=True)
        for name in VENDOR_NAMES:
            if (VENDOR_UNITS / name).exists():
                shutil.copyfile(VENDOR_UNITS / name, units / name)
        for name, text in OWN_UNITS.items():
            if text:
                (units / name).write_text(text)
            else:
                (units / name).symlink_to(Path("..", Path(name).name))

    def _start(self, number: int, notify: str) -> None:
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{PATH}",
            "LANG": "C.UTF-8",
            "USER": "sandbox" if self.uid else "root",
            "LOGNAME": "sandbox" if self.uid else "root",
            "SHELL": "/bin/sh",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime_dir),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_STATE_HOME": str(self.home / ".local/state"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.runtime_dir}/bus",
        }
        unit_path = [self.unit_dir, self.runtime_dir / "systemd/transient", self.root / "units"]
        spec = {
            "box": str(self.root),
            "uid": self.uid,
            "number": number,
            "python_prefix": sys.base_prefix,
            "env": {**self.env, "NOTIFY_SOCKET": notify, "SYSTEMD_UNIT_PATH": ":".join(map(str, unit_path))},
        }
        with (self.root / "sandbox.log").open("ab") as log:
            self._holder = subprocess.Popen(
                [*UNSHARE, sys.executable, "-I", "-S", HOLDER, json.dumps(spec)],
                env={"PATH": PATH},
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # a Ctrl-C must not end it before it has cleaned up
            )
        assert self._holder.stdout
        if self._holder.stdout.readline() != "started\n":
            raise SandboxError("the sandbox did not start")

    def _wait_for_bus(self) -> None:
        """The manager says READY before it has its name on the bus."""
        deadline = time.monotonic() + 20
        names = ["busctl", "--user", "list", "--acquired"]
        while "org.freedesktop.systemd1" not in (out := self.run(names, check=False)):
            if time.monotonic() > deadline:
                raise SandboxError(f"the manager is not on the bus: {out}")
            time.sleep(0.01)
