"""The thread that samples: the port `Devices`, and the one thread that calls the driver.

A call into the driver can hang for ever when a GPU is lost, so the thread is a daemon thread that nobody joins, and
`sample` waits for it only so long. What the driver says is `session`'s business.
"""

import asyncio
import ctypes
import queue
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import anyio

from gpumodd.adapters.nvml.session import Session
from gpumodd.core.facts import DevicesFact


def installed() -> bool:
    """Whether this machine has an NVIDIA driver at all, in whatever state."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


class NvmlDevices:
    """The Devices port over NVML."""

    backend = "nvml"

    def __init__(
        self,
        *,
        timeout_s: float = 1.0,
        first_timeout_s: float = 4.0,
        first_retry_s: float = 1.0,
        pci: Path = Path("/sys/bus/pci/devices"),
    ) -> None:
        # Waking GPUs that no one uses takes the driver seconds, when persistence mode is off.
        self._limit_s = max(timeout_s, first_timeout_s)
        self._timeout_s = timeout_s
        self._pci = pci
        self._display: list[Path] = []
        self._look_again_at = 0.0
        self._session = Session(first_retry_s)
        self._requests: queue.SimpleQueue[tuple[Future[DevicesFact], bool] | None] = queue.SimpleQueue()
        self._current: Future[DevicesFact] | None = None
        self._thorough = False
        self._asked = 0.0
        self._started = False

    async def sample(self, *, thorough: bool = False) -> DevicesFact:
        self._thorough |= thorough  # whoever asks next asks for it too
        if thorough and self._busy():
            await self._answer()  # it may have begun before whatever is to be seen now
        if not self._busy():
            self._ask()
        return await self._answer()

    def _busy(self) -> bool:
        return self._current is not None and not self._current.done()

    def _ask(self) -> None:
        self._limit_s = self._limit_s if self._current is None else self._timeout_s
        self._current = Future()
        # A running future cannot be cancelled: a caller that gives up takes nothing from the thread.
        self._current.set_running_or_notify_cancel()
        self._requests.put((self._current, self._thorough))
        self._thorough = False
        self._asked = time.monotonic()
        self._start()

    async def _answer(self) -> DevicesFact:
        assert self._current is not None
        # Whoever comes while a call is stuck waits only for what is left of its time.
        with anyio.move_on_after(self._asked + self._limit_s - time.monotonic()):
            return await asyncio.wrap_future(self._current)
        return self._session.stale(f"cannot read the GPUs: NVML has not answered for {self._limit_s:g} s")

    def asleep(self) -> bool:
        now = time.monotonic()
        if now >= self._look_again_at:  # a look at every PCI device, dozens of them: not at every sample
            self._look_again_at = now + 10
            self._display = [
                device
                for device in _entries(self._pci)
                if _word(device / "vendor") == "0x10de" and _word(device / "class").startswith("0x03")
            ]
        states = [_word(device / "power/runtime_status") for device in self._display]
        return bool(states) and all(state == "suspended" for state in states)

    def close(self) -> None:
        self._requests.put(None)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            threading.Thread(target=self._serve, name="nvml", daemon=True).start()

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            answer, thorough = request
            answer.set_result(self._session.observe(thorough=thorough))
        self._session.disconnect()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _word(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
