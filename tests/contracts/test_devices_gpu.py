"""The NVML adapter on a real GPU: the same figures as nvidia-smi, and a CUDA allocation comes and goes."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpumodd.adapters.nvml import NvmlDevices
from gpumodd.core.facts import DeviceFact, DevicesFact
from gpumodd.core.health import kinds

pytestmark = pytest.mark.gpu

MIB = 512
INITIAL_PID_NAMESPACE = 4026531836  # the kernel's PROC_PID_INIT_INO: only there does NVML say the pids we know

# Holds MIB on the first device from the first line of its standard input to the second.
ALLOCATE = f"""
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        sys.exit(f"{{name}} returned {{code}}")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
print("context", flush=True)
sys.stdin.readline()
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t({MIB} << 20))
print("allocated", flush=True)
sys.stdin.readline()
call("cuMemFree_v2", memory)
print("freed", flush=True)
sys.stdin.readline()
"""


def smi(*fields: str) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        # No CI has a GPU: a reason to skip, never to fail.
        pytest.skip(f"no NVIDIA GPU: {error}")
    return [line.split(", ") for line in answer.stdout.splitlines()]


@pytest.fixture
def devices() -> Iterator[NvmlDevices]:
    if not shutil.which("nvidia-smi") or not smi("uuid"):
        pytest.skip("no NVIDIA GPU: no nvidia-smi here")
    devices = NvmlDevices(timeout_s=20)
    yield devices
    devices.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [sys.executable, "-c", ALLOCATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        yield child
        child.kill()


def go(child: subprocess.Popen, expected: str) -> None:
    assert child.stdin
    assert child.stdout
    if expected != "context":
        child.stdin.write("go\n")
    assert child.stdout.readline() == f"{expected}\n"


async def until(devices: NvmlDevices, met: Callable[[DevicesFact], bool]) -> DevicesFact:
    async with asyncio.timeout(20):
        while not met(fact := await devices.sample()):
            await asyncio.sleep(0.02)
    return fact


def held(device: DeviceFact, pid: int) -> int | None:
    return next((process.used_mib for process in device.processes if process.pid == pid), None)


async def test_the_figures_are_those_of_nvidia_smi(devices):
    fact = await devices.sample()
    assert fact.error == ""
    assert not [device.lost for device in fact.devices if device.lost]
    expected = smi("uuid", "index", "name", "memory.total")
    assert [[d.uuid, str(d.index), d.name, str(d.total_mib)] for d in fact.devices] == expected
    free = [int(row[0]) for row in smi("memory.free")]
    for device, free_mib in zip(fact.devices, free, strict=True):
        assert abs(device.total_mib - device.used_mib - free_mib) <= 64


def figure(text: str) -> int | None:
    """A number; None where the driver has none."""
    return int(text) if text.isdigit() else None


async def test_health_is_what_nvidia_smi_says(devices):
    fact = await devices.sample(thorough=True)
    asked = "temperature.gpu", "ecc.errors.uncorrected.volatile.total", "ecc.errors.uncorrected.aggregate.total"
    for device, (degrees, volatile, aggregate) in zip(fact.devices, smi(*asked), strict=True):
        health = device.health
        assert (health.ecc_volatile, health.ecc_aggregate) == (figure(volatile), figure(aggregate))
        seen = figure(degrees)
        assert (health.temperature_c is None) == (seen is None)
        assert seen is None or abs((health.temperature_c or 0) - seen) <= 10
        assert health.shutdown_c is None or health.slowdown_c is None or health.slowdown_c <= health.shutdown_c
        assert kinds(device) == (), "a machine for tests has a GPU that is well"


async def test_an_allocation_is_seen_and_so_is_its_release(devices, child):
    go(child, "context")
    base = (await devices.sample()).devices[0]
    go(child, "allocated")
    fact = await until(devices, lambda fact: fact.devices[0].used_mib >= base.used_mib + MIB)
    grown = fact.devices[0].used_mib - base.used_mib
    assert MIB <= grown <= MIB + 64
    go(child, "freed")
    await until(devices, lambda fact: fact.devices[0].used_mib <= base.used_mib + 64)


async def test_an_allocation_is_attributed_to_its_process(devices, child):
    if Path("/proc/self/ns/pid").stat().st_ino != INITIAL_PID_NAMESPACE:
        pytest.skip("in a container NVML names other pids than the ones seen here")
    go(child, "context")
    fact = await until(devices, lambda fact: held(fact.devices[0], child.pid) is not None)
    base = held(fact.devices[0], child.pid)
    assert base
    go(child, "allocated")
    fact = await until(devices, lambda fact: (held(fact.devices[0], child.pid) or 0) > base)
    assert held(fact.devices[0], child.pid) == base + MIB
    assert [p.name for p in fact.devices[0].processes if p.pid == child.pid] == [
        Path(f"/proc/{child.pid}/comm").read_text().strip()
    ]
    child.kill()
    fact = await until(devices, lambda fact: held(fact.devices[0], child.pid) is None)
    assert fact.devices[0].lost == ""
