"""A real systemd reads what the renderer writes: the process gets exactly the words, variables and directory."""

import json
import subprocess
import sys
import time

import pytest

from gpumodd.config.render import Renderer
from gpumodd.config.shipped import shipped
from gpumodd.drivers.api import UnitFile
from tests.config.tree import Tree

pytestmark = pytest.mark.real

# Everything a value can be that means something to systemd, to a shell or to a terminal.
WORDS = (
    "", " ", "a b", "  two  ", "%h", "%%", "%n%", "$HOME", "${HOME}", "$$", "$$$", '"', "'", '"x" y', "\\", "\\\\",
    "\\n", "a\\", "\n[Service]\nExecStartPre=/bin/false", "\r\n", "\t", ";", "; x", "\\;", "#x", "*", "~", "[a]",
    "{b}", "|", "&", "`x`", "für 模型 🦙", "\x01\x1b[31m\x7f", "\x85\u2028", "-x", "@x", "!x", "x" * 5000,
)  # fmt: skip
VALUES = {f"V{number}": word for number, word in enumerate(WORDS)}
DUMP = (
    "import json, os, sys; target = sys.argv[1]; "
    "json.dump([sys.argv[2:], dict(os.environ), os.getcwd()], open(target + '.new', 'w')); "
    "os.rename(target + '.new', target)"
)


def wait_for(path, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
    return json.loads(path.read_text())


def test_the_process_gets_exactly_what_was_configured(sandbox):
    folder = sandbox.root / "rendered %h $x"
    folder.mkdir()
    result, name = folder / "result", "gpumod-rendered.service"
    argv = (sys.executable, "-c", DUMP, str(result), *WORDS)
    unit = UnitFile(service="rendered", description="a\nb %n \\", argv=argv, working_directory=str(folder))
    renderer = Renderer()
    environment_file = folder / "environment [1]*"
    environment_file.write_text(renderer.render_environment(VALUES))
    (sandbox.unit_dir / name).write_text(renderer.render(unit, environment_file=str(environment_file)))
    try:
        sandbox.systemctl("daemon-reload")
        sandbox.systemctl("start", name)
        words, environment, directory = wait_for(result)
        assert tuple(words) == WORDS
        assert {key: environment.get(key) for key in VALUES} == VALUES
        assert directory == str(folder)
        assert sandbox.systemctl("show", "--value", "-p", "Description", name) == f"a b {'%n'}"
        assert sandbox.systemctl("show", "--value", "-p", "Slice", name) == "gpumod.slice"
        assert sandbox.systemctl("show", "--value", "-p", "ExecStartPre", name) == ""
    finally:
        sandbox.systemctl("stop", name, check=False)
        (sandbox.unit_dir / name).unlink()
        sandbox.systemctl("daemon-reload")


def test_a_missing_program_fails_the_start_at_once(sandbox):
    name = "gpumod-absent.service"
    unit = UnitFile(service="absent", description="x", argv=("no-such-program-anywhere", "x"))
    environment_file = sandbox.root / "absent.env"
    environment_file.write_text("")
    (sandbox.unit_dir / name).write_text(Renderer().render(unit, environment_file=str(environment_file)))
    try:
        sandbox.systemctl("daemon-reload")
        sandbox.systemctl("start", name, check=False)
        assert sandbox.systemctl("is-active", name, check=False) in ("failed", "inactive")
    finally:
        sandbox.systemctl("reset-failed", name, check=False)
        (sandbox.unit_dir / name).unlink()
        sandbox.systemctl("daemon-reload")


def verify(*units):
    """What systemd-analyze has to say about these files, in a runtime directory of their own."""
    environment = {"XDG_RUNTIME_DIR": str(units[0].parent), "PATH": "/usr/bin:/bin", "HOME": str(units[0].parent)}
    command = ["systemd-analyze", "--user", "verify", *map(str, units)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_systemd_finds_nothing_wrong_with_the_shipped_units(sandbox_possible, tmp_path):
    for name in ("gpumodd.service", "gpumodd.socket"):
        text = (shipped("contrib") / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("%h/.local/bin/gpumodd", "/bin/true"))
    assert verify(tmp_path / "gpumodd.service", tmp_path / "gpumodd.socket") == (0, "")


def test_systemd_finds_nothing_wrong_with_a_rendered_unit(sandbox_possible, tmp_path):
    loaded = Tree(tmp_path / "config").service("a", args='["%h", "a\\nb", "$x"]', port="80").load()
    unit = tmp_path / "gpumod-a.service"
    unit.write_text(loaded.renderer.render(loaded.unit_files["a"], environment_file="/run/x"))
    assert verify(unit) == (0, "")
    unit.write_text(unit.read_text().replace("KillMode=", "KillMod="))
    assert "KillMod" in verify(unit)[1]
