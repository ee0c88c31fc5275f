"""`gpumodd replay` on what a real daemon recorded: switches, crashes, a daemon that is killed, hostile files."""

import gzip
import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpumodd.cli import run_command
from gpumodd.core.state import State
from gpumodd.runtime import recording
from tests.support.daemon import Daemon, until

SECRET = "hunter2-must-not-be-recorded"


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    d = Daemon(tmp_path)
    d.service("a", 1000, env={"API_KEY": SECRET})
    d.service("b", 2000)
    d.service("big", 30_000)
    d.mode("one", "a")
    d.mode("two", "a", "b")
    d.mode("huge", "big")
    d.extra_env["GPUMODD_TEST_TOKEN"] = SECRET
    return d


def logs(d: Daemon) -> list[Path]:
    return sorted((d.state / "events").iterdir())


def replay(d: Daemon, *words: object) -> "subprocess.CompletedProcess[str]":
    """Each replay is another process: whatever depends on a hash seed would show."""
    argv = [d.python, "-m", "gpumodd", "replay", *map(str, words)]
    with d.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def report(d: Daemon, *words: object) -> dict[str, Any]:
    done = replay(d, *words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["identical"]
    assert found["difference"] is None
    return found


def test_a_day_in_the_life_replays(daemon: Daemon):
    d = daemon
    with d:
        d.switch("two")
        with pytest.raises(Exception, match="nothing was touched"):
            d.switch("huge")
        pid = next(s["pid"] for s in d.status()["services"] if s["id"] == "b")
        os.kill(pid, signal.SIGKILL)
        until(lambda: any(op["kind"] == "heal" and op["state"] == "succeeded" for op in d.rpc("operation.list")))
        d.rpc("mode.switch", id="one")
        d.stop(signal.SIGKILL)
        d.start()
        until(lambda: d.status()["state"] == "converged")
        d.switch("blank")
        status = d.status()
    first, second = logs(d)
    killed, ended = report(d, first), report(d, second)
    assert killed["cut_short"]
    assert not ended["cut_short"]
    assert killed["batches"] > 20
    assert killed["marks"] >= 2
    assert ended["marks"] >= 2
    told = [f"{line['topic']} {line['text']}" for line in killed["story"]]
    for line in (
        "operation 1 switch two succeeded",
        "phase b: loading → ready",
        "command start b on GPU-11111111-0000-0000-0000-000000000001",
        "operation 2 heal b succeeded",
    ):
        assert line in told
    assert any(line.startswith("refused switch huge refused, nothing was touched") for line in told)
    assert [line for line in told if line.startswith("problem ") and "b ended by itself" in line], told
    shown = ended["status"]
    for key in ("mode", "desired_mode", "state"):
        assert shown[key] == status[key]
    assert [(s["id"], s["phase"]) for s in shown["services"]] == [(s["id"], s["phase"]) for s in status["services"]]
    assert d.log.count("recording") == 0  # nothing went wrong with it


def test_text_until_and_exit_codes(daemon: Daemon):
    d = daemon
    with d:
        d.switch("one")
        d.switch("blank")
    (log,) = logs(d)
    done = replay(d, log)
    assert (done.returncode, done.stderr) == (0, "")
    assert "operation  2 switch blank succeeded" in done.stdout
    assert "State:  converged" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Identical: ")
    story = report(d, log)["story"]
    middle = next(line for line in story if line["text"] == "a: loading → ready")
    by_number = report(d, log, "--until", middle["n"])
    assert by_number["story"] == [line for line in story if line["n"] <= middle["n"]]
    assert {s["id"]: s["phase"] for s in by_number["status"]["services"]}["a"] == "ready"
    by_time = report(d, log, "--until", middle["at"])
    assert by_time["story"]
    assert by_time["story"] == story[: len(by_time["story"])]
    assert all(line["at"] <= middle["at"] for line in by_time["story"])


@pytest.mark.parametrize("wrong", [["--until", "noon", "l"], ["--until", "-3", "l"], [], ["l", "l"], ["--why", "l"]])
def test_wrong_words_are_a_usage_error(wrong: list[str]):
    assert run_command(["replay", *wrong]) == 2


def test_a_difference_is_named(daemon: Daemon, tmp_path: Path):
    d = daemon
    with d:
        d.switch("one")
    (log,) = logs(d)
    lines = [json.loads(line) for line in gzip.decompress(log.read_bytes()).splitlines()]
    mark = next(line for line in lines if line.get("kind") == "mark" and "tracks.a" in line["parts"])
    mark["parts"]["tracks.a"]["health"] = "\x1b[31mdegraded"
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = replay(d, changed)
    assert (done.returncode, done.stderr) == (1, "")
    told = f'Differs after batch {mark["n"]}: tracks.a.health: recorded "\\u001b[31mdegraded", replayed "ready"'
    assert done.stdout.splitlines()[-1] == told
    found = json.loads(replay(d, changed, "--json").stdout)
    assert not found["identical"]
    assert found["difference"]["where"] == "tracks.a.health"


def test_nothing_secret_is_recorded_and_nobody_else_may_read_it(daemon: Daemon):
    d = daemon
    with d:
        d.switch("one")
        d.rpc("daemon.reload")
    (log,) = logs(d)
    content = gzip.decompress(log.read_bytes())
    assert b'"CatalogLoaded"' in content
    assert SECRET.encode() not in content
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


def test_a_daemon_that_cannot_record_works(daemon: Daemon):
    d = daemon
    d.state.mkdir()
    (d.state / "events").write_text("in the way")
    with d:
        d.switch("two")
        assert d.ready() == {"a", "b"}
        until(lambda: "not_recording" in d.log)
        assert "events: file exists" in d.log or "events: not a directory" in d.log
        d.switch("blank")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty, or cut short in its first line"),
        (b"hello\n", "it is not an event log of gpumodd"),
        (b'{"log": "\x1b[31m", "format": 1}\n'.replace(b"\x1b", b"\\u001b"), "of '\\x1b[31m'"),
        (b'{"log": "gpumodd events", "format": 99, "version": "9.9"}\n', "its format is 99, this version reads 1"),
        (gzip.compress(b"garbage\n"), "it is not an event log of gpumodd"),
        (b"\x1f\x8b" + bytes(100), "line 1: it is damaged"),
        (
            recording.head(State(), version="1", boot_id="b", epoch=1e300, n=0),
            "its state makes no sense: OverflowError",
        ),
    ],
    ids=["empty", "text", "escapes", "newer", "packed", "damaged", "absurd"],
)
def test_what_is_no_recording_is_one_line_on_stderr(tmp_path: Path, capsys, content: bytes, told: str):
    path = tmp_path / "log"
    path.write_bytes(content)
    assert run_command(["replay", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gpumodd: cannot replay {path}: ")
    assert told in err
    assert "Traceback" not in err
    assert "\x1b" not in err


def test_a_file_that_is_not_there(tmp_path: Path, capsys):
    assert run_command(["replay", str(tmp_path / "absent")]) == 1
    told = f"gpumodd: cannot replay {tmp_path}/absent: it cannot be read: no such file or directory\n"
    assert capsys.readouterr() == ("", told)
