"""Exit codes are what scripts live by; each with the stream its message goes to."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.ctl.conftest import environment, run
from tests.support.rpc import served

CASES = [
    ("switch rag", 0, None),
    ("switch broken", 1, -32011),
    ("switch superseded", 1, -32009),
    ("switch nowhere", 2, -32004),
    ("service show nobody", 2, -32004),
    ("operation wait 4711", 2, -32004),
    ("switch big", 4, -32010),
    ("service restart whisper", 4, -32010),
    ("switch fragile", 5, -32011),
    ("operation wait 7", 0, None),
    ("operation wait 8", 5, None),
    ("operation wait 9", 1, None),
]


@pytest.mark.parametrize(("line", "code", "error"), CASES)
def test_people_read_it_on_stderr(ctl, line, code, error):
    result = ctl(*line.split())
    assert result.returncode == code
    if error is not None:
        assert result.stdout == ""
        assert result.stderr.startswith("gpumodctl: cannot ") or "\ngpumodctl: cannot " in result.stderr


@pytest.mark.parametrize(("line", "code", "error"), CASES)
def test_programs_read_it_on_stdout(ctl, line, code, error):
    result = ctl(*line.split(), "--json")
    document = json.loads(result.stdout)
    assert result.returncode == code
    if error is not None:
        assert document["code"] == error
        assert document["data"]["code"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "statsu",
        "switch",
        "switch a b",
        "switch rag --on-failure explode",
        "service logs x -n 0",
        "service logs x -n many",
        "mode",
        "mode nonsense",
        "status --nonsense",
        "--socket",
        "events --after -1",
        "events --topics nonsense",
        "mode create ../x",
        "completion tcsh",
    ],
)
def test_usage(ctl, line):
    result = ctl(*line.split())
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr
    asked = ctl("--json", *line.split())
    assert (asked.returncode, json.loads(asked.stdout)["data"]["code"]) == (2, "invalid_params")


def test_a_typo_gets_a_hint(ctl):
    assert "Did you mean status?" in ctl("statsu").stderr


def test_a_refusal_lists_its_reasons(ctl):
    stderr = ctl("switch", "big").stderr
    assert "hint: sleep something" in stderr
    assert "vram_insufficient: needs 30000 MiB of 24052 MiB" in stderr
    assert "port_conflict: port 8001 is taken by pid 9 (nginx)" in stderr


@pytest.mark.parametrize("line", ["switch broken", "switch fragile", "operation wait 9"])
def test_the_last_lines_of_a_failed_start_are_shown_once(ctl, line):
    stderr = ctl(*line.split()).stderr
    assert stderr.count("CUDA out of memory") == 1
    assert "\x1b" not in stderr
    assert "\x07" not in stderr


def test_a_rollback_is_told(ctl):
    stderr = ctl("switch", "fragile").stderr
    assert "Rolled back: started whisper; stopped vllm-embedding\n" in stderr
    assert "`gpumodctl operation show 7` tells the whole story." in stderr


@pytest.mark.parametrize("json_wanted", [False, True])
@pytest.mark.parametrize("kind", ["missing", "stale", "file", "directory", "long", "nul", "forbidden"])
def test_no_daemon(tmp_path, kind, json_wanted):
    import socket

    path = tmp_path / "sock"
    stale = socket.socket(socket.AF_UNIX)
    if kind == "stale":
        stale.bind(str(path))
    elif kind == "file":
        path.write_text("")
    elif kind == "directory":
        path.mkdir()
    elif kind == "long":
        path = tmp_path / ("x" * 200)
    elif kind == "forbidden":
        path = path / "in" / "nothing"
    result = run("status", *(["--json"] if json_wanted else []), socket=path)
    stale.close()
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert "gpumodd run" in result.stderr
    assert "systemctl --user start gpumodd" in result.stderr
    assert str(path) in result.stderr
    if json_wanted:
        assert json.loads(result.stdout)["data"]["code"] == "unreachable"
    else:
        assert result.stdout == ""


@pytest.mark.skipif(Path(f"/run/user/{os.getuid()}").is_dir(), reason="this user has a runtime directory")
def test_no_idea_where_the_daemon_is():
    result = run("status", socket=None)
    assert result.returncode == 3
    assert "GPUMODD_SOCKET" in result.stderr


def test_the_runtime_directory_is_looked_into(tmp_path):
    result = run("status", socket=None, XDG_RUNTIME_DIR=str(tmp_path))
    assert str(tmp_path / "gpumodd" / "gpumodd.sock") in result.stderr
    with served_in(tmp_path):
        assert run("mode", "list", socket=None, XDG_RUNTIME_DIR=str(tmp_path)).returncode == 0


def served_in(directory):
    (directory / "gpumodd").mkdir()
    return served(directory / "gpumodd" / "gpumodd.sock", {"mode.list": lambda _s, _p: []})


@pytest.mark.parametrize("place", ["before", "behind", "equals"])
def test_the_socket_may_be_named(machine, place):
    args = {
        "before": ["--socket", str(machine), "mode", "list"],
        "behind": ["mode", "list", "--socket", str(machine)],
        "equals": ["mode", f"--socket={machine}", "list"],
    }[place]
    assert run(*args, socket=None, GPUMODD_SOCKET="/nowhere").returncode == 0


def test_only_linux():
    patched = textwrap.dedent("""
        import sys
        sys.platform = "darwin"
        sys.argv = ["gpumodctl", "status"]
        from gpumodctl.__main__ import main
        main()
    """)
    result = subprocess.run(
        [sys.executable, "-c", patched], capture_output=True, check=False, text=True, env=environment()
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "darwin" in result.stderr


def test_a_reader_that_leaves_is_no_error(machine):
    command = f"{sys.executable} -m gpumodctl service logs whisper -n 100; echo $? >&2"
    result = subprocess.run(
        ["bash", "-c", f"({command}) | true"],
        capture_output=True,
        check=False,
        text=True,
        env=environment(GPUMODD_SOCKET=str(machine)),
    )
    assert result.stderr == "0\n"


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_descriptors(machine, redirect):
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m gpumodctl status {redirect}"],
        capture_output=True,
        check=False,
        text=True,
        env=environment(GPUMODD_SOCKET=str(machine)),
    )
    assert result.returncode == 0
    assert "Traceback" not in result.stderr


def test_a_full_disk(machine):
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "gpumodctl", "status"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(GPUMODD_SOCKET=str(machine)),
        )
    assert result.returncode == 1
    assert result.stderr == "gpumodctl: cannot go on: No space left on device\n"
