"""gpumodctl as people run it: a process, against a real server with canned answers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.machine import HANDLERS
from tests.support.rpc import served

settings.register_profile("patient", deadline=None)  # a busy machine is no finding
settings.load_profile("patient")

# Ctrl-C works in it even where the tests themselves run with it ignored, in the background of a script.
ALLOW = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
MAIN = "from gpumodctl.__main__ import main; main()"
INTERRUPTIBLE = [sys.executable, "-c", f"{ALLOW}; {MAIN}"]
Ctl = Callable[..., subprocess.CompletedProcess[str]]


def environment(**more: str) -> dict[str, str]:
    """A plain environment: nothing of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH", "LANG")}
    return kept | {"PYTHONUTF8": "1"} | more


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a machine on paper."""
    path = tmp_path_factory.mktemp("ctl") / "sock"
    with served(path, HANDLERS):
        yield path


def run(*args: str, socket: Path | None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run gpumodctl to its end. No traceback, whatever happens."""
    where = {"GPUMODD_SOCKET": str(socket)} if socket else {}
    result = subprocess.run(
        [sys.executable, "-m", "gpumodctl", *args],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=environment(**where, **env),
    )
    assert "Traceback" not in result.stderr + result.stdout
    assert "made a mistake" not in result.stderr
    return result


@pytest.fixture
def ctl(machine: Path) -> Ctl:
    """gpumodctl on that machine."""
    return lambda *args, **env: run(*args, socket=machine, **env)
