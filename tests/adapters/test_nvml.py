"""The NVML adapter against a driver that hangs, lies, is old, is missing or goes away; through the real pynvml."""

import asyncio
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from gpumodd.adapters.nvml import NvmlDevices, installed
from gpumodd.core.facts import DeviceFact, DevicesFact, HealthFact
from gpumodd.demo.table import Device, DeviceTable
from tests.support.nvml_stub import OLD_DRIVER, NvmlOnStub, sizes

A, B = "GPU-aaaaaaaa-0000", "GPU-bbbbbbbb-1111"
LOST, NOT_SUPPORTED, NOT_LOADED, UNINITIALIZED, MISMATCH, UNKNOWN = 15, 3, 9, 1, 18, 999
MEMORY = "nvmlDeviceGetMemoryInfo"
COMPUTE = "nvmlDeviceGetComputeRunningProcesses_v3"
INIT = "nvmlInitWithFlags"


@pytest.fixture
def table(tmp_path: Path) -> DeviceTable:
    table = DeviceTable(tmp_path / "devices")
    table.create(Device(A, 0, 24000), Device(B, 1, 12000))
    return table


@pytest.fixture
def pid() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    yield child.pid
    child.kill()
    child.wait()


def on_stub(table: DeviceTable, *flags: str, timeout_s: float = 10, **options: object) -> NvmlOnStub:
    options = {"timeout_s": timeout_s, "first_timeout_s": timeout_s, "first_retry_s": 0.02} | options
    return NvmlOnStub(table.path, *flags, **options)


def one(fact: DevicesFact, uuid: str = A) -> DeviceFact:
    return next(device for device in fact.devices if device.uuid == uuid)


async def until(devices: NvmlOnStub, met: Callable[[DevicesFact], bool]) -> DevicesFact:
    async with asyncio.timeout(10):
        while not met(fact := await devices.sample()):
            await asyncio.sleep(0.005)
    return fact


def well(fact: DevicesFact) -> bool:
    return not fact.error and not any(device.lost for device in fact.devices)


def test_the_stub_has_the_structures_of_pynvml():
    real = [pynvml.c_nvmlMemory_t, pynvml.c_nvmlMemory_v2_t, pynvml.c_nvmlProcessInfo_v3_t]
    assert sizes() == [ctypes.sizeof(structure) for structure in real]


@pytest.mark.parametrize("function", [INIT, "nvmlDeviceGetCount_v2", "nvmlDeviceGetUUID", MEMORY, COMPUTE])
async def test_a_call_that_hangs_makes_the_sample_stale_in_time(table, function):
    async with on_stub(table, timeout_s=0.2) as devices:
        if function != INIT:
            await until(devices, well)
        if function == "nvmlDeviceGetUUID":  # asked only for a new connection
            table.set_faults(("*", "nvmlDeviceGetCount_v2", UNINITIALIZED))
            await until(devices, lambda fact: bool(fact.error))
        table.set_faults(("*", function, "hang"))
        fact = await until(devices, lambda fact: "has not answered" in fact.error)
        assert [d.uuid for d in fact.devices] == ([] if function == INIT else [A, B])
        assert 0.1 < await devices.took() < 2
        # Nobody waits a second time for the same call.
        await devices.sample()
        assert await devices.took() < 0.1
        table.set_faults()
        fact = await until(devices, well)
        assert one(fact).at == fact.at


async def test_a_process_whose_driver_hangs_can_end(table):
    async with on_stub(table, timeout_s=0.05) as devices:
        table.set_faults(("*", MEMORY, "hang"))
        await until(devices, lambda fact: "has not answered" in fact.error)
        await devices.close()
    # NvmlOnStub fails if it does not exit by itself, with 0.


async def test_samples_at_once_are_all_answered(table):
    async with on_stub(table) as devices:
        facts = await devices.ask("sample", 20)
        assert {fact["error"] for fact in facts} == {""}
        assert [len(fact["devices"]) for fact in facts] == [2] * 20


@pytest.mark.parametrize("code", [UNINITIALIZED, UNKNOWN, MISMATCH, NOT_LOADED])
async def test_a_driver_that_was_reloaded_is_connected_anew(table, code):
    async with on_stub(table) as devices:
        good = await devices.sample()
        table.set_faults(("*", MEMORY, code))
        fact = await devices.sample()
        assert fact.error.startswith("cannot read the GPUs: NVML says ")
        assert fact.devices == good.devices
        table.set_faults(("*", INIT, NOT_LOADED))
        fact = await until(devices, lambda fact: "Driver Not Loaded" in fact.error)
        assert "is its kernel module loaded?" in fact.error
        table.set_faults()
        assert one(await until(devices, well)).at > one(good).at


async def test_a_gpu_that_is_broken_in_unknown_ways_leaves_the_other(table):
    """UNKNOWN may also mean a reloaded driver, so it connects anew first; then it is that GPU's problem."""
    async with on_stub(table) as devices:
        await devices.sample()
        table.set_faults((A, MEMORY, UNKNOWN))
        assert (await devices.sample()).error
        fact = await until(devices, lambda fact: not fact.error)
        for _ in range(20):
            assert "Unknown Error" in one(fact).lost
            assert (one(fact, B).lost, one(fact, B).at) == ("", fact.at)
            fact = await devices.sample()
            assert not fact.error
        table.set_faults()
        await until(devices, well)


async def test_the_first_connection_may_take_longer(table):
    table.set_faults(("*", INIT, "hang"))
    async with NvmlOnStub(table.path, timeout_s=0.05, first_timeout_s=20) as devices:
        first = asyncio.create_task(devices.sample())
        await asyncio.sleep(0.3)
        assert not first.done()
        table.set_faults()
        assert well(await first)
        table.set_faults(("*", MEMORY, "hang"))
        await until(devices, lambda fact: "has not answered for 0.05 s" in fact.error)
        table.set_faults()


async def test_a_failing_driver_is_asked_less_and_less(table):
    async with NvmlOnStub(table.path, timeout_s=10, first_retry_s=30) as devices:
        table.set_faults(("*", INIT, NOT_LOADED))
        assert (await devices.sample()).error
        table.set_faults()
        # It would connect now, but the time for that has not come; meanwhile the answer costs no call.
        assert "Driver Not Loaded" in (await devices.sample()).error


async def test_without_a_driver_the_error_says_so(table):
    if installed():
        pytest.skip("this machine has an NVIDIA driver")
    async with NvmlOnStub(table.path, driver=False, timeout_s=10) as devices:
        fact = await devices.sample()
    assert "NVML Shared Library Not Found; is the NVIDIA driver installed?" in fact.error
    assert fact.devices == ()


@pytest.mark.parametrize("code", [LOST, NOT_SUPPORTED, 16, 4])
async def test_one_device_that_fails_leaves_the_other(table, code):
    async with on_stub(table) as devices:
        good = await devices.sample()
        table.set_faults((A, MEMORY, code))
        fact = await devices.sample()
        assert fact.error == ""
        assert one(fact).lost.startswith("NVML says ")
        assert one(fact).at == one(good).at
        assert (one(fact, B).lost, one(fact, B).at) == ("", fact.at)


async def test_a_device_that_was_never_reached_is_shown(table):
    table.set_lost(A)
    async with on_stub(table) as devices:
        fact = await devices.sample()
        assert [(d.uuid, d.total_mib) for d in fact.devices] == [(B, 12000), ("unreachable-0", 0)]
        assert "GPU is lost" in one(fact, "unreachable-0").lost
        table.set_lost(A, 0)
        fact = await until(devices, well)
        assert [d.uuid for d in fact.devices] == [A, B]


async def test_a_device_that_vanishes_is_lost_until_it_returns(table):
    async with on_stub(table) as devices:
        await devices.sample()
        with table.edit() as content:
            gone = content.devices.pop(A)
        fact = await until(devices, lambda fact: "does not list it any more" in one(fact).lost)
        assert fact.error == ""
        assert one(fact, B).lost == ""
        with table.edit() as content:
            content.devices[A] = gone
        await until(devices, well)


async def test_a_new_device_is_seen(table):
    async with on_stub(table) as devices:
        await devices.sample()
        with table.edit() as content:
            content.devices["GPU-new"] = Device("GPU-new", 2, 800)
        fact = await devices.sample()
    assert one(fact, "GPU-new").total_mib == 800


async def test_a_process_is_named_and_cannot_touch_a_terminal(table):
    rename = (
        "import sys; open('/proc/self/comm', 'w').write('a\\x1b[31mb\\tc'); print('.', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", rename], **pipes) as child:
        child.stdout.readline()
        table.hold(A, 100, pid=child.pid)
        async with on_stub(table) as devices:
            (process,) = one(await devices.sample()).processes
        child.stdin.close()
    assert (process.pid, process.name) == (child.pid, "a?[31mb?c")


async def test_memory_of_a_process_may_be_unknown(table, pid):
    table.hold(A, 500, pid=pid)
    table.set_faults((A, "process-used", "na"))
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert one(fact).used_mib == 500
    assert [(p.pid, p.used_mib) for p in one(fact).processes] == [(pid, None)]


async def test_garbage_about_a_process_counts_as_unknown(table, pid):
    table.hold(A, 500, pid=pid)
    async with on_stub(table) as devices:
        for lie in (2**64 - 2, 24001 << 20):
            table.set_faults((A, "process-used", lie))
            fact = await devices.sample()
            assert [(p.pid, p.used_mib) for p in one(fact).processes] == [(pid, None)]
            assert one(fact).lost == ""


async def test_a_process_in_two_lists_counts_once(table, pid):
    table.hold(A, 500, pid=pid)
    table.set_faults((A, "draws", pid), (B, "draws", pid))
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert [(p.pid, p.used_mib) for p in one(fact).processes] == [(pid, 500)]
    assert [(p.pid, p.used_mib) for p in one(fact, B).processes] == [(pid, 10)]


@pytest.mark.parametrize("impossible", [0, 2**32 - 1])
async def test_impossible_pids_are_left_out(table, impossible):
    table.set_faults((A, "draws", impossible))
    async with on_stub(table) as devices:
        assert one(await devices.sample()).processes == ()


async def test_an_old_driver_has_only_the_second_version(table, pid):
    table.hold(A, 500, pid=pid)
    async with on_stub(table, *OLD_DRIVER) as devices:
        fact = await devices.sample()
    assert [(p.pid, p.used_mib) for p in one(fact).processes] == [(pid, 500)]


async def test_process_lists_that_are_not_supported_leave_the_memory(table, pid):
    table.hold(A, 500, pid=pid)
    table.set_faults(("*", COMPUTE, NOT_SUPPORTED))
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert (one(fact).used_mib, one(fact).processes, one(fact).lost) == (500, (), "")


async def test_a_process_list_that_keeps_growing_is_a_problem_of_that_device(table, pid):
    table.hold(A, 500, pid=pid)
    async with on_stub(table) as devices:
        table.set_faults((A, COMPUTE, "grow"))
        fact = await devices.sample()
        assert "Insufficient Size" in one(fact).lost
        assert one(fact, B).lost == ""
        table.set_faults()
        await until(devices, well)


@pytest.mark.parametrize(("name", "lie"), [("used", 24001 << 20), ("used", 2**64 - 1), ("total", 0), ("total", 2**63)])
async def test_impossible_figures_are_a_problem_of_the_device(table, name, lie):
    async with on_stub(table) as devices:
        good = await devices.sample()
        table.set_faults((A, name, lie))
        fact = await devices.sample()
        assert "MiB used of" in one(fact).lost
        assert (one(fact).used_mib, one(fact).total_mib, one(fact).at) == (0, 24000, one(good).at)
        assert one(fact, B).lost == ""
        table.set_faults()
        await until(devices, well)


async def test_bytes_are_floored_to_mib(table):
    table.set_faults((A, "used", (7 << 20) - 1), (A, "total", (9 << 20) - 1))
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert (one(fact).used_mib, one(fact).total_mib) == (6, 8)


async def test_two_devices_with_one_uuid_are_a_problem(table):
    table.set_faults((B, "uuid", A))
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert [d.uuid for d in fact.devices] == [A]
    assert "indexes 0 and 1 have the same UUID" in one(fact).lost


@pytest.mark.parametrize("lie", ["%ff%fe", "%0a", "a%20b", "%01"])
async def test_a_garbled_uuid_is_a_problem_of_the_device(table, lie):
    table.set_faults((A, "uuid", lie), (B, "name", "%ff"))
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert [d.uuid for d in fact.devices] == [B, "unreachable-0"]
    assert fact.devices[1].lost
    assert fact.devices[0].name == ""


async def test_more_devices_than_there_are(table):
    table.set_faults(("*", "count", 4))
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert [d.uuid for d in fact.devices if not d.lost] == [A, B]
    assert [d.uuid for d in fact.devices if d.lost] == ["unreachable-2", "unreachable-3"]


async def test_a_machine_without_a_gpu_but_with_a_driver(table):
    with table.edit() as content:
        content.devices.clear()
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert (fact.devices, fact.error) == ((), "")


async def test_sampling_is_cheap(table, pid):
    """1.8 % of a core was measured at 40 Hz; half of what is seen here is the stub's."""
    async with on_stub(table) as devices:
        table.hold(A, 500, pid=pid)
        assert await devices.cpu_share(40, 1) < 0.1


# -- health ---------------------------------------------------------------------------------------------------

HEALTH = {
    "nvmlDeviceGetTemperature": ("temperature", 61),
    "nvmlDeviceGetTemperatureThreshold": ("shutdown", 98),
    "nvmlDeviceGetCurrentClocksThrottleReasons": ("throttle", 0x44),
    "nvmlDeviceGetTotalEccErrors": ("ecc-volatile", 3),
    "nvmlDeviceGetRetiredPagesPendingStatus": ("retired-pending", 1),
    "nvmlDeviceGetRemappedRows": ("remap-failed", 1),
}


@pytest.mark.parametrize("function", HEALTH)
@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN, UNINITIALIZED, LOST, 4])
async def test_what_the_driver_does_not_say_of_its_health_is_not_known_and_costs_nothing(table, function, code):
    table.set_faults((A, function, code), *((A, *figure) for figure in HEALTH.values()))
    async with on_stub(table) as devices:
        for _ in range(3):
            fact = await devices.sample(thorough=True)
            assert well(fact)
        health = one(fact).health
    said = {
        "nvmlDeviceGetTemperature": health.temperature_c == 61,
        "nvmlDeviceGetTemperatureThreshold": health.shutdown_c == 98,
        "nvmlDeviceGetCurrentClocksThrottleReasons": health.thermal_slowdown,
        "nvmlDeviceGetTotalEccErrors": health.ecc_volatile == 3,
        "nvmlDeviceGetRetiredPagesPendingStatus": health.reset_needed,
        "nvmlDeviceGetRemappedRows": health.remap_failed,
    }
    assert [name for name, known in said.items() if not known] == [function]


async def test_health_is_looked_at_seldom_unless_asked_for(table):
    async with on_stub(table) as devices:
        await devices.sample()
        table.set_faults((A, "temperature", 70))
        fact = await devices.sample()
        assert one(fact).health.temperature_c is None  # of the first look, a moment ago; and what said nothing …
        fact = await devices.sample(thorough=True)
        assert one(fact).health.temperature_c is None  # … is not asked again by this connection
    async with on_stub(table) as devices:
        assert one(await devices.sample()).health.temperature_c == 70
        table.set_faults((A, "temperature", 71))
        assert one(await devices.sample()).health.temperature_c == 70
        assert one(await devices.sample(thorough=True)).health.temperature_c == 71
        assert one(await devices.sample()).health.temperature_c == 71


async def test_a_look_at_the_health_begins_after_it_was_asked_for(table):
    table.set_faults((A, "temperature", 70))
    async with on_stub(table) as devices:
        await devices.sample()
        table.set_faults((A, "temperature", 71))
        assert await devices.ask("both") == [70, 71]


async def test_a_question_about_health_that_hangs_makes_the_sample_stale(table):
    table.set_faults((A, "temperature", 70))
    async with on_stub(table, timeout_s=0.2) as devices:
        await until(devices, well)
        table.set_faults((A, "nvmlDeviceGetTemperature", "hang"), (A, "temperature", 70))
        fact = await devices.sample(thorough=True)
        assert "has not answered" in fact.error
        table.set_faults()
        await until(devices, well)


@pytest.mark.parametrize(
    "lie",
    [("temperature", 2**32 - 1), ("temperature", 0), ("shutdown", 4000), ("ecc-volatile", 2**64 - 1)],
)
async def test_impossible_figures_of_health_are_not_believed(table, lie):
    table.set_faults((A, *lie))
    async with on_stub(table) as devices:
        fact = await devices.sample()
    assert (one(fact).health, one(fact).lost) == (HealthFact(), "")


async def test_a_gpu_that_comes_back_is_looked_at_anew(table):
    table.set_faults((A, "ecc-volatile", 1))
    async with on_stub(table) as devices:
        assert one(await devices.sample()).health.ecc_volatile == 1
        table.set_lost(A)
        assert one(await devices.sample()).lost
        table.set_faults((A, "ecc-volatile", 0))  # the reset has cleared it
        table.set_lost(A, 0)
        fact = await until(devices, well)
        assert one(fact).health.ecc_volatile == 0


def gpu(pci: Path, name: str, *, vendor: str = "0x10de", kind: str = "0x030000", status: str = "suspended") -> None:
    (pci / name / "power").mkdir(parents=True)
    (pci / name / "vendor").write_text(f"{vendor}\n")
    (pci / name / "class").write_text(f"{kind}\n")
    (pci / name / "power/runtime_status").write_text(f"{status}\n")


def test_asleep_when_every_nvidia_gpu_is(tmp_path):
    assert not NvmlDevices(pci=tmp_path).asleep(), "no GPU sleeps"
    gpu(tmp_path, "0000:00:02.0", vendor="0x8086", status="active")
    gpu(tmp_path, "0000:01:00.1", kind="0x040300", status="active")  # the GPU's sound device
    assert not NvmlDevices(pci=tmp_path).asleep()
    gpu(tmp_path, "0000:01:00.0")
    gpu(tmp_path, "0000:02:00.0", kind="0x030200")
    devices = NvmlDevices(pci=tmp_path)
    assert devices.asleep()
    (tmp_path / "0000:02:00.0/power/runtime_status").write_text("active\n")
    assert not devices.asleep()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"x" * 10000])
def test_garbled_sysfs_is_awake(tmp_path, content):
    gpu(tmp_path, "0000:01:00.0")
    (tmp_path / "0000:01:00.0/power/runtime_status").write_bytes(content)
    assert not NvmlDevices(pci=tmp_path).asleep()
    assert not NvmlDevices(pci=tmp_path / "missing").asleep()
    assert not NvmlDevices(pci=tmp_path / "0000:01:00.0/vendor").asleep()


async def test_nobody_is_woken_without_being_asked(table):
    """The adapter calls the driver for a sample only: making and closing one starts no thread."""
    begun = time.monotonic()
    devices = NvmlDevices()
    devices.close()
    assert time.monotonic() - begun < 0.5
