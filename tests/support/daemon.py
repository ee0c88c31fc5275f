"""A real daemon for tests: its configuration written, its process started, its client run, its end seen to.

The same harness drives the process backend on the bare machine and systemd in the sandbox; devices are the table,
read by the simulated backend or through the real pynvml on the stub.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from gpumodd.demo.table import Device, DeviceTable
from gpumodd.runtime.replay import Replay
from tests.support import nvml_stub
from tests.support.sandbox import Sandbox

GPU = "GPU-11111111-0000-0000-0000-000000000001"
TOTAL_MIB = 24564


_handed_out: set[int] = set()


def free_port() -> int:
    """A port nobody listens on now, and no other service of these tests was given: the kernel may offer one twice."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _handed_out:
            _handed_out.add(port)
            return port


def until(what: Callable[[], Any], *, within: float = 15.0, why: str = "") -> Any:
    """The first truthy result of `what`; fails when there is none in time."""
    deadline = time.monotonic() + within
    while True:
        result = what()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {why or what}")
        time.sleep(0.01)


class RpcFailure(Exception):
    """A JSON-RPC error reply."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.number = error["code"]
        self.code = error["data"]["code"]
        self.data = error["data"]


class Daemon:
    """`with Daemon(root, box=…) as d:` runs it; `d.rpc(method, **params)` and `d.ctl(*words)` ask it."""

    def __init__(
        self, root: Path, *, box: Sandbox | None = None, nvml: bool = False, python: str = sys.executable
    ) -> None:
        self.box = box
        self.root = root
        self.python = python
        self.config = root / "config"
        self.state = root / "state"
        self.socket = root / "s"
        self.table = DeviceTable(root / "devices.table")
        self.nvml = nvml
        self.policy: dict[str, Any] = {"ram_reserve_mib": 64}
        self.settings: dict[str, Any] = {}
        self.process: subprocess.Popen[Any] | None = None
        self.program = [python, "-m", "gpumodd", "run"]
        self.extra_env: dict[str, str] = {}
        root.mkdir(parents=True, exist_ok=True)
        self.table.create(Device(GPU, 0, TOTAL_MIB, name="Stub GPU"))
        self._own(root)

    # -- configuration ----------------------------------------------------------------------------------------

    def service(self, id: str, vram_mib: int | None = 1000, *server: str, port: int | None = None, **keys: Any) -> int:
        """Write a service that is the demo's model server with these arguments; returns its port."""
        port = port or free_port()
        command = [self.python, "-m", "gpumodd.demo.model_server", "--table", str(self.root / "devices.table")]
        command += ["--port", str(port), "--vram-mib", str(vram_mib or 0), "--alias", id, *map(str, server)]
        spec = {"id": id, "driver": "exec", "port": port, "options": {"command": command}, "startup_timeout_s": 20}
        if vram_mib is not None:
            spec["vram_mib"] = vram_mib
        self.write(f"services/{id}.yaml", spec | keys)
        return port

    def command(self, id: str, *command: str, **keys: Any) -> None:
        """Write a service that is this command line."""
        self.write(f"services/{id}.yaml", {"id": id, "driver": "exec", "options": {"command": list(command)}} | keys)

    def mode(self, id: str, *services: str) -> None:
        self.write(f"modes/{id}.yaml", {"id": id, "name": id.title(), "services": list(services)})

    def write(self, name: str, content: object) -> None:
        """Write a configuration file; JSON is YAML."""
        path = self.config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        self._own(self.config, path.parent, path)

    def _own(self, *paths: Path) -> None:
        if self.box is not None and self.box.uid:
            for path in paths:
                for each in [path, *path.parents] if self.root in path.parents else [path]:
                    if each == self.root or self.root in each.parents:
                        os.chown(each, self.box.uid, self.box.uid)
            for each in self.root.rglob("*"):
                os.chown(each, self.box.uid, self.box.uid)

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        env = {
            "GPUMODD_SOCKET": str(self.socket),
            "GPUMODD_CONFIG_DIR": str(self.config),
            "GPUMODD_STATE_DIR": str(self.state),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **self.extra_env,
        }
        return env | nvml_stub.environment(self.root / "devices.table") if self.nvml else env

    def popen(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **kw: Any) -> "subprocess.Popen[Any]":
        """Start a program where the daemon lives."""
        if self.box is not None:
            return self.box.popen(argv, env=self.env | (env or {}), **kw)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("GPUMODD_", "XDG_", "DBUS_"))}
        return subprocess.Popen(list(argv), env=clean | self.env | (env or {}), **kw)

    def configure(self) -> None:
        """Write gpumodd.yaml."""
        devices: dict[str, Any] = (
            {"backend": "nvml"}
            if self.nvml
            else {
                "backend": "simulated",
                "table": str(self.root / "devices.table"),
            }
        )
        backend = "systemd" if self.box is not None else "process"
        self.write(
            "gpumodd.yaml",
            {"devices": devices, "units": {"backend": backend}, "policy": self.policy} | self.settings,
        )

    def start(self, *, wait: bool = True) -> Self:
        self.configure()
        with self.log_path.open("ab") as log:
            self.process = self.popen(self.program, stdout=log, stderr=log)
        if wait:
            try:
                until(self._answers, within=20, why="the daemon answers")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log}") from None
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}")
        try:
            self.rpc("daemon.hello")
        except OSError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon and return its exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        return int(self.process.wait(30))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self.box is not None:
            self._end_units()
        if self.process is not None and self.process.poll() is None:
            self.stop()
        elif self.process is not None and self.process.returncode == -signal.SIGKILL and self.box is None:
            self.start()  # leftovers of a killed daemon are ended by the next one
            self.stop()
        if not any(exc):
            self.check_recordings()

    def check_recordings(self) -> None:
        """What every daemon here was given leads a fresh engine to the same effects and the same state."""
        for path in sorted((self.state / "events").glob("*.jsonl.gz")):
            replay = Replay(path)
            batches = sum(1 for _ in replay.batches())
            assert replay.difference is None, f"{path.name} differs after {batches} batches: {replay.difference}"
            assert not replay.broke, f"{path.name}: the engine broke after {batches} batches: {replay.broke}"

    def _end_units(self) -> None:
        assert self.box is not None
        names = [f"gpumod-{path.stem}.service" for path in (self.config / "services").glob("*.yaml")]
        if self.process is not None and self.process.poll() is None:
            with suppress(RpcFailure, OSError):
                self.rpc("mode.switch", id="blank", wait=True, force=True)
        self.box.systemctl("stop", *names, check=False)
        self.box.systemctl("reset-failed", *names, check=False)

    @property
    def log_path(self) -> Path:
        return self.root / "daemon.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # -- asking -----------------------------------------------------------------------------------------------

    def rpc(self, method: str, **params: Any) -> Any:
        """Call a method on a connection of its own; an error reply raises RpcFailure."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            with self._as_its_user():
                sock.connect(str(self.socket))
            request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            sock.sendall(json.dumps(request).encode() + b"\n")
            for line in sock.makefile("rb"):
                reply = json.loads(line)
                if reply.get("id") == 1:
                    if "error" in reply:
                        raise RpcFailure(reply["error"])
                    return reply["result"]
        raise ConnectionError("the daemon hung up")

    @contextmanager
    def _as_its_user(self) -> Iterator[None]:
        """The daemon talks to its own user only; the kernel tells it who connects."""
        uid = self.box.uid if self.box is not None else 0
        if not uid:
            yield
            return
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)

    def switch(self, mode: str, **params: Any) -> dict[str, Any]:
        """Switch and wait; returns the operation."""
        return self.rpc("mode.switch", id=mode, wait=True, **params)

    def status(self) -> dict[str, Any]:
        return self.rpc("status.get")

    def phases(self) -> dict[str, str]:
        return {s["id"]: s["phase"] for s in self.status()["services"]}

    def ready(self) -> set[str]:
        return {s for s, phase in self.phases().items() if phase == "ready"}

    def ctl(
        self, *words: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run gpumodctl; with `check`, anything but exit 0 fails."""
        return self.run("gpumodctl", *words, check=check, env=env)

    def run(
        self, module: str, *words: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run one of the programs where the daemon lives."""
        argv = [self.python, "-m", module, *words]
        with self.popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            out, err = process.communicate(timeout=60)
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        assert not check or done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def used_mib(self) -> int:
        return self.table.read().used_mib(GPU)

    def refusals(self) -> list[Any]:
        """Allocations the device had to refuse: any of them is an over-commit that somebody tried."""
        return self.table.read().refusals
