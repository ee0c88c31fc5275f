"""What every Devices adapter does, on the same device table: `simulated` reads it, `nvml` through the driver stub."""

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from gpumodd.adapters.no_devices import NoDevices
from gpumodd.adapters.simulated import SimulatedDevices
from gpumodd.core.facts import DeviceFact, DevicesFact, HealthFact
from gpumodd.demo.table import Device, DeviceTable, Hold
from tests.support.nvml_stub import NvmlOnStub

A, B = "GPU-aaaaaaaa-0000", "GPU-bbbbbbbb-1111"


@pytest.fixture
def table(tmp_path: Path) -> DeviceTable:
    table = DeviceTable(tmp_path / "devices")
    table.create(Device(B, 1, 12000), Device(A, 0, 24000, foreign_mib=300, name="Simulated GPU One"))
    return table


@pytest.fixture(params=["simulated", "nvml"])
def backend(request) -> str:
    return request.param


@asynccontextmanager
async def adapter(backend: str, table: DeviceTable) -> AsyncIterator[SimulatedDevices | NvmlOnStub]:
    if backend == "simulated":
        devices = SimulatedDevices(table.path)
        yield devices
        devices.close()
    else:
        async with NvmlOnStub(table.path, timeout_s=10, first_retry_s=0.02) as devices:
            yield devices


@contextmanager
def process() -> Iterator[subprocess.Popen]:
    child = subprocess.Popen(["sleep", "60"])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def one(fact: DevicesFact, uuid: str = A) -> DeviceFact:
    return next(device for device in fact.devices if device.uuid == uuid)


async def until(devices, met: Callable[[DevicesFact], bool]) -> DevicesFact:
    async with asyncio.timeout(10):
        while not met(fact := await devices.sample()):
            await asyncio.sleep(0.005)
    return fact


async def test_devices_come_by_index_with_their_figures(backend, table):
    async with adapter(backend, table) as devices:
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        fact = await devices.sample()
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert (fact.backend, fact.error) == (backend, "")
    assert before <= fact.at <= after
    assert fact.devices == (
        DeviceFact(uuid=A, index=0, name="Simulated GPU One", total_mib=24000, used_mib=300, at=fact.at),
        DeviceFact(uuid=B, index=1, name="Simulated GPU", total_mib=12000, used_mib=0, at=fact.at),
    )


async def test_memory_is_attributed_to_its_processes(backend, table):
    async with adapter(backend, table) as devices:
        with process() as first, process() as second:
            table.hold(A, 7000, pid=first.pid)
            table.hold(B, 500, pid=first.pid)
            table.hold(A, 90, pid=second.pid)
            fact = await devices.sample()
    assert one(fact).used_mib == 300 + 7000 + 90
    assert {p.pid: p.used_mib for p in one(fact).processes} == {first.pid: 7000, second.pid: 90}
    assert [p.pid for p in one(fact).processes] == sorted([first.pid, second.pid])
    assert {(p.pid, p.used_mib) for p in one(fact, B).processes} == {(first.pid, 500)}
    assert {p.name for p in one(fact).processes} == {"sleep"}
    assert {p.service for p in one(fact).processes} == {None}


async def test_growth_and_release_are_seen(backend, table):
    async with adapter(backend, table) as devices:
        with process() as child:
            for mib in (10, 4000, 24000 - 300, 20):
                table.hold(A, mib, pid=child.pid)
                assert one(await devices.sample()).used_mib == 300 + mib
            table.free(A, pid=child.pid)
            fact = await devices.sample()
    assert one(fact).used_mib == 300
    assert one(fact).processes == ()


async def test_a_killed_process_holds_nothing_even_unreaped(backend, table):
    async with adapter(backend, table) as devices:
        with process() as child:
            table.hold(A, 7000, pid=child.pid)
            assert one(await devices.sample()).used_mib == 7300
            child.kill()
            # Nobody waits for it: it stays a zombie, as a service does until its supervisor looks.
            fact = await until(devices, lambda fact: one(fact).used_mib == 300)
            assert one(fact).processes == ()


async def test_a_reused_pid_is_somebody_else(backend, table):
    with process() as child:
        table.hold(A, 7000, pid=child.pid)
        with table.edit() as content:
            content.holds = [hold._replace(started=hold.started - 1) for hold in content.holds]
        async with adapter(backend, table) as devices:
            fact = await devices.sample()
    assert one(fact).used_mib == 300
    assert one(fact).processes == ()


async def test_a_late_release_is_used_and_listed_nowhere(backend, table):
    async with adapter(backend, table) as devices:
        with process() as child:
            table.hold(A, 7000, pid=child.pid, linger_ms=400)
        looked = time.monotonic()
        fact = await devices.sample()
        assert one(fact).used_mib == 7300
        assert one(fact).processes == ()
        await until(devices, lambda fact: one(fact).used_mib == 300)
        assert time.monotonic() - looked >= 0.35


async def test_a_new_reader_does_not_start_a_late_release_again(backend, table):
    with process() as child:
        table.hold(A, 7000, pid=child.pid, linger_ms=60_000)
    stamps = set()
    for _ in range(2):
        async with adapter(backend, table) as devices:
            assert one(await devices.sample()).used_mib == 7300
        stamps |= {line for line in table.path.read_text().splitlines() if line.startswith("hold")}
    assert len(stamps) == 1
    assert int(stamps.pop().split()[-1]) > 0


async def test_a_stopped_writer_stops_no_reader(backend, table):
    with process() as child:
        table.hold(A, 7000, pid=child.pid, linger_ms=60_000)
    with table.edit():  # holds the lock
        async with adapter(backend, table) as devices:
            fact = await devices.sample()
    assert one(fact).used_mib == 7300


async def test_a_lost_device_keeps_its_last_figures_and_comes_back(backend, table):
    async with adapter(backend, table) as devices:
        with process() as child:
            table.hold(A, 7000, pid=child.pid)
            good = await devices.sample()
            table.set_lost(A)
            fact = await devices.sample()
            assert "lost" in one(fact).lost
            assert fact.error == ""
            assert (one(fact).used_mib, one(fact).at) == (7300, good.at)
            assert one(fact).processes == one(good).processes
            assert one(fact, B).lost == ""
            assert one(fact, B).at == fact.at > good.at
            table.set_lost(A, 0)
            fact = await until(devices, lambda fact: not one(fact).lost)
            assert (one(fact).used_mib, one(fact).at) == (7300, fact.at)
            assert len(fact.devices) == 2


async def test_a_device_that_vanishes_is_lost_and_may_return_under_another_index(backend, table):
    async with adapter(backend, table) as devices:
        with process() as child:
            table.hold(A, 7000, pid=child.pid)
            good = await devices.sample()
            with table.edit() as content:
                content.holds, kept = [], content.holds
                content.devices = {B: content.devices[B]._replace(index=0)}  # who is left moves up
            fact = await until(devices, lambda fact: bool(one(fact).lost))
            assert fact.error == ""
            assert (one(fact).used_mib, one(fact).at, one(fact).index) == (7300, one(good).at, 0)
            assert (one(fact, B).lost, one(fact, B).index) == ("", 0)
            with table.edit() as content:
                content.devices[A] = Device(A, 1, 24000, foreign_mib=300)
                content.holds = kept
            fact = await until(devices, lambda fact: not one(fact).lost)
            assert [(d.uuid, d.index, d.used_mib) for d in fact.devices] == [(B, 0, 0), (A, 1, 7300)]


async def test_health_is_what_the_driver_says(backend, table):
    said = {"temperature": 61, "slowdown": 90, "shutdown": 98, "throttle": 0x44, "ecc-volatile": 2, "ecc-aggregate": 9}
    table.set_faults(*((A, name, value) for name, value in said.items()))
    async with adapter(backend, table) as devices:
        fact = await devices.sample()
        assert one(fact).health == HealthFact(
            temperature_c=61, slowdown_c=90, shutdown_c=98, thermal_slowdown=True, ecc_volatile=2, ecc_aggregate=9
        )
        assert one(fact, B).health == HealthFact()
        table.set_faults((A, "throttle", 0x20), (A, "temperature", 62))  # a slowdown by software is everyday business
        fact = await devices.sample(thorough=True)
        assert (one(fact).health.thermal_slowdown, one(fact).health.temperature_c) == (False, 62)


@pytest.mark.parametrize("name", ["retired-pending", "remap-pending", "remap-failed"])
async def test_damaged_memory_is_told(backend, table, name):
    table.set_faults((A, name, 1))
    async with adapter(backend, table) as devices:
        health = one(await devices.sample()).health
    assert (health.reset_needed, health.remap_failed) == (name != "remap-failed", name == "remap-failed")


async def test_without_a_source_the_last_figures_stay_and_it_recovers(backend, table, tmp_path):
    async with adapter(backend, table) as devices:
        good = await devices.sample()
        away = table.path.rename(tmp_path / "away")
        fact = await devices.sample()
        assert fact.error.startswith("cannot read")
        assert fact.devices == good.devices
        assert fact.at > good.at
        away.rename(table.path)
        fact = await until(devices, lambda fact: not fact.error)
        assert one(fact).at == fact.at


async def test_no_source_from_the_start_is_an_error_not_an_exception(backend, tmp_path):
    async with adapter(backend, DeviceTable(tmp_path / "nothing")) as devices:
        fact = await devices.sample()
    assert fact.error.startswith("cannot read")
    assert fact.devices == ()


GARBAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 64,
    "no header": b"device GPU-x 0 100 0 0 x\n",
    "half a line": b"gpumodd-device-table 1\ndevice GPU-x 0 10",
    "too few fields": b"gpumodd-device-table 1\ndevice GPU-x 0\n",
    "negative": b"gpumodd-device-table 1\ndevice GPU-x 0 -100 0 0 x\n",
    "huge": b"gpumodd-device-table 1\ndevice GPU-x 0 99999999999999999999999 0 0 x\n",
    "other digits": "gpumodd-device-table 1\ndevice GPU-x 0 ٣٤ 0 0 x\n".encode(),
    "twice": b"gpumodd-device-table 1\n" + b"device GPU-x 0 100 0 0 x\n" * 2,
    "orphan hold": b"gpumodd-device-table 1\nhold GPU-x 1 1 1 0 0\n",
    "bare hold": b"gpumodd-device-table 1\nhold\n",
    "unknown record": b"gpumodd-device-table 1\nhello " + b"x" * 9999 + b"\n",
    "a million lines": b"gpumodd-device-table 1\n" + b"device GPU-x 0 100 0 0 x\n" * 1_000_000,
    "many holds": b"gpumodd-device-table 1\n" + b"hold G 1 1 1 0 0\n" * 7000,
    "one endless line": b"x" * 5_000_000,
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
async def test_a_garbled_table_is_an_error_and_loses_nothing(table, content):
    devices = SimulatedDevices(table.path)
    good = await devices.sample()
    kept = table.path.read_bytes()
    table.path.write_bytes(content)
    begun = time.monotonic()
    fact = await devices.sample()
    assert time.monotonic() - begun < 1
    assert fact.error.startswith(f"cannot read device table {table.path}: ")
    assert len(fact.error) < 300
    assert fact.devices == good.devices
    table.path.write_bytes(kept)
    assert (await devices.sample()).error == ""


@pytest.mark.parametrize("value", ["warm", "0x", "-", "1e3"])
async def test_a_garbled_figure_of_health_says_nothing(table, value):
    table.set_faults((A, "temperature", value), (A, "throttle", value), (A, "remap-failed", value))
    assert one(await SimulatedDevices(table.path).sample()).health == HealthFact()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
async def test_what_is_no_file_does_not_hang(tmp_path, make):
    make(tmp_path / "table")
    fact = await SimulatedDevices(tmp_path / "table").sample()
    assert fact.error.startswith("cannot read device table")


async def test_holds_of_impossible_processes_hold_nothing(table):
    with table.edit() as content:
        content.holds = [Hold(A, 0, 1, 5), Hold(A, 1 << 40, 1, 5), Hold(A, os.getpid(), 0, 5)]
    fact = await SimulatedDevices(table.path).sample()
    assert (fact.error, one(fact).used_mib) == ("", 300)


async def test_no_devices_has_none():
    devices = NoDevices()
    fact = await devices.sample()
    assert (fact.backend, fact.devices, fact.error) == ("none", (), "")
    assert (await NoDevices("no driver").sample()).error == "no driver"
    assert not devices.asleep()
    devices.close()
