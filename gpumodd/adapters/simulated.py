"""Devices that exist only in the demo's device table: `devices: {backend: simulated}`.

Owns the translation of a table into facts. Behaves as the NVML adapter does when a device is lost or the
whole source fails: the last good figures stay, with their old time.
"""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

from gpumodd.core.facts import DeviceFact, DevicesFact, HealthFact, ProcessFact
from gpumodd.demo.table import Device, DeviceTable, Table, TableError

HW_THERMAL = 0x40  # NVML's bit for a slowdown by the hardware, for its heat


class SimulatedDevices:
    """The Devices port over one device table."""

    backend = "simulated"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._table = DeviceTable(path)
        self._last: dict[str, DeviceFact] = {}

    async def sample(self, *, thorough: bool = False) -> DevicesFact:  # noqa: ARG002
        at = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            table = self._table.read()
        except TableError as error:
            return DevicesFact(at=at, backend=self.backend, devices=tuple(self._last.values()), error=str(error))
        by_index = sorted(table.devices.values(), key=lambda d: (d.index, d.uuid))
        devices = [self._observe(table, device, at) for device in by_index]
        vanished = [last for uuid, last in self._last.items() if uuid not in table.devices]
        devices += [replace(last, lost="the driver does not list it any more") for last in vanished]
        self._last = {d.uuid: d for d in devices}
        in_order = tuple(sorted(devices, key=lambda d: (d.index, d.uuid)))
        return DevicesFact(at=at, backend=self.backend, devices=in_order)

    def _observe(self, table: Table, device: Device, at: float) -> DeviceFact:
        if device.lost and device.uuid in self._last:
            return replace(self._last[device.uuid], lost=f"the GPU is lost (code {device.lost})")
        fact = DeviceFact(
            uuid=device.uuid,
            index=device.index,
            name=device.name,
            total_mib=device.total_mib,
            used_mib=table.used_mib(device.uuid),
            at=at,
            processes=tuple(
                ProcessFact(pid=pid, used_mib=mib, name=_name(pid))
                for pid, mib in sorted(table.processes(device.uuid).items())
            ),
            health=_health(table, device.uuid),
        )
        return replace(fact, lost=f"the GPU is lost (code {device.lost})") if device.lost else fact

    def asleep(self) -> bool:
        return False

    def close(self) -> None:
        pass


def _health(table: Table, uuid: str) -> HealthFact:
    figures = table.health(uuid)

    def number(name: str) -> int | None:
        with contextlib.suppress(KeyError, ValueError):  # what nobody can read is not said
            return int(figures[name], 0)
        return None

    return HealthFact(
        temperature_c=number("temperature"),
        slowdown_c=number("slowdown"),
        shutdown_c=number("shutdown"),
        thermal_slowdown=bool((number("throttle") or 0) & HW_THERMAL),
        ecc_volatile=number("ecc-volatile"),
        ecc_aggregate=number("ecc-aggregate"),
        reset_needed=bool(number("retired-pending") or number("remap-pending")),
        remap_failed=bool(number("remap-failed")),
    )


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""
