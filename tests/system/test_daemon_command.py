"""`gpumodd` at a prompt and in scripts: help, exit codes, and streams that are closed, full or left by their reader."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, until

GPUMODD = [sys.executable, "-m", "gpumodd"]
# Ctrl-C works in it even where the tests themselves run with it ignored, in the background of a script.
ALLOW = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
INTERRUPTIBLE = [sys.executable, "-c", f"{ALLOW}; from gpumodd.__main__ import main; main()"]
COMMANDS = ("check", "demo", "init", "replay", "run", "schema", "simulate", "version")


def gpumodd(*words: str, shell: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    """Run it, behind a shell that has done something to its streams if `shell` says so."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GPUMODD_")}
    argv = ["sh", "-c", f'exec "$@" {shell}', "sh", *GPUMODD, *words] if shell else [*GPUMODD, *words]
    done = subprocess.run(argv, env=clean | env, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_help_names_every_command_and_fits_the_screen():
    shown = gpumodd("--help").stdout
    listed = [line.split()[0] for line in shown.partition("Commands:")[2].splitlines() if line.strip()]
    assert sorted(listed) == sorted(COMMANDS)
    for words in ((), *((command,) for command in COMMANDS)):
        lines = gpumodd(*words, "--help").stdout.splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        assert not any(line.endswith("...") and not line.startswith("Usage:") for line in lines)


@pytest.mark.parametrize("line", ["", "chekc", "run now", "schema", "schema table", "check --loud", "init a b"])
def test_usage_is_exit_code_two(line: str):
    done = gpumodd(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: gpumodd")


def test_init_refuses_what_is_there_and_says_what_is_next(tmp_path: Path):
    target = tmp_path / "c"
    first = gpumodd("init", str(target))
    assert first.returncode == 0
    assert f"gpumodd check {target}" in first.stdout
    again = gpumodd("init", str(target))
    assert (again.returncode, again.stdout) == (1, "")
    assert len(again.stderr.splitlines()) == 2
    assert "--force" in again.stderr
    assert gpumodd("init", str(target), "--force").returncode == 0
    place = {"GPUMODD_CONFIG_DIR": str(tmp_path / "place")}
    assert "`gpumodd check` and `gpumodd run`" in gpumodd("init", **place).stdout
    assert gpumodd("check", **place).returncode == 0


@pytest.mark.parametrize("target", ["/proc/no/such", "/dev/null", "/dev/null/x"])
def test_init_where_nothing_can_be_written(target: str):
    done = gpumodd("init", target)
    assert (done.returncode, done.stdout) == (1, "")
    assert target in done.stderr or "/dev/null" in done.stderr


@pytest.mark.parametrize("words", ["version", "--help", "schema service", "check --verbose"])
@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&- >&- 2>&-", "| true"])
def test_streams_that_are_closed_or_left_are_no_reason_for_a_traceback(words: str, shell: str, tmp_path: Path):
    done = gpumodd(*words.split(), shell=shell, GPUMODD_CONFIG_DIR=str(tmp_path))
    assert done.stderr == ""


def test_a_full_disk_is_said_in_one_line():
    done = gpumodd("schema", "service", shell=">/dev/full")
    assert (done.returncode, done.stderr) == (1, "gpumodd: cannot go on: no space left on device\n")


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "0<&- 1>&- 2>&-"])
def test_a_daemon_that_cannot_speak_works(tmp_path: Path, stderr: str):
    d = Daemon(tmp_path / "d")
    d.service("tiny", 1000)
    d.mode("one", "tiny")
    popen = d.popen
    d.popen = lambda argv, **kw: popen(["sh", "-c", f'exec "$@" {stderr}', "sh", *argv], **kw)  # type: ignore[method-assign]
    d.start()
    d.popen = popen  # type: ignore[method-assign]
    with_descriptors = Path(f"/proc/{d.process.pid}/fd") if d.process else Path()
    try:
        assert d.switch("one")["state"] == "succeeded"
        # Nothing of ours may sit where others expect a standard stream.
        for number in ("0", "1", "2"):
            assert str((with_descriptors / number).readlink()).startswith(("/dev/", "pipe:", str(d.log_path)))
    finally:
        assert d.stop() == 0


def test_a_daemon_whose_reader_leaves_works(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    d.service("tiny", 1000)
    d.mode("one", "tiny")
    with d:  # writes the configuration; the same once more with a pipe
        pass
    process = d.popen([*GPUMODD, "run"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        until(d.socket.exists, why="the daemon listens")
        assert d.switch("one")["state"] == "succeeded"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize("delay_s", [0.03, 0.1, 0.2, 0.3])
def test_an_early_ctrl_c_leaves_no_traceback(tmp_path: Path, delay_s: float):
    (tmp_path / "c").mkdir()
    env = os.environ | {"GPUMODD_CONFIG_DIR": str(tmp_path / "c"), "GPUMODD_STATE_DIR": str(tmp_path / "s")}
    env |= {"GPUMODD_SOCKET": str(tmp_path / "sock"), "GPUMODD_UNITS__BACKEND": "process"}
    with subprocess.Popen([*INTERRUPTIBLE, "run"], env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        time.sleep(delay_s)  # wherever it then is
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    # 0: it ran already and ended in order; a signal in the first milliseconds, before our first line, is Python's own
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert process.returncode == -signal.SIGINT or "Traceback" not in said
    assert "Aborted" not in said


def test_a_configuration_with_errors_is_told_whole(tmp_path: Path):
    d = Daemon(tmp_path / "d")
    d.write("services/a.yaml", "id: a\ndriver: vlm\nprot: 1\n")
    d.write("modes/m.yaml", "id: m\nservices: [nobody]\n")
    done = gpumodd("run", **{**d.env, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert (done.returncode, done.stdout) == (1, "")
    *problems, message, hint = done.stderr.splitlines()
    assert [line.removeprefix(f"{d.config}/").split(": ")[0] for line in problems] == [
        "modes/m.yaml:2:12",
        "services/a.yaml:2:9",
        "services/a.yaml:3:1",
    ]
    assert message == "gpumodd: cannot start: the configuration has errors"
    assert "gpumodd check" in hint
    assert not (d.state / "state.db").exists()
