"""`gpumodd run` as a person starts it: XDG directories and nothing else, whatever they hold."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.support.daemon import RpcFailure, until

REPOSITORY = Path(__file__).parents[2]


class ByHand:
    """A machine. `with machine.run():` is a daemon on its directories, `machine.refused()` one that will not start."""

    def __init__(self, root: Path, *, configured: bool = True) -> None:
        self.root = root
        self.runtime, self.config, self.state = root / "run", root / "config/gpumodd", root / "state/gpumodd"
        self.socket = self.runtime / "gpumodd/gpumodd.sock"
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "HOME": str(root / "home"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(root / "config"),
            "XDG_STATE_HOME": str(root / "state"),
        }
        self.process: subprocess.Popen[Any] | None = None
        self.runtime.mkdir(parents=True)
        if configured:
            self.write("gpumodd.yaml", {"units": {"backend": "process"}, "devices": {"backend": "simulated"}})

    def write(self, name: str, content: object) -> None:
        """Write a configuration file; JSON is YAML."""
        path = self.config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    @property
    def log(self) -> str:
        path = self.root / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def argv(self, *before: str) -> list[str]:
        return [*before, sys.executable, "-m", "gpumodd", "run"]

    def run(self, *before: str, env: dict[str, str] | None = None, **kw: Any) -> Self:
        """Start it, behind the words of `before` if there are any, and wait for its first answer."""
        with (self.root / "log").open("ab") as log:
            began = time.monotonic()
            whole = self.env | (env or {})
            self.process = subprocess.Popen(self.argv(*before), env=whole, cwd="/", stdout=log, stderr=log, **kw)
        try:
            until(self._answers, within=20, why="the daemon answers")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None
        self.took_s = time.monotonic() - began
        return self

    def refused(self, *before: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        """Start it, expect it to end by itself, and return its exit status and what it said."""
        whole = self.env | (env or {})
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(self.argv(*before), check=False, env=whole, cwd="/", timeout=20, **streams)
        return done.returncode, done.stdout

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"it ended with {self.process.returncode}"
        try:
            self.rpc("daemon.hello")
        except OSError:
            return False
        return True

    def rpc(self, method: str, **params: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(self.socket))
            sock.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n")
            reply = json.loads(sock.makefile("rb").readline())
        if "error" in reply:
            raise RpcFailure(reply["error"])
        return reply["result"]

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(how)
        return int(self.process.wait(30))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()
