"""Without a network: nothing but a loopback of its own, which is all the core needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fixtures import require_real

ROOT = Path(__file__).parents[2]

# Brings up the loopback of a fresh network namespace, shows that there is nothing else, and becomes the program.
ALONE = """
import fcntl, os, socket, struct, sys
assert os.listdir("/sys/class/net") and [name for _, name in socket.if_nameindex()] == ["lo"], socket.if_nameindex()
with socket.socket() as any_socket:
    flags = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
    fcntl.ioctl(any_socket, 0x8914, flags)  # SIOCSIFFLAGS
os.execvp(sys.argv[1], sys.argv[1:])
"""


def _alone(*argv: object, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a program where there is no network."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        require_real("needs root and unshare for a network namespace of its own")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GPUMODD_", "XDG_", "PYTEST_"))}
    return subprocess.run(
        ["unshare", "--net", "--", sys.executable, "-c", ALONE, *map(str, argv)],
        cwd=ROOT,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.real
def test_the_demo():
    shown = _alone(Path(sys.executable).with_name("gpumodd"), "demo", "--fast")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "ok  mode reached                    rag" in shown.stdout


@pytest.mark.real
@pytest.mark.parametrize("backend", ["process", "systemd"])
def test_modes_follow_each_other(sandbox_possible: None, backend: str):
    """The scenario of test_switch, whole: daemon, client, bus, systemd and model servers are in the namespace."""
    scenario = f"tests/system/test_switch.py::test_modes_follow_each_other_and_the_truth_is_told[{backend}]"
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = _alone(*pytest_, scenario, GPUMOD_REQUIRE_REAL="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
