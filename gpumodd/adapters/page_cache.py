"""The kernel's page cache: brings model files into it before their server asks. The port `PageCache`.

Owns which files belong to a model and how they are read. What it reads it throws away; only the kernel keeps it.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from anyio import to_thread

CHUNK = 16 << 20  # bytes between two looks at whether it is still wanted
SHARD = re.compile(r"-\d{5}-of-(\d{5})(\.gguf)$")
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")


class LinuxPageCache:
    """Reads files so that the next one who reads them finds them in memory."""

    async def size_mib(self, model: str) -> int:
        """What the model's files would take of it; 0 for what cannot be read."""
        return await to_thread.run_sync(_size_mib, model)

    async def read(self, model: str, wanted: Callable[[], bool]) -> int:
        """Read the model's files until they are through or no longer `wanted`; the MiB that were read."""
        # posix_fadvise(WILLNEED) would be the call for this, but the kernel caps it at a device's read-ahead window.
        room = bytearray(CHUNK)
        done = 0
        for file in await to_thread.run_sync(files, model):
            with suppress(OSError), file.open("rb", buffering=0) as source:
                while wanted() and (count := await to_thread.run_sync(source.readinto, room)):
                    done += count
        return done >> 20


def files(model: str) -> list[Path]:
    """The files of a model: itself with its other shards, or the weights in its directory."""
    path = Path(model)
    shard = SHARD.search(path.name)
    with suppress(OSError, ValueError):
        if path.is_dir():
            return sorted(file for file in path.iterdir() if file.suffix in WEIGHTS and file.is_file())
        if shard is not None:
            stem = path.name[: shard.start()]
            like = re.compile(re.escape(stem) + r"-\d{5}-of-" + shard[1] + re.escape(shard[2]))
            return sorted(file for file in path.parent.iterdir() if like.fullmatch(file.name) and file.is_file())
        return [path] if path.is_file() else []
    return []


def _size_mib(model: str) -> int:
    with suppress(OSError):
        return -(-sum(file.stat().st_size for file in files(model)) // (1 << 20))
    return 0
