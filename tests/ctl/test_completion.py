"""Shell completion: commands without a daemon, ids from a living one, nothing harmful from a bad one."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from gpumodd.wire import types as t
from tests.ctl.conftest import environment, run
from tests.support.rpc import served


def complete(words, socket):
    """What bash would be offered for the last of these words."""
    result = subprocess.run(
        [sys.executable, "-m", "gpumodctl"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(
            GPUMODD_SOCKET=str(socket),
            _GPUMODCTL_COMPLETE="bash_complete",
            COMP_WORDS=" ".join(["gpumodctl", *words]),
            COMP_CWORD=str(len(words)),
        ),
    )
    assert result.stderr == ""
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_commands(machine):
    assert complete(["s"], machine) == ["status", "switch", "simulate", "service"]
    assert complete(["mode", "s"], machine) == ["show", "simulate", "status", "switch"]


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["switch", ""], ["blank", "rag"]),
        (["switch", "r"], ["rag"]),
        (["mode", "show", "b"], ["blank"]),
        (["service", "start", "w"], ["whisper"]),
        (["mode", "create", "new", "whi"], ["whisper"]),
        (["operation", "cancel", ""], ["7", "7"]),
        (["events", "--topics", "service,m"], ["service,mode"]),
        (["switch", "rag", "--on-failure", "k"], ["keep"]),
    ],
)
def test_live_ids(machine, words, ids):
    assert complete(words, machine) == ids


def test_without_a_daemon_nothing_is_offered_and_quickly(tmp_path):
    began = time.monotonic()
    assert complete(["switch", ""], tmp_path / "none") == []
    assert time.monotonic() - began < 5


def test_ids_that_are_no_words_are_left_out(tmp_path):
    names = ["good", "two\nlines", "\x1b[31m", "rm -rf $HOME", "ü"]
    modes = [t.Mode(id=name, name="", description="", services=[], vram_mib=0, active=False) for name in names]
    with served(tmp_path / "s", {"mode.list": lambda _s, _p: modes}):
        assert complete(["switch", ""], tmp_path / "s") == ["good"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shell):
    result = run("completion", shell, socket=None)
    assert result.returncode == 0
    assert "_GPUMODCTL_COMPLETE" in result.stdout
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=result.stdout, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes_with_the_script(machine, tmp_path):
    """The whole way: the script is sourced and its function asked for a mode."""
    program = tmp_path / "gpumodctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpumodctl "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(gpumodctl completion bash)"; COMP_WORDS=(gpumodctl switch ra); COMP_CWORD=2; '
        'fn=$(complete -p gpumodctl | sed "s/.*-F \\([^ ]*\\).*/\\1/"); $fn gpumodctl ra switch; echo "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=environment(GPUMODD_SOCKET=str(machine)) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert result.stdout == "rag\n"
