"""The event log's files: compressed, bounded in size and number, the oldest removed first. The port `EventLog`.

Owns the folder and the one thread that touches it; whoever records never waits for the disk. Files are gzip, with all
that was appended readable at any time: `zcat` shows the lines of a running daemon, and of one that was killed.
"""

import os
import re
import stat
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

FILE_BYTES = 4 << 20
TOTAL_BYTES = 32 << 20
FILES = 64  # a daemon that is started over and over leaves small ones
BACKLOG_BYTES = 16 << 20  # what waits for the disk; beyond that the file is given up
CLOSE_S = 2.0  # the end of the daemon waits no longer for a disk

_NAME = re.compile(r"(\d{6,})\.jsonl\.gz")


class EventFiles:
    """Files in one folder, numbered in the order they were begun."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, total_bytes: int = TOTAL_BYTES) -> None:
        self.trouble = ""
        self._folder = folder
        self._file_bytes = file_bytes
        self._total_bytes = total_bytes
        self._items: SimpleQueue[_Lines | None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        # Each number is written by one side only: the first two by whoever records, the others by the thread.
        self._begun = self._queued = 0
        self._opened = self._done = self._size = 0

    @property
    def full(self) -> bool:
        """The file has reached its size: begin another one."""
        return self._opened == self._begun and self._size >= self._file_bytes

    def begin(self, head: bytes) -> None:
        """A new file that starts with this."""
        self.trouble = ""
        self._begun += 1
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="events", daemon=True)
            self._worker.start()
        self._put(_Lines(head, begins=self._begun))

    def append(self, lines: bytes) -> None:
        """More for the file that was begun last."""
        if not self.trouble:
            self._put(_Lines(lines))

    def close(self) -> None:
        """End the file, if the disk lets us."""
        self._items.put(None)
        if self._worker is not None:
            self._worker.join(CLOSE_S)

    def _put(self, item: "_Lines") -> None:
        if self._queued - self._done > BACKLOG_BYTES:
            self.trouble = f"cannot write to {self._folder}: the disk does not keep up"
            return
        self._queued += len(item.content)
        self._items.put(item)

    # --- on the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        file: _File | None = None
        while (item := self._items.get()) is not None:
            try:
                if item.begins:
                    ended, file = file, None
                    if ended is not None:
                        ended.close()
                    file = self._open(item.content)
                    self._size, self._opened = file.size, item.begins
                elif file is not None:
                    file.write(item.content)
                    self._size = file.size
            except OSError as error:
                self.trouble = f"cannot write to {self._folder}: {os.strerror(error.errno or 0).lower()}"
                if file is not None:
                    file.abandon()
                    file = None
            self._done += len(item.content)
        if file is not None:
            with suppress(OSError):
                file.close()

    def _open(self, head: bytes) -> "_File":
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(self._folder.stat().st_mode) & 0o077:
            self._folder.chmod(0o700)
        self._make_room()
        number = max(self._numbered(), default=0) + 1
        # A file without its head is worth nothing, and must not push out one that has it.
        unnamed = self._folder / "new"
        unnamed.unlink(missing_ok=True)
        file = _File(unnamed)
        try:
            file.write(head)
            unnamed.rename(self._folder / f"{number:06}.jsonl.gz")
        except OSError:
            file.abandon()
            unnamed.unlink()
            raise
        return file

    def _make_room(self) -> None:
        """Remove the oldest until one more file fits."""
        sizes = {number: path.lstat().st_size for number, path in sorted(self._numbered().items())}
        for number, path in sorted(self._numbered().items()):
            if sum(sizes.values()) + self._file_bytes <= self._total_bytes and len(sizes) < FILES:
                return
            path.unlink()
            del sizes[number]

    def _numbered(self) -> dict[int, Path]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self._folder.iterdir())
        return {int(match[1]): path for match, path in matches if match is not None}


@dataclass(frozen=True, slots=True)
class _Lines:
    """What is to be written."""

    content: bytes
    begins: int = 0  # to a new file, the one with this number since the start


class _File:
    """One compressed file, readable up to the last `write` whatever happens then."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        self._packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
        self.size = 0

    def write(self, lines: bytes) -> None:
        self._put(self._packer.compress(lines) + self._packer.flush(zlib.Z_SYNC_FLUSH))

    def close(self) -> None:
        try:
            self._put(self._packer.flush())
        finally:
            os.close(self._fd)

    def abandon(self) -> None:
        """Leave it as it is."""
        os.close(self._fd)

    def _put(self, packed: bytes) -> None:
        while packed:
            written = os.write(self._fd, packed)
            packed = packed[written:]
            self.size += written
