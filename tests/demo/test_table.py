"""The device table as a driver: it never hands memory out twice, and a writer may die at any moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpumodd.demo.table import Device, DeviceTable, OutOfMemory, TableError, process_started

A, B = "GPU-a", "GPU-b"

# Takes and gives back memory as fast as it can until it is killed; says how often it got some, and was refused.
GREEDY = """
import sys
from gpumodd.demo.table import DeviceTable, OutOfMemory
table = DeviceTable(sys.argv[1])
print("up", flush=True)
while True:
    for mib in (100, 400, 300, 0):
        try:
            table.hold("GPU-a", mib)
        except OutOfMemory:
            pass
"""


@pytest.fixture
def table(tmp_path: Path) -> DeviceTable:
    table = DeviceTable(tmp_path / "devices")
    table.create(Device(A, 0, 1000, foreign_mib=100), Device(B, 1, 500, name="A name with spaces, ü"))
    return table


@contextmanager
def process() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def test_what_is_written_is_read(table):
    table.hold(A, 300)
    content = table.read()
    assert list(content.devices.values()) == [
        Device(A, 0, 1000, foreign_mib=100),
        Device(B, 1, 500, name="A name with spaces, ü"),
    ]
    assert (content.used_mib(A), content.free_mib(A)) == (400, 600)
    assert content.processes(A) == {os.getpid(): 300}
    assert content.processes(B) == {}


def test_a_hold_is_what_the_process_has_in_all(table):
    for mib in (300, 900, 200):
        table.hold(A, mib)
        assert table.read().processes(A) == {os.getpid(): mib}
    table.hold(A, 0)
    assert table.read().processes(A) == {}


def test_memory_is_never_handed_out_twice(table):
    with process() as other:
        table.hold(A, 600, pid=other)
        with pytest.raises(OutOfMemory, match="cannot allocate 301 MiB on GPU-a: 300 MiB are free"):
            table.hold(A, 301)
        table.hold(A, 300)
        with pytest.raises(OutOfMemory):
            table.set_foreign(A, 101)
        refusals = table.read().refusals
    assert [(r.uuid, r.pid, r.mib, r.free_mib) for r in refusals] == [(A, os.getpid(), 301, 300)]


def test_a_refused_growth_keeps_what_there_was(table):
    table.hold(A, 500)
    with pytest.raises(OutOfMemory) as refusal:
        table.hold(A, 901)
    assert (refusal.value.asked_mib, refusal.value.free_mib) == (401, 400)
    assert table.read().processes(A) == {os.getpid(): 500}


def test_memory_that_lingers_cannot_be_had(table):
    with process() as other:
        table.hold(A, 600, pid=other, linger_ms=60_000)
    with pytest.raises(OutOfMemory):
        table.hold(A, 301)
    table.settle()
    table.hold(A, 900)


def test_freed_late(table):
    table.hold(A, 600)
    begun = time.monotonic()
    table.free(A, linger_ms=200)
    content = table.read()
    assert (content.used_mib(A), content.processes(A)) == (700, {})
    while table.read().used_mib(A) != 100:
        assert time.monotonic() - begun < 10
        time.sleep(0.005)
    assert time.monotonic() - begun >= 0.19


def test_foreign_memory_moves(table):
    table.set_foreign(A, 1000)
    assert table.read().free_mib(A) == 0
    table.set_foreign(A, 0)
    assert table.read().free_mib(A) == 1000


def test_many_writers_that_are_killed_leave_a_good_table(table):
    """kill -9 in the middle of anything: the table stays whole, and adds up, and its lock is free."""
    writers: list[subprocess.Popen] = []
    command = [sys.executable, "-c", GREEDY, str(table.path)]
    try:
        for _ in range(3):
            fresh = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
            writers += fresh
            for writer in fresh:
                assert writer.stdout
                assert writer.stdout.readline() == b"up\n"
            deadline = time.monotonic() + 0.4
            while time.monotonic() < deadline:
                assert table.read().used_mib(A) <= 1000
            for writer in fresh:
                writer.kill()
                content = table.read()
                assert set(content.devices) == {A, B}
                assert content.used_mib(A) <= 1000
            for writer in fresh:
                writer.wait()
            assert table.read().used_mib(A) == 100
    finally:
        for writer in writers:
            with writer:  # closes its pipe and waits
                writer.kill()
    table.hold(A, 900)
    assert all(refusal.mib > refusal.free_mib for refusal in table.read().refusals)
    assert len(table.read().refusals) <= 200


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, [A]),
        ("", []),
        ("-1", []),
        ("1", [B]),
        ("1,0", [B, A]),
        (f"{B}, {A}", [B, A]),
        ("GPU-", []),  # two begin like this
        (f"{A},7,{B}", [A]),  # CUDA stops at the first that does not exist
    ],
)
def test_visible_devices(table, selection, expected):
    assert [device.uuid for device in table.read().visible(selection)] == expected


def test_a_stopped_process_still_holds(table):
    with process() as other:
        table.hold(A, 600, pid=other)
        os.kill(other, signal.SIGSTOP)
        assert table.read().used_mib(A) == 700
        os.kill(other, signal.SIGCONT)


def test_what_cannot_be_is_refused(table):
    with pytest.raises(TableError, match="cannot find device 'GPU-x' in the table: it has GPU-a, GPU-b"):
        table.hold("GPU-x", 5)
    with pytest.raises(TableError, match="cannot hold memory for pid 4194305: no such process"):
        table.hold(A, 5, pid=4194305)
    with pytest.raises(TableError, match="cannot hold -5 MiB"):
        table.hold(A, -5)
    for device in (Device("", 0, 1), Device("a b", 0, 1), Device("a\nb", 0, 1), Device("a", 0, 1, name="x\ny")):
        with pytest.raises(TableError, match="cannot make a device"):
            table.create(device)
    assert table.read().used_mib(A) == 100


def test_an_edit_that_fails_changes_nothing(table):
    before = table.path.read_bytes()
    with pytest.raises(ZeroDivisionError), table.edit() as content:
        content.devices.clear()
        raise ZeroDivisionError
    assert table.path.read_bytes() == before
    table.set_foreign(A, 5)  # and the lock is free


def test_the_start_of_a_process_tells_it_from_its_successor():
    mine = process_started(os.getpid())
    with process() as other:
        theirs = process_started(other)
        assert mine is not None
        assert theirs is not None
        assert theirs >= mine
    assert process_started(other) is None
    assert process_started(0) is None
