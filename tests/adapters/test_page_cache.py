"""The page cache for real: what was read ahead is in memory, as the kernel itself tells (mincore)."""

import os
from pathlib import Path

import pytest

from gpumodd.adapters.page_cache import LinuxPageCache, files
from tests.support.page_cache import cached, make_cold

CACHE = LinuxPageCache()
MIB = 1 << 20


def cold(path: Path, mib: int) -> Path:
    """A file of so many MiB that is not in the page cache."""
    path.write_bytes(os.urandom(MIB) * mib)
    make_cold(path)
    return path


async def test_what_was_read_ahead_is_in_memory(tmp_path):
    model = cold(tmp_path / "model.gguf", 24)
    assert await CACHE.size_mib(str(model)) == 24
    assert await CACHE.read(str(model), lambda: True) == 24
    assert cached(model) > 0.95


async def test_reading_stops_when_nobody_wants_it(tmp_path):
    model = cold(tmp_path / "model.gguf", 48)
    looks = iter([True, True])
    read = await CACHE.read(str(model), lambda: next(looks, False))
    assert 0 < read < 48


def test_the_files_of_a_model(tmp_path):
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "other-00002-of-00002.gguf"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    folder = tmp_path / "hf"
    folder.mkdir()
    for name in ("config.json", "b.safetensors", "a.safetensors"):
        (folder / name).write_bytes(b"x")
    assert [f.name for f in files(str(tmp_path / names[0]))] == names[:2]
    assert [f.name for f in files(str(folder))] == ["a.safetensors", "b.safetensors"]
    assert [f.name for f in files(str(folder / "config.json"))] == ["config.json"]


@pytest.mark.parametrize("path", ["/nowhere/model.gguf", "/dev/zero", "/proc/self/mem", "a\0b", ""])
async def test_what_is_no_model_is_left_alone(path):
    assert await CACHE.size_mib(path) == 0
    assert await CACHE.read(path, lambda: True) == 0
