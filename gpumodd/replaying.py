"""`gpumodd replay`: from a file and options to text or JSON, and an exit code."""

import datetime
from pathlib import Path

import click
import msgspec

from gpumodd import __version__
from gpumodd.ports import PortError
from gpumodd.runtime.recording import Unreadable
from gpumodd.runtime.replay import Replay
from gpumodd.story import Line, Story, line_text, status_text, visible
from gpumodd.wire import types as t


class Report(msgspec.Struct, kw_only=True):
    """What `--json` prints."""

    file: str
    version: str  # of the gpumodd that recorded it
    identical: bool
    difference: dict[str, object] | None
    broke: str | None  # how the recorded engine broke, and the replayed one after it
    cut_short: bool
    batches: int
    marks: int  # places at which the whole state was compared
    ended_at: str
    story: list[Line]
    status: t.Status


def replay_file(file: Path, *, until: str | None, as_json: bool) -> int:
    """Tell and verify; 0 when all is as recorded, else 1. Raises PortError for what cannot be read."""
    until_n, until_time = _until(until)
    try:
        replay = Replay(file)
        story = Story(replay)
        until_at = None if until_time is None else until_time - replay.head.epoch
        lines: list[Line] = []
        for line in story.tell(until_n=until_n, until_at=until_at):
            if as_json:
                lines.append(line)
            else:
                click.echo(line_text(line))
        report = _report(file, replay, story, lines)
    except OSError:
        raise  # of whoever reads what we print
    except Unreadable as error:
        raise PortError("unreadable", f"cannot replay {file}: {visible(error.message)}", hint=error.hint) from None
    except Exception as error:  # well-formed, but no engine was ever like that
        what = visible(f"{type(error).__name__}: {error}"[:200])
        raise PortError("unreadable", f"cannot replay {file}: its state makes no sense: {what}") from None
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        click.echo("")
        for text in (*status_text(report.status), "", *_verdict(report)):
            click.echo(text)
    return 0 if report.identical else 1


def _until(until: str | None) -> tuple[int | None, float | None]:
    if until is None:
        return None, None
    if until.isdecimal() and until.isascii():
        return int(until[:18]), None
    try:
        moment = datetime.datetime.fromisoformat(until)
    except ValueError:
        message = f"{until!r} is neither the number of a batch nor a time such as 2026-01-31T12:00:00Z"
        raise click.BadParameter(message, param_hint="'--until'") from None
    return None, (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _report(file: Path, replay: Replay, story: Story, lines: list[Line]) -> Report:
    difference = replay.difference
    return Report(
        file=str(file),
        version=replay.head.version,
        identical=difference is None,
        difference=None
        if difference is None
        else {
            "n": difference.n,
            "where": difference.where,
            "recorded": difference.recorded,
            "replayed": difference.replayed,
        },
        broke=replay.broke or None,
        cut_short=replay.cut_short,
        batches=replay.n - replay.head.n,
        marks=replay.marks,
        ended_at=story.time(),
        story=lines,
        status=story.status(),
    )


def _verdict(report: Report) -> list[str]:
    told: list[str] = []
    if report.cut_short:
        told.append("The log has no end: its daemon was killed, or is still running.")
    if report.broke is not None:
        told.append(visible(f"The engine broke here, as recorded: {report.broke}"))
    if report.difference is None:
        told.append(f"Identical: {report.batches} batches, the whole state compared {report.marks} times.")
        return told
    where, n = report.difference["where"], report.difference["n"]
    recorded, replayed = (msgspec.json.encode(report.difference[side]).decode() for side in ("recorded", "replayed"))
    told.append(visible(f"Differs after batch {n}: {where}: recorded {_cut(recorded)}, replayed {_cut(replayed)}"))
    if report.version != __version__:
        told.append(visible(f"It was recorded by gpumodd {report.version}; this is {__version__}."))
    return told


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"
