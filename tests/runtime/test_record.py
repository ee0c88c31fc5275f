"""The recorder and the replay, on a machine in virtual time: what is kept leads to the same state, whatever is in the
way of keeping it; and what was changed or cut is named."""

import collections
import gzip
import itertools
import json
import os
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpumodd.adapters.event_files import EventFiles
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.runtime import recording
from gpumodd.runtime.loop import Loop
from gpumodd.runtime.record import AGAIN_S, Recorder
from gpumodd.runtime.recording import Unreadable
from gpumodd.runtime.replay import LINE_LIMIT, Replay
from tests.core.machine import Behaviour, Machine, catalog, service
from tests.runtime.fakes import ManualClock
from tests.support.daemon import until


class KeptInMemory:
    """An event log that is a list, with trouble on demand."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.trouble = ""
        self.disk = ""
        self.full = False
        self.closed = False

    def begin(self, head: bytes) -> None:
        self.trouble = self.disk
        self.full = False
        if not self.trouble:
            self.files.append(head)

    def append(self, lines: bytes) -> None:
        if not self.trouble:
            self.files[-1] += lines

    def close(self) -> None:
        self.closed = True


class Recorded(Machine):
    """A machine whose daemon is recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.clock = ManualClock()
        self.kept = KeptInMemory()
        self.recorder = Recorder(self.engine, self.kept, self.clock)

    def feed(self, *events: ev.Event) -> None:
        before = len(self.history)
        super().feed(*events)
        self.clock.at = self.at
        self.recorder.observe(*self.history[before])


def machine(**how) -> Recorded:
    found = catalog(service("a"), service("b"), service("c", 9000), one=("a", "b"), two=("b", "c"))
    return Recorded(found, **how).boot()


@pytest.fixture
def m() -> Recorded:
    return machine()


def written(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


def replayed(path: Path) -> Replay:
    replay = Replay(path)
    for _ in replay.batches():
        pass
    return replay


def test_a_recording_replays_to_the_same_state(m, tmp_path):
    m.do("switch", "one")
    m.behaviours["c"] = Behaviour(never_ready=True)
    m.do("switch", "two")
    m.crash("a")
    m.run(30)
    m.recorder.close()
    replay = replayed(written(m.kept.files[0], tmp_path / "log"))
    assert replay.difference is None
    assert not replay.cut_short
    assert replay.n == len(m.history)
    assert replay.marks >= 4
    assert replay.engine.state == m.engine.state
    assert m.kept.closed


def test_each_file_replays_by_itself(m, tmp_path):
    for mode in ("one", "two", "one", "blank"):
        m.do("switch", mode)
        m.kept.full = True
    m.feed(ev.Ticked(at=m.at))
    m.feed(ev.Ticked(at=m.at))
    m.recorder.close()
    assert len(m.kept.files) == 5
    ends = []
    for content in m.kept.files:
        replay = Replay(written(content, tmp_path / "log"))
        if ends:  # it begins where the one before it ended
            assert replay.n == ends[-1].n
            assert replay.engine.state == ends[-1].engine.state
        assert list(replay.batches())
        assert replay.difference is None
        ends.append(replay)
    assert ends[-1].engine.state == m.engine.state


def test_what_led_to_something_is_written_at_once_and_the_rest_in_a_while(m):
    m.run(60)
    size = len(m.kept.files[0])
    m.feed(ev.Ticked(at=m.at))
    assert len(m.kept.files[0]) > size  # the last time was long ago
    size = len(m.kept.files[0])
    m.feed(ev.Ticked(at=m.at + 1))
    m.feed(ev.Ticked(at=m.at + 2))
    assert len(m.kept.files[0]) == size
    m.ask("switch", "one")
    assert m.kept.files[0][size:].count(b'"kind":"batch"') == 3


def test_while_nothing_can_be_kept_the_engine_goes_on_and_later_a_new_file_begins(m, tmp_path):
    m.do("switch", "one")
    m.kept.trouble = m.kept.disk = "cannot write to /x: no space left on device"
    with capture_logs() as told:
        m.do("switch", "two")
        for _ in range(20):
            m.feed(ev.Ticked(at=m.at))
            m.run(AGAIN_S / 4)
    assert [line["event"] for line in told] == ["not_recording"]  # said once, however often it was tried
    assert len(m.kept.files) == 1
    m.kept.disk = ""
    with capture_logs() as told:
        for _ in range(2):  # that the last attempt failed shows with the next batch
            m.feed(ev.Ticked(at=m.at))
            m.run(2 * AGAIN_S)
        m.do("switch", "one")
        m.recorder.close()
    assert [line["event"] for line in told] == ["recording_again"]
    assert len(m.kept.files) == 2
    replay = replayed(written(m.kept.files[1], tmp_path / "log"))
    assert replay.difference is None
    assert replay.engine.state == m.engine.state
    assert replayed(written(m.kept.files[0], tmp_path / "log")).difference is None


def test_a_mistake_in_the_recorder_ends_the_recording_only(m):
    m.kept.append = None
    with capture_logs() as told:
        m.do("switch", "one")
        m.recorder.close()
    assert m.running() == {"a", "b"}
    assert [line["event"] for line in told] == ["recording_broke"]


def test_the_batch_on_which_the_engine_breaks_is_kept_and_breaks_it_again(tmp_path):
    kept, clock = KeptInMemory(), ManualClock()
    loop = Loop(Engine(), clock)
    loop.recorded = Recorder(loop.engine, kept, clock).observe
    loop.handle_now(ev.Ticked(at=1.0))
    with capture_logs() as told, pytest.raises(AssertionError, match="no rule for"):
        loop.handle_now(ev.Ticked(at=2.0), ev.Event(at=2.0))
    assert [(line["event"], line["batch"]) for line in told] == [("engine_broke", 2)]
    replay = replayed(written(kept.files[0], tmp_path / "log"))
    assert replay.difference is None
    assert replay.broke.startswith("AssertionError: no rule for Event")
    assert replay.n == 2
    mended = kept.files[0].replace(b'["Event",', b'["Ticked",')
    difference = replayed(written(mended, tmp_path / "log")).difference
    assert (difference.n, difference.recorded, difference.replayed) == (2, "breaks", "works")


# -- what differs is named ------------------------------------------------------------------------------------


def lines_of(m: Recorded) -> list[dict]:
    m.do("switch", "one")
    m.do("switch", "two")
    m.recorder.close()
    return [json.loads(line) for line in m.kept.files[0].splitlines()]


def judged(lines: list[dict], path: Path):
    return replayed(written(b"".join(json.dumps(line).encode() + b"\n" for line in lines), path)).difference


def test_written_differently_it_is_still_the_same(m, tmp_path):
    assert judged(lines_of(m), tmp_path / "log") is None


def test_another_effect_is_named(m, tmp_path):
    lines = lines_of(m)
    found = next(line for line in lines if "StartUnit" in str(line.get("effects")))
    at = next(i for i, (name, _) in enumerate(found["effects"]) if name == "StartUnit")
    found["effects"][at][1]["devices"] = ["GPU-9"]
    difference = judged(lines, tmp_path / "log")
    assert (difference.n, difference.where) == (found["n"], f"effects[{at}][1].devices[0]")
    assert (difference.recorded, difference.replayed) == ("GPU-9", "GPU-0")


def test_an_effect_less_and_an_effect_more_are_named(m, tmp_path):
    lines = lines_of(m)
    found = next(line for line in lines if len(line.get("effects") or ()) > 2)
    last = found["effects"].pop()
    difference = judged(lines, tmp_path / "log")
    count = len(found["effects"])
    assert (difference.n, difference.where) == (found["n"], f"effects[{count}]")
    assert (difference.recorded, difference.replayed) == (None, last)
    found["effects"] += [last, ["Surprise", {}]]
    assert judged(lines, tmp_path / "log").recorded == ["Surprise", {}]


def test_another_state_is_named(m, tmp_path):
    lines = lines_of(m)
    marks = [line for line in lines if line.get("kind") == "mark"]
    marks[0]["parts"]["tracks.a"]["health"] = "degraded"
    difference = judged(lines, tmp_path / "log")
    assert (difference.n, difference.where) == (marks[0]["n"], "tracks.a.health")
    assert (difference.recorded, difference.replayed) == ("degraded", "ready")


def test_a_part_too_many_and_a_part_too_few_are_named(m, tmp_path):
    lines = lines_of(m)
    mark = next(line for line in lines if line.get("kind") == "mark")
    mark["parts"]["tracks.z"] = mark["parts"]["tracks.a"]
    difference = judged(lines, tmp_path / "log")
    assert (difference.where, difference.replayed) == ("tracks.z", None)
    del mark["parts"]["tracks.z"]
    mark["gone"] = ["tracks.a"]
    del mark["parts"]["tracks.a"]
    difference = judged(lines, tmp_path / "log")
    assert (difference.where, difference.recorded) == ("tracks.a", None)


def test_what_was_not_written_again_still_counts(m, tmp_path):
    """A mark names what has changed; a state that changes where no mark says so differs, too."""
    lines = lines_of(m)
    lines[0]["state"]["started_at"] = 1.0
    for line in lines:
        line.get("parts", {}).pop("started_at", None)
    difference = judged(lines, tmp_path / "log")
    assert (difference.where, difference.recorded, difference.replayed) == ("started_at", 1.0, 1000.0)


def test_other_events_lead_elsewhere(m, tmp_path):
    lines = lines_of(m)
    for line in lines:
        for name, event in line.get("events", ()):
            if name == "Probed" and event["fact"]["answer"] == "healthy":
                event["fact"]["answer"] = "refused"
    difference = judged(lines, tmp_path / "log")
    assert difference is not None
    assert difference.where.startswith("effects")


# -- files as they come ---------------------------------------------------------------------------------------


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def test_cut_anywhere_it_replays_up_to_there(m, tmp_path):
    m.do("switch", "one")
    m.recorder.close()
    content = m.kept.files[0]
    whole = packed(content)
    head = len(content.split(b"\n")[0])
    ends = set()
    for size in itertools.chain(range(head + 1, len(content), 997), range(len(content) - 3, len(content))):
        replay = replayed(written(content[:size], tmp_path / "plain"))
        assert replay.difference is None
        assert replay.cut_short == (content[size - 1 : size] != b"\n")
        ends.add(replay.n)
    assert len(ends) > 5
    for size in range(len(whole) - 1, len(whole) // 2, -7):
        if b"\n" not in zlib.decompressobj(wbits=31).decompress(whole[:size]):
            break
        replay = replayed(written(whole[:size], tmp_path / "packed"))
        assert replay.difference is None
        assert replay.cut_short
    replay = replayed(written(whole, tmp_path / "packed"))
    assert (replay.difference, replay.cut_short) == (None, False)


def refusal(content: bytes, path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        replayed(written(content, path))
    return caught.value.message


def test_what_is_no_recording_is_refused(m, tmp_path):
    m.do("switch", "one")
    m.recorder.close()
    content = m.kept.files[0]
    path = tmp_path / "log"
    lines = content.splitlines(keepends=True)
    assert refusal(b"", path) == "it is empty, or cut short in its first line"
    assert refusal(packed(b""), path) == "it is empty, or cut short in its first line"
    assert refusal(content[:50], path) == "it is empty, or cut short in its first line"
    assert refusal(bytes(1000), path) == "it is empty, or cut short in its first line"
    assert refusal(b"\n" * 10, path) == "it is not an event log of gpumodd"
    assert refusal(b"\x1f\x8bhello, this is not gzip", path).startswith("line 1: it is damaged: ")
    whole = packed(content)
    assert "it is damaged" in refusal(whole[: len(whole) // 2] + random.Random(1).randbytes(1000), path)
    garbage = b"".join([*lines[:3], b"garbage\n", *lines[3:]])
    assert refusal(garbage, path).startswith("line 4: it is no line of an event log: ")
    assert refusal(b"".join([*lines[:3], *lines[4:]]), path) == "line 4: batch 4 follows on batch 2"
    assert refusal(b"".join([*lines[:3], *lines[2:]]), path) == "line 4: batch 2 follows on batch 2"
    assert refusal(b"".join([*lines[:3], lines[0]]), path).startswith("line 4: it is no line of an event log: ")
    with pytest.raises(Unreadable, match="it cannot be read: no such file or directory"):
        Replay(tmp_path / "absent")
    with pytest.raises(Unreadable, match="it cannot be read: is a directory"):
        Replay(tmp_path)


def test_a_line_without_end_does_not_fill_the_memory(m, tmp_path):
    m.do("switch", "one")
    m.recorder.close()
    packer = zlib.compressobj(wbits=31)
    with (tmp_path / "bomb").open("wb") as file:
        file.write(packer.compress(m.kept.files[0]))
        for _ in range(LINE_LIMIT // (1 << 20) + 1):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())
    number = m.kept.files[0].count(b"\n") + 1
    with pytest.raises(Unreadable, match=f"line {number}: it is longer than 64 MiB"):
        replayed(tmp_path / "bomb")


def test_a_state_that_cannot_be_is_told_and_never_a_traceback(m, tmp_path):
    """Well-formed, but no engine was ever there: an operation's service that nothing configures, an unknown command."""
    lines = lines_of(m)
    lines[0]["state"]["catalog"]["services"] = {}
    for line in lines:
        for name, event in line.get("events", ()):
            if name == "CatalogLoaded":
                event["catalog"]["services"] = {}
    assert judged(lines, tmp_path / "log") is not None


def test_no_damage_is_more_than_a_reason(m, tmp_path):
    """A recording with bytes, words or lines changed, lost or doubled: it differs, or it cannot be read, and that is
    said. Nothing else is ever raised, and nothing hangs."""
    m.do("switch", "one")
    m.do("switch", "two")
    m.crash("b")
    m.run(30)
    m.recorder.close()
    content = m.kept.files[0]
    words = sorted({*re.findall(rb'"[\w-]+"|-?\d+\.?\d*|null|true|\[\]|\{\}', content)})
    met = collections.Counter()
    for seed in range(DAMAGES):
        chance = random.Random(seed)
        damaged = content
        for _ in range(chance.randint(1, 3)):
            damaged = harm(damaged, words, chance)
        try:
            replay = replayed(written(damaged, tmp_path / "log"))
        except Unreadable as error:
            assert error.message
            met["unreadable"] += 1
        else:
            met["different" if replay.difference else "the same"] += 1
    assert met["unreadable"] > DAMAGES // 20
    assert met["different"] > DAMAGES // 20


DAMAGES = 120


def harm(content: bytes, words: list[bytes], chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    size = chance.choice([1, 1, 1, 10, 1000])
    match chance.randrange(5):
        case 0:
            return content[:at] + chance.randbytes(size) + content[at + size :]
        case 1:
            return content[:at] + content[at + size :]
        case 2:
            return content[:at] + content[at : at + size] * 2 + content[at + size :]
        case 3:  # one line as another
            lines = content.splitlines(keepends=True)
            lines[chance.randrange(len(lines))] = chance.choice(lines)
            return b"".join(lines)
        case _:  # well-formed, as far as possible, but not what happened
            old = chance.choice(words)
            return content.replace(old, chance.choice(words), chance.choice([1, 1, -1]))


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_order_of_sets_leads_nowhere_else(m, tmp_path, seed):
    """Whatever depends on a process's hash seed differs from one run to the next."""
    for mode in ("one", "two", "one", "blank", "two"):
        m.do("switch", mode)
    m.crash("c")
    m.run(30)
    m.recorder.close()
    path = written(m.kept.files[0], tmp_path / "log")
    done = subprocess.run(
        [sys.executable, "-m", "gpumodd", "replay", str(path)],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("Identical: ")


def test_real_files_hold_what_the_engine_was_given(m, tmp_path):
    files = EventFiles(tmp_path / "events", file_bytes=3000)
    m.recorder = Recorder(m.engine, files, m.clock)
    for mode in ("one", "two") * 3:
        m.do("switch", mode)
        until(lambda: files._done == files._queued, why="the disk keeps up")  # a switch takes no time here
    m.recorder.close()
    found = sorted((tmp_path / "events").iterdir())
    assert len(found) > 1
    for path in found:
        replay = replayed(path)
        assert (replay.difference, replay.cut_short) == (None, False)
    assert replay.engine.state == m.engine.state
    assert recording.parts(replay.engine.state) == recording.parts(m.engine.state)
