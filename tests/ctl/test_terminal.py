"""On a terminal: the live table, colours, Ctrl-C."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ctl.conftest import ALLOW, INTERRUPTIBLE, MAIN, environment

PATIENCE_S = 30


class Terminal:
    """gpumodctl on a pseudo-terminal of its own."""

    def __init__(self, machine, *args, **env):
        self._main, side = pty.openpty()
        self.process = subprocess.Popen(
            [*INTERRUPTIBLE, *args],
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            env=environment(GPUMODD_SOCKET=str(machine), TERM="xterm", COLUMNS="80", **env),
        )
        os.close(side)
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._main)

    def until(self, words):
        """Read until `words` were shown."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.seen:
            assert time.monotonic() < deadline, f"{words!r} never came, but {self.seen!r}"
            if not self._read():
                assert words in self.seen, f"{words!r} never came, but {self.seen!r}"
        return self.seen

    def end(self):
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(timeout=PATIENCE_S)

    def _read(self):
        ready, _, _ = select.select([self._main], [], [], PATIENCE_S)
        assert ready, f"silence after {self.seen!r}"
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            data = os.read(self._main, 65536)
            self.seen += data.decode(errors="replace")
            return bool(data)
        return False


def test_the_table_is_drawn_again_and_taken_away(machine):
    with Terminal(machine, "switch", "slow") as terminal:
        terminal.until("start vllm-embedding")
        terminal.until("\x1b[1A")  # back to the top for the next picture
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert "Detached: operation 7 goes on" in terminal.seen
        assert "gpumodctl operation cancel 7" in terminal.seen
        assert "Traceback" not in terminal.seen


def test_a_finished_switch_on_a_terminal(machine):
    with Terminal(machine, "switch", "rag") as terminal:
        assert terminal.end() == 0
        assert "Mode rag is active (3.2 s)." in terminal.seen


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_none_are_wanted(machine, env):
    with Terminal(machine, "simulate", "rag") as coloured:
        assert coloured.end() == 0
        assert "\x1b[32mFits:" in coloured.seen
    if "TERM" in env:
        return
    with Terminal(machine, "simulate", "rag", **env) as plain:
        assert plain.end() == 0
        assert "\x1b" not in plain.seen


def test_hostile_names_do_not_reach_a_terminal(machine):
    with Terminal(machine, "service", "logs", "whisper", "-n", "1") as terminal:
        assert terminal.end() == 0
        assert terminal.seen.strip() == "redover evil"


def test_watch_redraws_the_screen(machine):
    with Terminal(machine, "status", "--watch") as terminal:
        terminal.until("\x1b[H\x1b[2J")
        terminal.until("State:")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130


@pytest.mark.parametrize("args", [["switch", "slow"], ["switch", "slow", "--json"]])
def test_ctrl_c_in_a_pipe_detaches(machine, args):
    with subprocess.Popen(
        [*INTERRUPTIBLE, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(GPUMODD_SOCKET=str(machine)),
    ) as waiting:
        if "--json" in args:
            deadline = time.monotonic() + PATIENCE_S
            while not _waits_for_an_answer(waiting.pid) and time.monotonic() < deadline:
                time.sleep(0.01)
        else:
            assert waiting.stderr.readline() == "start vllm-embedding: running\n"
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "gpumodctl operation cancel" in err


def _waits_for_an_answer(pid):
    """Has it sent its request and gone to sleep on its socket?"""
    opened = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):
        if any(str(entry.readlink()).startswith("socket:") for entry in opened.iterdir()):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    return False


def test_an_early_ctrl_c_leaves_no_traceback(machine):
    for delay in (0.005, 0.02, 0.035):
        with subprocess.Popen(
            [sys.executable, "-c", f"{ALLOW}; print(flush=True); {MAIN}", "status"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(GPUMODD_SOCKET=str(machine)),
        ) as starting:
            starting.stdout.readline()
            time.sleep(delay)
            starting.send_signal(signal.SIGINT)
            _, err = starting.communicate(timeout=PATIENCE_S)
        assert starting.returncode in (0, 130, -signal.SIGINT), err
        assert "Traceback" not in err or 'File "<string>"' in err  # before the first line of ours
