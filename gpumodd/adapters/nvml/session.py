"""One connection to the driver: what it says of its GPUs, sample by sample.

Decides nothing: a GPU that fails, vanishes or reports what cannot be true is handed on with `lost` saying why.

Required of the driver: init, count, handle by index, UUID, name, memory info, compute processes. All else may
be missing.
"""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from gpumodd.adapters.nvml.checkup import Checkup
from gpumodd.core.facts import DeviceFact, DevicesFact, HealthFact, ProcessFact

MIB = 1 << 20
EXAMINE_S = 5.0  # between looks at the GPUs' health
LARGEST_MIB = 16 << 20  # 16 TiB: no GPU is that large, a garbled reply is
LARGEST_PID = 1 << 22  # the kernel's PID_MAX_LIMIT

# After these the library's state is of no use: a reload or update of the driver, or a reset of a GPU.
DISCONNECTED = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
HINTS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "is the NVIDIA driver installed?",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "is its kernel module loaded?",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was updated: reboot, or reload its kernel modules",
    pynvml.NVML_ERROR_NO_PERMISSION: "may this user open /dev/nvidia*?",
}
ABSENT = (
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
)
PROCESS_LISTS = ("Compute", "Graphics", "MPSCompute")


@dataclass(frozen=True, slots=True)
class _Gpu:
    """What does not change while the library stays initialised."""

    handle: Any
    uuid: str
    index: int
    name: str
    checkup: Checkup


class Session:
    """One connection to the driver; used by the thread alone, but for `stale`."""

    def __init__(self, first_retry_s: float) -> None:
        self._first_retry_s = first_retry_s
        self._retry_s = 0.0
        self._retry_at = 0.0
        self._connected = False
        self._fresh = False  # connected for this very sample
        self._error = ""
        self._gpus: list[_Gpu] = []
        self._unreachable: dict[int, str] = {}
        self._count = 0
        self._absent: set[str] = set()
        self._names: dict[int, str] = {}
        self._last: dict[str, DeviceFact] = {}
        self._examine = True
        self._examined_at = 0.0

    def stale(self, error: str) -> DevicesFact:
        return DevicesFact(at=_now(), backend="nvml", devices=_sorted(self._last), error=error)

    def observe(self, *, thorough: bool = False) -> DevicesFact:
        """One sample. Never raises. `thorough`: with a look at the GPUs' health, whenever the last one was."""
        at = _now()
        self._examine = thorough or at >= self._examined_at + EXAMINE_S
        try:
            if not self._ready():
                return self.stale(self._error)
            devices = self._devices(at)
        except pynvml.NVMLError as error:
            self._give_up(f"cannot read the GPUs: {_why(error)}")
            return self.stale(self._error)
        except Exception as error:  # whatever else a driver's reply breaks, the daemon goes on without a sample
            self._give_up(f"cannot read the GPUs: {type(error).__name__}: {error}")
            return self.stale(self._error)
        if self._unreachable or any(device.lost for device in devices.values()):
            self._retry_later()
        else:
            self._retry_s = 0.0
        self._last = devices
        if self._examine:
            self._examined_at = at
        return DevicesFact(at=at, backend="nvml", devices=(*_sorted(devices), *self._nameless(at)))

    def disconnect(self) -> None:
        if self._connected:
            self._connected = False
            with contextlib.suppress(pynvml.NVMLError):  # there may be nothing left to shut down
                pynvml.nvmlShutdown()

    # ── the connection

    def _ready(self) -> bool:
        """Connect, anew if it is time to: a lost GPU too comes back only with a new connection."""
        self._fresh = False
        if self._retry_s and time.monotonic() >= self._retry_at:
            self.disconnect()
        if not self._connected:
            if self._retry_s and time.monotonic() < self._retry_at:
                return False
            pynvml.nvmlInit()
            self._connected = self._fresh = True
            self._error = ""
            self._identify()
        elif pynvml.nvmlDeviceGetCount() != self._count:
            self._identify()
        return True

    def _give_up(self, error: str) -> None:
        self._error = error
        self.disconnect()
        self._retry_at = 0.0
        self._retry_later()

    def _retry_later(self) -> None:
        now = time.monotonic()
        if now >= self._retry_at:
            self._retry_s = min(60.0, self._retry_s * 2 or self._first_retry_s)
            self._retry_at = now + self._retry_s

    def _identify(self) -> None:
        self._gpus = []
        self._unreachable = {}
        self._absent = set()
        self._count = pynvml.nvmlDeviceGetCount()
        for index in range(min(self._count, 256)):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = str(pynvml.nvmlDeviceGetUUID(handle))
                if not uuid.isprintable() or uuid.split() != [uuid]:
                    raise _Implausible(f"the driver reports the UUID {uuid!r}")
            except (pynvml.NVMLError, UnicodeDecodeError, _Implausible) as error:
                _raise_if_disconnected(error)
                self._unreachable[index] = _why(error)
                continue
            self._gpus.append(_Gpu(handle, uuid, index, _gpu_name(handle), Checkup(handle)))

    # ── one sample

    def _devices(self, at: float) -> dict[str, DeviceFact]:
        devices: dict[str, DeviceFact] = {}
        for gpu in self._gpus:
            if gpu.uuid in devices:
                devices[gpu.uuid] = replace(
                    devices[gpu.uuid],
                    lost=f"indexes {devices[gpu.uuid].index} and {gpu.index} have the same UUID",
                )
                continue
            try:
                devices[gpu.uuid] = self._device(gpu, at)
            except (pynvml.NVMLError, _Implausible) as error:
                _raise_if_disconnected(error)
                self._reconnect_once(gpu, error)
                devices[gpu.uuid] = self._lost(gpu, _why(error), at)
        for uuid, last in self._last.items():
            if uuid not in devices:
                why = self._unreachable.get(last.index, "the driver does not list it any more")
                devices[uuid] = replace(last, lost=why)
        self._forget_names(devices)
        return devices

    def _reconnect_once(self, gpu: _Gpu, error: Exception) -> None:
        """UNKNOWN is what a reloaded driver says to an old connection, and a broken GPU to every one."""
        if not isinstance(error, pynvml.NVMLError) or error.value != pynvml.NVML_ERROR_UNKNOWN:
            return
        last = self._last.get(gpu.uuid)
        if last is not None and not last.lost and not self._fresh:
            raise error

    def _device(self, gpu: _Gpu, at: float) -> DeviceFact:
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu.handle)
        total, used = int(memory.total) // MIB, int(memory.used) // MIB
        if not 0 < total <= LARGEST_MIB or not 0 <= used <= total:
            raise _Implausible(f"the driver reports {used} MiB used of {total} MiB")
        return DeviceFact(
            uuid=gpu.uuid,
            index=gpu.index,
            name=gpu.name,
            total_mib=total,
            used_mib=used,
            at=at,
            processes=self._processes(gpu.handle, total),
            health=self._health(gpu),
        )

    def _health(self, gpu: _Gpu) -> HealthFact:
        """As it is now, or as it was at the last look: a dozen calls, too dear for every sample."""
        last = self._last.get(gpu.uuid)
        return gpu.checkup.look() if self._examine or last is None or last.lost else last.health

    def _processes(self, handle: Any, total_mib: int) -> tuple[ProcessFact, ...]:
        """Compute, graphics and MPS clients; a process that is in several lists is counted once."""
        found: dict[int, int | None] = {}
        for kind in PROCESS_LISTS:
            if kind in self._absent:
                continue
            try:
                entries = _listed(kind, handle)
            except pynvml.NVMLError as error:
                if error.value not in ABSENT:
                    raise
                if kind != "Compute":
                    self._absent.add(kind)
                continue
            for entry in entries:
                pid, used = int(entry.pid), entry.usedGpuMemory
                if not 0 < pid <= LARGEST_PID:
                    continue
                mib = None if used is None else int(used) // MIB
                if mib is not None and mib > total_mib:
                    mib = None  # drivers have been seen to fill this field with garbage: the same as not saying
                known = found.get(pid)
                found[pid] = mib if known is None else max(known, mib or 0)
        return tuple(
            ProcessFact(pid=pid, used_mib=mib, name=self._process_name(pid)) for pid, mib in sorted(found.items())
        )

    def _lost(self, gpu: _Gpu, why: str, at: float) -> DeviceFact:
        last = self._last.get(gpu.uuid)
        if last is None:
            return DeviceFact(uuid=gpu.uuid, index=gpu.index, name=gpu.name, total_mib=0, used_mib=0, at=at, lost=why)
        return replace(last, index=gpu.index, lost=why)

    def _nameless(self, at: float) -> list[DeviceFact]:
        """GPUs that were out of reach from the first look on: nobody knows which ones they are."""
        known = {device.index for device in self._last.values() if device.lost}
        return [
            self._lost(_Gpu(None, f"unreachable-{index}", index, "", Checkup(None)), why, at)
            for index, why in self._unreachable.items()
            if index not in known
        ]

    def _process_name(self, pid: int) -> str:
        name = self._names.get(pid)
        if name is None:
            word = _word(Path(f"/proc/{pid}/comm"))  # NVML knows none, and a process may call itself anything
            name = self._names[pid] = "".join(char if char.isprintable() else "?" for char in word)
        return name

    def _forget_names(self, devices: dict[str, DeviceFact]) -> None:
        """A pid that is listed no more may be another process the next time."""
        listed = {process.pid for device in devices.values() for process in device.processes}
        for pid in self._names.keys() - listed:
            del self._names[pid]


class _Implausible(Exception):
    """A reply that cannot be true."""


def _listed(kind: str, handle: Any) -> Any:
    # pynvml's unversioned functions hide a missing symbol behind an exception that is no NVMLError.
    newest = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses_v3")
    for attempt in range(3):
        try:
            return newest(handle)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                break  # drivers before 510
            # More processes came between pynvml's question how many there are and its question which.
            if error.value != pynvml.NVML_ERROR_INSUFFICIENT_SIZE or attempt == 2:
                raise
    return getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses_v2")(handle)


def _gpu_name(handle: Any) -> str:
    try:
        return str(pynvml.nvmlDeviceGetName(handle))
    except (pynvml.NVMLError, UnicodeDecodeError):
        return ""


def _raise_if_disconnected(error: Exception) -> None:
    if isinstance(error, pynvml.NVMLError) and error.value in DISCONNECTED:
        raise error


def _why(error: Exception) -> str:
    if not isinstance(error, pynvml.NVMLError):
        return str(error)
    hint = HINTS.get(error.value)
    return f"NVML says {error}; {hint}" if hint else f"NVML says {error}"


def _sorted(devices: dict[str, DeviceFact]) -> tuple[DeviceFact, ...]:
    return tuple(sorted(devices.values(), key=lambda d: (d.index, d.uuid)))


def _word(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
