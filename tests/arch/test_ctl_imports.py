"""gpumodctl is small because it imports little: what it may load, and how long it takes to be up."""

import os
import statistics
import subprocess
import sys
import time

import pytest

from tests.support.machine import HANDLERS
from tests.support.rpc import served

# Packages that are not of the standard library, and modules of it that a small client has no use for.
ALLOWED = {"click", "msgspec", "gpumodctl", "gpumodd", "typing_extensions", "_distutils_hack"}
UNWANTED = {
    "argparse",
    "asyncio",
    "concurrent",
    "dataclasses",
    "email",
    "http",
    "importlib.metadata",
    "json",
    "logging",
    "multiprocessing",
    "pathlib",
    "shutil",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    "unittest",
    "urllib",
    "yaml",
}
WIRE = {"gpumodd", "gpumodd.wire"}
COMMANDS = [
    "status",
    "switch rag",
    "simulate rag",
    "mode list",
    "service show whisper",
    "operation show 7",
    "events -n 1",
    "check",
]

PROBE = """
import sys
before = set(sys.modules)
from gpumodctl.cli import run
code = run(sys.argv[1:])
sys.stderr.write("\\n" + " ".join([str(code), *sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    path = tmp_path_factory.mktemp("imports") / "sock"
    with served(path, HANDLERS):
        yield path


def loaded(line, machine):
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *line.split()],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"GPUMODD_SOCKET": str(machine)},
    )
    code, *modules = result.stderr.splitlines()[-1].split()
    assert code in ("0", "1"), result.stderr
    return set(modules)


@pytest.mark.parametrize("line", COMMANDS)
def test_it_loads_click_msgspec_and_the_wire(line, machine):
    modules = loaded(line, machine)
    foreign = {m.partition(".")[0] for m in modules} - set(sys.stdlib_module_names) - ALLOWED
    assert not foreign
    beyond_the_wire = {
        m for m in modules if m.partition(".")[0] == "gpumodd" and m not in WIRE and not m.startswith("gpumodd.wire.")
    }
    assert not beyond_the_wire


@pytest.mark.parametrize("line", COMMANDS)
def test_it_loads_nothing_heavy(line, machine):
    modules = loaded(line, machine)
    assert not {m for m in modules if m in UNWANTED or m.partition(".")[0] in UNWANTED}
    assert "gpumodd.wire.methods" not in modules  # the server's table; a client sends names


@pytest.mark.parametrize("line", COMMANDS)
def test_it_loads_one_command(line, machine):
    commands = {m.removeprefix("gpumodctl.commands.") for m in loaded(line, machine) if ".commands." in m}
    assert len(commands) <= (3 if line.startswith("mode") else 2)


def test_it_is_up_in_one_and_a_half_times_its_imports(machine):
    """Medians of runs that take turns, so that a busy machine slows both."""
    imports = [sys.executable, "-c", "import click, msgspec, socket"]
    status = [sys.executable, "-m", "gpumodctl", "status"]
    environment = os.environ | {"GPUMODD_SOCKET": str(machine)}

    def seconds(command):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        return time.perf_counter() - began

    for _ in range(3):
        pairs = [(seconds(imports), seconds(status)) for _ in range(9)]
        ratio = statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)
        if ratio <= 1.5:
            return
    pytest.fail(f"gpumodctl status takes {ratio:.2f} times as long as its imports")
