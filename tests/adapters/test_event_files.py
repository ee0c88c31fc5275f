"""The event log's files: real files, real full disks, real kills. What was appended can be read, whatever happens."""

import gzip
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from queue import SimpleQueue

import pytest

from gpumodd.adapters.event_files import EventFiles
from tests.support.daemon import until
from tests.support.disk import with_its_own_mounts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.name != "new")


def readable(path: Path) -> bytes:
    """What of a file can be read, finished or not."""
    return zlib.decompressobj(wbits=31).decompress(path.read_bytes())


def noise(size: int) -> bytes:
    """Lines that cannot be packed."""
    return random.Random(size).randbytes(size).replace(b"\n", b" ") + b"\n"


def test_what_is_appended_is_in_the_file(folder):
    files = EventFiles(folder)
    files.begin(b"head\n")
    files.append(b"one\n")
    files.append(b"two\nthree\n")
    files.close()
    assert names(folder) == ["000001.jsonl.gz"]
    assert gzip.decompress((folder / "000001.jsonl.gz").read_bytes()) == b"head\none\ntwo\nthree\n"
    assert not files.trouble


def test_nobody_else_may_look(folder):
    folder.mkdir(parents=True, mode=0o755)
    files = EventFiles(folder)
    files.begin(b"head\n")
    files.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "000001.jsonl.gz").stat().st_mode) == 0o600


def test_it_can_be_read_while_it_is_written(folder):
    files = EventFiles(folder)
    files.begin(b"head\n")
    for number in range(3):
        files.append(b"%d\n" % number)
        want = b"head\n" + b"".join(b"%d\n" % n for n in range(number + 1))
        until(lambda want=want: names(folder) and readable(folder / "000001.jsonl.gz") == want)
    files.close()


def test_a_file_is_full_at_its_size_and_the_oldest_make_room(folder):
    files = EventFiles(folder, file_bytes=10_000, total_bytes=35_000)
    files.begin(b"head 1\n")
    for number in range(2, 8):
        assert not files.full
        for chunk in range(4):
            files.append(noise(3000 + chunk))
        until(lambda: files.full)
        files.begin(b"head %d\n" % number)
        assert not files.full  # that was the other one
    files.close()
    assert names(folder) == ["000005.jsonl.gz", "000006.jsonl.gz", "000007.jsonl.gz"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 35_000
    heads = [gzip.decompress(path.read_bytes()).split(b"\n")[0] for path in sorted(folder.iterdir())]
    assert heads == [b"head 5", b"head 6", b"head 7"]


def test_daemons_that_are_started_over_and_over_leave_a_bounded_number(folder):
    for number in range(1, 70):
        files = EventFiles(folder)
        files.begin(b"head %d\n" % number)
        files.close()
    assert len(names(folder)) == 64
    assert names(folder)[-1] == "000069.jsonl.gz"


def test_what_else_is_in_the_folder_stays(folder):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "000009.jsonl.gz.bak").write_text("mine")
    files = EventFiles(folder, file_bytes=100, total_bytes=150)
    for _ in range(5):
        files.begin(b"head\n")
    files.close()
    assert names(folder) == ["000004.jsonl.gz", "000005.jsonl.gz", "000009.jsonl.gz.bak", "notes.txt"]


def test_a_file_without_its_head_is_no_log(folder):
    """What a daemon leaves that is killed before its first file has a head."""
    folder.mkdir(parents=True)
    (folder / "new").write_bytes(b"cut sh")
    files = EventFiles(folder)
    files.begin(b"head\n")
    files.close()
    assert [path.name for path in folder.iterdir()] == ["000001.jsonl.gz"]
    assert readable(folder / "000001.jsonl.gz") == b"head\n"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "state").write_text("a file")
    files = EventFiles(tmp_path / "state" / "events")
    files.begin(b"head\n")
    until(lambda: files.trouble)
    assert files.trouble == f"cannot write to {tmp_path}/state/events: not a directory"
    files.append(b"lost\n")
    (tmp_path / "state").unlink()
    files.begin(b"head again\n")
    assert not files.trouble
    files.append(b"kept\n")
    files.close()
    assert readable(tmp_path / "state/events/000001.jsonl.gz") == b"head again\nkept\n"


def test_a_link_in_the_place_of_the_next_file_is_not_followed(folder, tmp_path):
    folder.mkdir(parents=True)
    (folder / "000001.jsonl.gz").symlink_to(tmp_path / "elsewhere")
    files = EventFiles(folder)
    files.begin(b"head\n")
    files.close()
    assert not (tmp_path / "elsewhere").exists()


def test_who_records_never_waits_for_the_disk(folder):
    files = EventFiles(folder)
    files._items = Stuck()
    files.begin(b"head\n")
    began = time.monotonic()
    for _ in range(40):
        files.append(noise(500_000))
    assert time.monotonic() - began < 5
    assert files.trouble == f"cannot write to {folder}: the disk does not keep up"
    assert 15 << 20 < files._items.size <= (16 << 20) + 500_001
    files.begin(b"lost, too\n")
    assert files.trouble
    files._items.goes_on.set()
    until(lambda: files._queued == files._done)
    assert readable(folder / "000001.jsonl.gz").count(b"\n") > 30
    files.begin(b"again\n")
    for number in range(3):
        files.append(noise(2 << 20))
        until(lambda: files._queued == files._done)
        assert files.full == (number >= 1)
    files.close()
    assert readable(folder / "000002.jsonl.gz").startswith(b"again\n")


class Stuck(SimpleQueue):
    """A queue from which nothing is taken for a while: the thread is held up by a disk."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.goes_on = threading.Event()

    def get(self) -> object:
        self.goes_on.wait()
        return super().get()

    def put(self, item) -> None:
        self.size += len(item.content) if item is not None else 0
        super().put(item)


DISK = """
import subprocess, sys, time
from pathlib import Path
from gpumodd.adapters.event_files import EventFiles
place = Path(sys.argv[1])
def settled(files, trouble):
    deadline = time.monotonic() + 10
    while bool(files.trouble) != trouble or files._queued != files._done:
        assert time.monotonic() < deadline, files.trouble
        time.sleep(0.005)
    print(files.trouble.replace(str(place), "PLACE") or "fine", sorted(p.name for p in (place / "events").iterdir()))
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True)
files = EventFiles(place / "events")
files.begin(b"first head\\n")
settled(files, False)
ballast = place / "ballast"
with open(ballast, "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)): pass
    except OSError: pass
import random
files.append(random.randbytes(50_000) + b"\\n")
settled(files, True)
files.begin(random.randbytes(50_000) + b"\\n")
settled(files, True)
ballast.unlink()
files.begin(b"second head\\n")
files.append(b"line\\n")
settled(files, False)
files.close()
"""


@pytest.mark.real
def test_a_full_disk_costs_the_recording_and_nothing_else(tmp_path):
    run = with_its_own_mounts(DISK, tmp_path)
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "fine ['000001.jsonl.gz']",
        "cannot write to PLACE/events: no space left on device ['000001.jsonl.gz']",
        # What has no head is no log, and must not push out one that is.
        "cannot write to PLACE/events: no space left on device ['000001.jsonl.gz']",
        "fine ['000001.jsonl.gz', '000002.jsonl.gz']",
    ]


WRITER = """
import sys
from pathlib import Path
from gpumodd.adapters.event_files import EventFiles
files = EventFiles(Path(sys.argv[1]), file_bytes=1 << 30, total_bytes=1 << 40)
files.begin(b"0\\n")
number = 0
while True:
    number += 1
    files.append(b"%d\\n" % number * 3)
    while files._queued - files._done > 100: pass
"""


def test_what_a_killed_daemon_has_written_can_be_read(folder):
    for _ in range(5):
        before = len(names(folder))
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)]) as process:
            try:
                until(lambda before=before: len(names(folder)) > before)
                newest = folder / names(folder)[-1]
                until(lambda newest=newest: newest.stat().st_size > 3000)
            finally:
                process.send_signal(signal.SIGKILL)
        content = readable(newest)
        whole = content[: content.rindex(b"\n")].split(b"\n")
        assert whole[0] == b"0"
        assert len(whole) > 100
        assert whole[1:] == [b"%d" % (1 + i // 3) for i in range(len(whole) - 1)]
