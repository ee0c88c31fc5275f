"""The daemon as the README installs it: the program in ~/.local/bin, the two files of contrib as they are, a
configuration in ~/.config, and not one variable."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpumodd.demo.table import Device, DeviceTable
from tests.support.daemon import free_port, until
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent


class Home:
    """Somebody's machine, with gpumodd's units not started yet."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.table = box.home / "devices.table"
        DeviceTable(self.table).create(Device("GPU-a-service-0", 0, 24564))
        (box.home / ".local/bin").mkdir(parents=True)
        for name in ("gpumodd", "gpumodctl"):
            (box.home / ".local/bin" / name).symlink_to(PROGRAMS / name)
        self.write("gpumodd.yaml", {"devices": {"backend": "simulated", "table": str(self.table)}})
        for id in ("one", "two"):
            self.write(f"services/{id}.yaml", self._service(id, 1000))
        self.write("modes/pair.yaml", {"id": "pair", "services": ["one", "two"]})
        for unit in (ROOT / "contrib/systemd").iterdir():
            shutil.copy(unit, box.unit_dir / unit.name)
        quick = box.unit_dir / "gpumodd.service.d/quick.conf"
        quick.parent.mkdir()
        quick.write_text("[Service]\nWatchdogSec=3\n")  # the shipped 30 would be a long test
        box.systemctl("daemon-reload")

    def _service(self, id: str, vram_mib: int) -> dict[str, Any]:
        port = free_port()
        command = [sys.executable, "-m", "gpumodd.demo.model_server", "--table", str(self.table)]
        command += ["--port", str(port), "--vram-mib", str(vram_mib)]
        return {"id": id, "driver": "exec", "port": port, "vram_mib": vram_mib, "options": {"command": command}}

    def write(self, name: str, content: object) -> None:
        path = self.box.home / ".config/gpumodd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def ctl(self, *words: str) -> Any:
        argv = [self.box.home / ".local/bin/gpumodctl", *words, "--json"]
        with self.box.popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path("/")) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out + self.box.systemctl("status", "gpumodd.service", check=False)
        return json.loads(out)

    def pids(self) -> dict[str, int]:
        return {s["id"]: s["pid"] for s in self.ctl("status")["services"] if s["phase"] == "ready"}

    def settles(self) -> str:
        """The mode once everything wanted was seen to be ready; a fresh daemon has to ask them first."""
        until(lambda: self.ctl("status")["state"] == "converged", why="converged")
        return str(self.ctl("status")["mode"])

    def show(self, unit: str, key: str) -> str:
        return self.box.systemctl("show", "--value", "-p", key, unit)

    def daemon(self) -> int:
        return int(self.show("gpumodd.service", "MainPID"))


@pytest.fixture(scope="module")
def home(sandbox_possible: None) -> Iterator[Home]:
    if not (PROGRAMS / "gpumodd").exists():
        pytest.skip("the package is not installed beside this Python")
    with Sandbox() as box:
        home = Home(box)
        box.systemctl("start", "gpumodd.socket")
        yield home
        home.ctl("switch", "blank")
        box.systemctl("stop", "gpumodd.socket", "gpumodd.service")


def test_the_first_client_starts_the_daemon(home: Home):
    assert home.show("gpumodd.service", "ActiveState") == "inactive"
    socket = home.box.runtime_dir / "gpumodd/gpumodd.sock"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (socket.parent, socket)] == [0o700, 0o600]
    assert home.ctl("version")["gpumodd"]["pid"] == home.daemon()
    assert home.show("gpumodd.service", "SubState") == "running"
    assert (home.box.home / ".local/state/gpumodd/lock").read_text().strip() == str(home.daemon())


def test_services_are_units_in_a_slice_of_their_own(home: Home):
    assert home.ctl("switch", "pair")["started"] == ["one", "two"]
    for id, pid in home.pids().items():
        assert home.show(f"gpumod-{id}.service", "Slice") == "gpumod.slice"
        assert "/gpumod.slice/" in Path(f"/proc/{pid}/cgroup").read_text()
    assert "gpumod.slice" not in Path(f"/proc/{home.daemon()}/cgroup").read_text()


def test_a_stop_of_the_daemon_leaves_them_and_the_next_client_brings_it_back(home: Home):
    home.ctl("switch", "pair")
    before = home.pids()
    home.box.systemctl("stop", "gpumodd.service")
    assert home.show("gpumodd.service", "Result") == "success"
    assert (home.box.runtime_dir / "gpumodd/gpumodd.sock").is_socket()
    assert [home.show(f"gpumod-{id}.service", "ActiveState") for id in before] == ["active", "active"]
    assert home.settles() == "pair"
    assert home.pids() == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_systemd_starts_it_again_and_nothing_else_notices(home: Home, how: signal.Signals):
    """A daemon that hangs is ended by the watchdog."""
    home.ctl("switch", "pair")
    before, daemon = home.pids(), home.daemon()
    os.kill(daemon, how)
    until(lambda: home.daemon() not in (0, daemon), within=25, why="another daemon")
    assert home.settles() == "pair"
    assert home.pids() == before


def test_systemctl_reads_its_state_as_a_person_would(home: Home):
    home.ctl("status")
    assert home.box.systemctl("is-active", "gpumodd.service") == "active"
    assert home.box.systemctl("list-units", "--failed", "--plain", "--no-legend") == ""
