"""Model files on disk: opens them, and hands their heads to `estimate`.

Owns the paths, split files, what is no ordinary file, and a cache, so that a header is read again only when its file
has changed. It blocks on the disk: call it in a worker thread.
"""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpumodd.config.errors import reason
from gpumodd.estimate import checkpoint, gguf
from gpumodd.estimate.checkpoint import Checkpoint
from gpumodd.estimate.gguf import BadModel, Header

MAX_CACHED = 256
MAX_SHARDS = 1000

T = TypeVar("T")
_Stamp = tuple[tuple[str, int, int], ...]  # path, size and time of change of every file of a model


class Unusable(ValueError):
    """A model that cannot be read; says why."""


class ModelFiles:
    """Models by path; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[_Stamp, Header | Checkpoint]] = OrderedDict()

    def header(self, path: str) -> Header:
        """What the GGUF model says that begins in this file; raises Unusable."""
        found = self.model(path)
        if not isinstance(found, Header):
            raise Unusable(f"cannot read {path}: it is a directory")
        return found

    def model(self, path: str) -> Header | Checkpoint:
        """What the model says that begins in this file, or lies in this directory; raises Unusable."""
        try:
            with self._lock:
                kept = self._kept.get(path)
            if kept is not None and _unchanged(kept[0]):
                return kept[1]
            stamp, model = _directory(Path(path)) if os.path.isdir(path) else _read(path)  # noqa: PTH112
        except BadModel as error:
            raise Unusable(f"cannot read {path}: {error}") from None
        except OSError as error:
            raise Unusable(f"cannot read {error.filename or path}: {reason(error)}") from None
        with self._lock:
            self._kept[path] = (stamp, model)
            self._kept.move_to_end(path)
            while len(self._kept) > MAX_CACHED:
                self._kept.popitem(last=False)
        return model


MODEL_FILES = ModelFiles()  # one for the process: a reload reads only what changed


def _read(path: str) -> tuple[_Stamp, Header]:
    stamp, first = _parsed(path)
    if first.splits == 1:
        return (stamp,), first
    folder = Path(path).parent
    names = gguf.split_names(Path(path).name, first.splits)
    parts = [(stamp, first), *(_parsed(str(folder / name)) for name in names[1:])]
    return tuple(stamp for stamp, _ in parts), gguf.joined(header for _, header in parts)


def _directory(folder: Path) -> tuple[_Stamp, Checkpoint]:
    """A model as Hugging Face has it."""
    stamp, config = _opened(str(folder / "config.json"), lambda read: read(checkpoint.MAX_CONFIG + 1))
    shards = sorted(str(path) for path in folder.iterdir() if path.name.endswith(".safetensors"))
    if not shards or len(shards) > MAX_SHARDS:
        raise BadModel(f"it holds {len(shards)} safetensors files")
    stamps, sizes = zip(*(_opened(shard, checkpoint.weight_bytes) for shard in shards), strict=True)
    return (_stamp(str(folder)), stamp, *stamps), Checkpoint(
        config=checkpoint.configuration(config), weights=sum(sizes)
    )


def _parsed(path: str) -> tuple[tuple[str, int, int], Header]:
    return _opened(path, gguf.parse)


def _opened(path: str, parse: Callable[[Callable[[int], bytes]], T]) -> tuple[tuple[str, int, int], T]:
    """What `parse` makes of an ordinary file."""
    # Without O_NONBLOCK a pipe would hold the thread until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadModel("it is no file")
        found = parse(lambda size: _all(file.read, size))
    return (path, status.st_size, status.st_mtime_ns), found


def _all(read: Callable[[int], bytes | None], size: int) -> bytes:
    """Exactly so many bytes, fewer at the end of the file only."""
    pieces = []
    while size > 0 and (piece := read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _unchanged(stamp: _Stamp) -> bool:
    try:
        return stamp == tuple(_stamp(name) for name, _, _ in stamp)
    except OSError:
        return False


def _stamp(path: str) -> tuple[str, int, int]:
    status = os.stat(path)  # noqa: PTH116
    return path, status.st_size, status.st_mtime_ns
