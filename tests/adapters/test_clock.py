"""The clock agrees with the kernel."""

import time
import uuid
from pathlib import Path

import pytest

from gpumodd.adapters.clock import SystemClock
from gpumodd.ports import PortError


def test_boottime_counts_the_seconds_since_the_boot():
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = SystemClock().boottime()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert before <= now
    assert abs(uptime - now) < 5


def test_wall_is_unix_time():
    assert abs(SystemClock().wall() - time.time()) < 5


def test_the_boot_id_is_the_kernel_s():
    clock = SystemClock()
    assert str(uuid.UUID(clock.boot_id())) == clock.boot_id() == SystemClock().boot_id()


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_boot_id_is_an_error(tmp_path, content):
    file = tmp_path / "boot_id"
    if content:
        file.write_bytes(content)
    with pytest.raises(PortError, match="cannot read the boot id") as caught:
        SystemClock(boot_id_file=file).boot_id()
    assert caught.value.code == "host_unreadable"
    assert caught.value.hint


def test_what_was_slept_through_never_shrinks():
    clock = SystemClock()
    first = clock.suspended()
    assert clock.suspended() >= first - 0.001
