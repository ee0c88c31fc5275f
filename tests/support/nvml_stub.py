"""The NVML adapter on a stub of the driver's library, in a process of its own.

`libnvidia-ml.so.1` is found through LD_LIBRARY_PATH, which only a new process reads, and pynvml keeps what it once
loaded: so `python -m tests.support.nvml_stub` holds the adapter, and `NvmlOnStub` is the Devices port in front of it.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpumodd.core.facts import DeviceFact, DevicesFact, HealthFact, ProcessFact
from tests.support.cache import ROOT
from tests.support.compiled import library

SOURCE = Path(__file__).with_suffix(".c")
# Drivers before 510 had only the second version of the process lists.
OLD_DRIVER = tuple(
    f"-DnvmlDeviceGet{kind}RunningProcesses_v3=nvmlDeviceGet{kind}RunningProcesses_v2"
    for kind in ("Compute", "Graphics")
)


def build(*flags: str) -> Path:
    """The folder with the compiled library; skips the test where there is no compiler."""
    return library(SOURCE, "libnvidia-ml.so.1", *flags).parent


def environment(table: Path, *flags: str) -> dict[str, str]:
    """What a process needs to see the table's devices as NVIDIA GPUs."""
    return {"LD_LIBRARY_PATH": str(build(*flags)), "NVML_STUB_TABLE": str(table)}


def sizes(*flags: str) -> list[int]:
    """sizeof nvmlMemory_t, nvmlMemory_v2_t and nvmlProcessInfo_t in the stub.

    Asked in another process: once loaded here, the stub would answer to the driver library's name in all tests.
    """
    ask = "import ctypes, sys; stub = ctypes.CDLL(sys.argv[1]); print(*map(stub.nvml_stub_sizes, range(3)))"
    stub = build(*flags) / "libnvidia-ml.so.1"
    answer = subprocess.run([sys.executable, "-c", ask, str(stub)], check=True, capture_output=True)
    return [int(word) for word in answer.stdout.split()]


class NvmlOnStub:
    """The Devices port, answered by the adapter in the other process. Use as an async context manager."""

    backend = "nvml"

    def __init__(self, table: Path, *flags: str, driver: bool = True, **options: object) -> None:
        self._environment = {**os.environ, **(environment(table, *flags) if driver else {})}
        self._options = json.dumps(options, default=str)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "NvmlOnStub":
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.nvml_stub",
            self._options,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 22,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._process and self._process.stdin
        self._process.stdin.close()
        # A daemon thread that hangs in the driver must not keep the process from ending.
        async with asyncio.timeout(10):
            assert await self._process.wait() == 0

    async def sample(self, *, thorough: bool = False) -> DevicesFact:
        answer = await self.ask("thorough" if thorough else "sample")
        devices = [
            DeviceFact(
                **{
                    **device,
                    "processes": tuple(ProcessFact(**p) for p in device["processes"]),
                    "health": HealthFact(**device["health"]),
                }
            )
            for device in answer["devices"]
        ]
        return DevicesFact(**{**answer, "devices": tuple(devices)})

    async def cpu_share(self, hz: float, seconds: float) -> float:
        """How much of one core sampling at this rate takes."""
        return float(await self.ask("measure", hz, seconds))

    async def took(self) -> float:
        """How long the last sample took, without the way there and back."""
        return float(await self.ask("took"))

    async def asleep(self) -> bool:
        return bool(await self.ask("asleep"))

    async def close(self) -> None:
        await self.ask("close")

    async def ask(self, *words: object) -> Any:
        assert self._process and self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        async with asyncio.timeout(30):
            return json.loads(await self._process.stdout.readline())


async def _serve(options: dict[str, Any]) -> None:
    from gpumodd.adapters.nvml import NvmlDevices

    if "pci" in options:
        options["pci"] = Path(options["pci"])
    devices = NvmlDevices(**options)
    took = 0.0
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer: object
        match json.loads(line):
            case ["sample" | "thorough" as how]:
                begun = time.monotonic()
                answer = asdict(await devices.sample(thorough=how == "thorough"))
                took = time.monotonic() - begun
            case ["both"]:  # a thorough sample asked for while another is under way
                facts = await asyncio.gather(devices.sample(), devices.sample(thorough=True))
                answer = [fact.devices[0].health.temperature_c for fact in facts]
            case ["sample", count]:
                answer = [asdict(fact) for fact in await asyncio.gather(*(devices.sample() for _ in range(count)))]
            case ["measure", hz, seconds]:
                begun = time.process_time()
                for _ in range(int(hz * seconds)):
                    await devices.sample()
                    await asyncio.sleep(1 / hz)
                answer = (time.process_time() - begun) / seconds
            case ["took"]:
                answer = took
            case ["asleep"]:
                answer = devices.asleep()
            case ["close"]:
                answer = devices.close()
            case other:
                raise ValueError(other)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
