"""The show behind `gpumodd demo`: a real daemon, a real client and model servers without models, on a device that
is a line of text.

It makes a machine in a temporary directory, runs `gpumodctl` on it as a person would, and ends with a table in
which the device's own witness proves that memory was never handed out twice. It ends what it started and removes
what it wrote.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpumodd.demo.table import Device, DeviceTable

TOTAL_MIB = 24564
READY_S = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """One model server of the demo's machine."""

    id: str
    name: str
    vram_mib: int
    load_s: float
    more: tuple[str, ...] = ()


SERVERS = (
    Server("vllm-chat", "Llama-3.1-8B", 17000, 2.5),
    Server("vllm-embedding", "Qwen3-VL-Embedding-2B", 5000, 1.2),
    Server("vllm-embedding-code", "Qwen3-Embedding-0.6B", 2500, 0.7),
    Server("llama-code", "Qwen3-Coder-30B", 18500, 2.0, ("--linger-ms", "400")),
    Server("speech-asr", "Whisper", 3000, 0.8),
    Server("broken", "fails while loading", 2000, 2.0, ("--fail-at-s", "0.6")),
)
MODES: Mapping[str, tuple[str, ...]] = {
    "chat": ("vllm-chat", "speech-asr"),
    "code": ("llama-code", "vllm-embedding-code"),
    "rag": ("vllm-embedding", "vllm-embedding-code"),
    "huge": ("vllm-chat", "llama-code"),
    "broken": ("vllm-embedding", "broken"),
}


def show(*, fast: bool = False) -> int:
    """Run the demo; 0 when everything went as announced."""
    if shutil.which("gpumodctl", path=str(Path(sys.executable).parent)) is None:
        print("gpumodd demo: cannot find gpumodctl beside this Python; install the package first", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gpumodd-demo-") as root, _daemon(Path(root), fast) as stage:
        return _play(stage)


# -- the script -----------------------------------------------------------------------------------------------


def _play(stage: "Stage") -> int:
    stage.say("A machine with one GPU of 24564 MiB, and more models than fit. These are its modes:")
    stage.ctl("mode", "list")
    stage.say("Would `rag` fit? The same planner answers, and touches nothing:")
    stage.ctl("simulate", "rag")
    stage.say("Switch to `chat`. It is done when every member answers its health check:")
    stage.ctl("switch", "chat")
    stage.say("To `code`: its model needs the memory of `vllm-chat`, so it waits until that is really back;")
    stage.say("what fits already does not wait.")
    stage.ctl("switch", "code")
    stage.ctl("status")
    stage.say("What cannot fit is refused before anything is touched:")
    stage.ctl("switch", "huge", expect=4)
    stage.say("A member that fails brings the machine back to where it was, and says why:")
    stage.ctl("switch", "broken", expect=5)
    stage.say("And on to `rag`:")
    stage.ctl("switch", "rag")
    return _prove(stage)


def _prove(stage: "Stage") -> int:
    """The closing table: what the client says happened, beside what the device saw."""
    operations: list[dict[str, Any]] = stage.ask("operation", "list")
    status: dict[str, Any] = stage.ask("status")
    stage.say("What happened, newest first:")
    print(f"  {'operation':<15}{'ended':<13}{'seconds':>7}  {'stopped':<21}started")
    for op in operations:
        name = f"{op['kind']} {op['target']}"
        stopped, started = ", ".join(op["stopped"]) or "-", ", ".join(op["started"]) or "-"
        print(f"  {name:<15}{op['state']:<13}{op['seconds']:>7.2f}  {_fit(stopped):<21}{_fit(started)}")
    table = DeviceTable(stage.root / "devices.table").read()
    device = next(iter(table.devices))
    ready = sorted(s["id"] for s in status["services"] if s["phase"] == "ready")
    print()
    facts = (
        ("mode reached", status["mode"], status["mode"] == "rag"),
        ("state", status["state"], status["state"] == "converged"),
        ("ready", ", ".join(ready), ready == sorted(MODES["rag"])),
        ("device holds", f"{table.used_mib(device)} of {TOTAL_MIB} MiB", table.used_mib(device) == 7500),
        ("memory refused by the device", str(len(table.refusals)), not table.refusals),
        (
            "calls that ended as announced",
            f"{stage.calls - len(stage.surprises)} of {stage.calls}",
            not stage.surprises,
        ),
    )
    for what, value, good in facts:
        print(f"  {'ok  ' if good else 'BAD '}{what:<32}{value}")
    return 0 if all(good for _, _, good in facts) else 1


def _fit(text: str, width: int = 20) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# -- the stage ------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A running daemon in a directory of its own."""

    root: Path
    environ: dict[str, str]
    calls: int = 0
    surprises: list[str] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.surprises = []

    def say(self, text: str) -> None:
        """A line for the audience."""
        print(_styled(text, "1"), flush=True)

    def ctl(self, *words: str, expect: int = 0) -> None:
        """Run gpumodctl as a person would, output and all."""
        print(_styled(f"$ gpumodctl {' '.join(words)}", "36"), flush=True)
        status = subprocess.run([_program("gpumodctl"), *words], env=self.environ, check=False).returncode
        self.calls += 1
        if status != expect:
            self.surprises.append(f"gpumodctl {' '.join(words)}: exit {status}, {expect} was expected")
        print(flush=True)

    def ask(self, *words: str) -> Any:
        """Run gpumodctl --json and read its answer."""
        asked = subprocess.run(
            [_program("gpumodctl"), *words, "--json"], env=self.environ, stdout=subprocess.PIPE, check=True
        )
        return json.loads(asked.stdout)


def _styled(text: str, code: str) -> str:
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@contextmanager
def _daemon(root: Path, fast: bool) -> Iterator[Stage]:
    """The daemon on its temporary machine; its log is shown if it does not come up."""
    DeviceTable(root / "devices.table").create(Device("GPU-demo-0", 0, TOTAL_MIB, name="Simulated RTX"))
    _configure(root, 0.3 if fast else 1.0)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GPUMODD_")}
    environ |= {
        "GPUMODD_SOCKET": str(root / "gpumodd.sock"),
        "GPUMODD_CONFIG_DIR": str(root / "config"),
        "GPUMODD_STATE_DIR": str(root / "state"),
    }
    with (root / "log").open("wb") as log:
        daemon = subprocess.Popen([sys.executable, "-m", "gpumodd", "run"], env=environ, stdout=log, stderr=log)
    try:
        _wait_for(root / "gpumodd.sock", daemon, root / "log")
        yield Stage(root, environ)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)


def _wait_for(path: Path, daemon: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not path.exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"gpumodd demo: the daemon did not come up:\n{log.read_text(errors='replace')}")
        time.sleep(0.01)


def _configure(root: Path, pace: float) -> None:
    """Write the demo's configuration; `pace` scales the loads."""
    table = root / "devices.table"
    ports = _free_ports(len(SERVERS))
    files = {
        "gpumodd.yaml": (
            f"devices: {{backend: simulated, table: {json.dumps(str(table))}}}\n"
            "units: {backend: process}\n"
            "policy: {ram_reserve_mib: 64}\n"
        )
    }
    for server, port in zip(SERVERS, ports, strict=True):
        command: Sequence[str] = (
            *(sys.executable, "-m", "gpumodd.demo.model_server", "--table", str(table)),
            *("--port", str(port), "--vram-mib", str(server.vram_mib), "--load-s", str(server.load_s * pace)),
            *server.more,
        )
        files[f"services/{server.id}.yaml"] = (
            f"id: {server.id}\nname: {json.dumps(server.name)}\ndriver: exec\nport: {port}\n"
            f"vram_mib: {server.vram_mib}\nstartup_timeout_s: 30\noptions: {{command: {json.dumps(command)}}}\n"
        )
    for mode, members in MODES.items():
        files[f"modes/{mode}.yaml"] = f"id: {mode}\nname: {mode.title()}\nservices: {json.dumps(members)}\n"
    for name, text in files.items():
        path = root / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, all different: other demos may run beside this one."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
