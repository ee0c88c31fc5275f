"""What log lines look like to a file, a terminal and the journal; each in a process of its own."""

import os
import pty
import re
import subprocess
import sys

import pytest

PROGRAM = """
import logging
from gpumodd.telemetry.log import get_logger
log = get_logger("gpumodd.runtime.loop")
log.debug("tick", number=1)
log.info("switch_started", target="rag", steps=3, why="two words", who='a"b')
log.warning("client_said", text="\\x1b[31mred\\x9b\\nswitch_started target=fake\\u202e", empty="")
try:
    password = "hunter2"
    raise ValueError("one\\nfake_event level=info\\x1b[0m")
except ValueError:
    log.exception("step_failed")
logging.getLogger("asyncio").error("lost %s", "task")
"""
ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"


def run(program=PROGRAM, *, stderr=subprocess.PIPE, **environ):
    clean = {key: value for key, value in os.environ.items() if key not in ("JOURNAL_STREAM", "NO_COLOR", "TERM")}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**clean, **environ}, stdout=subprocess.PIPE, stderr=stderr, check=True
    )
    assert done.stdout == b""
    return done.stderr.decode() if done.stderr is not None else ""


def on_terminal(**environ):
    ours, theirs = pty.openpty()
    try:
        run(stderr=theirs, **environ)
    finally:
        os.close(theirs)
    text = b""
    try:
        while chunk := os.read(ours, 65536):
            text += chunk
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    return text.decode().replace("\r\n", "\n")


def test_plain_lines():
    lines = run().splitlines()
    assert re.fullmatch(
        r'switch_started target=rag steps=3 why="two words" who="a\\"b" module=runtime\.loop level=info at=' + ISO,
        lines[0],
    )
    assert lines[1].startswith(
        r'client_said text="\u001b[31mred\x9b\nswitch_started target=fake\u202e" empty="" module=runtime.loop'
    )
    assert lines[2].startswith("step_failed module=runtime.loop level=error at=")
    assert lines[3] == "  Traceback (most recent call last):"
    assert lines[-1].startswith('library_message message="lost task" module=asyncio level=error at=')
    # The exception's own text cannot pass for an entry, and no local variable is shown.
    assert "  fake_event level=info\\x1b[0m" in lines
    assert all(line.startswith("  ") for line in lines[3:-1])
    assert "hunter2" not in "\n".join(line for line in lines if "password" not in line)


def test_every_byte_is_harmless():
    text = run() + run(GPUMODD_LOG_LEVEL="debug")
    assert all(char == "\n" or char.isprintable() for char in text)


def test_journal_lines_carry_priorities(tmp_path):
    with (tmp_path / "stream").open("w+b") as stream:
        status = os.fstat(stream.fileno())
        run(stderr=stream, JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}", GPUMODD_LOG_LEVEL="debug")
        stream.seek(0)
        lines = stream.read().decode().splitlines()
    assert lines[0] == "<7>tick number=1 module=runtime.loop"
    assert lines[1] == '<6>switch_started target=rag steps=3 why="two words" who="a\\"b" module=runtime.loop'
    assert lines[2].startswith("<4>client_said")
    assert lines[3] == "<3>step_failed module=runtime.loop"
    assert all(line.startswith("<3>") for line in lines[3:])


def test_a_foreign_journal_stream_is_none_of_ours():
    assert run(JOURNAL_STREAM="8:1").startswith("switch_started")
    assert run(JOURNAL_STREAM="nonsense").startswith("switch_started")


def test_a_terminal_gets_colours():
    text = on_terminal(TERM="xterm")
    assert re.search(r"\d\d:\d\d:\d\d.*switch_started", text)
    assert "\x1b[" in text
    assert "\x1b[31mred" not in text
    assert "\x9b" not in text


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours(environ):
    text = on_terminal(**environ)
    assert "switch_started" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", 5), ("INFO", 4), ("warning", 3), ("error", 2), ("", 4), ("loud", 5)],
)
def test_the_level(level, shown):
    lines = [line for line in run(GPUMODD_LOG_LEVEL=level).splitlines() if not line.startswith(" ")]
    assert len(lines) == shown
    assert any(line.startswith("log_level_unknown wanted=loud used=info") for line in lines) == (level == "loud")


def test_a_reader_that_went_away_stops_nothing():
    program = f"{PROGRAM}\nimport os; os.close(2); log.info('after'); os._exit(7)"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", program], stderr=writer, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 7
