"""What of a file is in the kernel's page cache, and a way to have nothing of it there."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def cached(path: Path) -> float:
    """The share of the file's pages that are in memory."""
    size = path.stat().st_size
    told = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as source:
        address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, source.fileno(), 0)
    try:
        assert LIBC.mincore(address, size, told) == 0, os.strerror(ctypes.get_errno())
    finally:
        LIBC.munmap(address, size)
    return sum(byte & 1 for byte in told) / len(told)


def make_cold(path: Path) -> None:
    """Take a file out of the page cache, or skip the test where that cannot be done."""
    with path.open("rb+") as written:
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path) > 0.1:
        pytest.skip("this file system keeps everything in memory")
