"""A look at one GPU's health: temperature, throttling, damaged memory.

Every one of these calls may be missing in the driver, not supported by the GPU, or answer nonsense. Then it says
nothing; what will never be answered is not asked again. No failure here makes a GPU count as lost.
"""

from collections.abc import Callable
from typing import Any

import pynvml

from gpumodd.core.facts import HealthFact

NEVER = (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION)
LARGEST_COUNT = 1 << 48  # more errors than that is a field nobody filled in
UNCORRECTED = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED


class Checkup:
    """Asks one GPU, through the handle of the connection in force."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._mute: set[str] = set()

    def look(self) -> HealthFact:
        """What it says now. Never raises."""
        _, _, remap_pending, remap_failed = self._ask("remapped", pynvml.nvmlDeviceGetRemappedRows) or (0, 0, 0, 0)
        return HealthFact(
            temperature_c=_celsius(self._temperature()),
            slowdown_c=_celsius(self._threshold("slowdown", pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)),
            shutdown_c=_celsius(self._threshold("shutdown", pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)),
            thermal_slowdown=bool(self._clocks() & pynvml.nvmlClocksEventReasonHwThermalSlowdown),
            ecc_volatile=_count(self._errors("volatile", pynvml.NVML_VOLATILE_ECC)),
            ecc_aggregate=_count(self._errors("aggregate", pynvml.NVML_AGGREGATE_ECC)),
            reset_needed=remap_pending == 1
            or self._ask("retired", pynvml.nvmlDeviceGetRetiredPagesPendingStatus) == pynvml.NVML_FEATURE_ENABLED,
            remap_failed=remap_failed == 1,
        )

    def _temperature(self) -> Any:
        found = self._ask("temperature", pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)
        # The older function is to go, the newer one is missing in most drivers.
        newer = getattr(pynvml, "nvmlDeviceGetTemperatureV", None)
        if found is None and newer is not None:
            found = self._ask("temperature_v", newer, pynvml.NVML_TEMPERATURE_GPU)
        return found

    def _threshold(self, name: str, which: int) -> Any:
        return self._ask(name, pynvml.nvmlDeviceGetTemperatureThreshold, which)

    def _errors(self, name: str, counter: int) -> Any:
        return self._ask(name, pynvml.nvmlDeviceGetTotalEccErrors, UNCORRECTED, counter)

    def _clocks(self) -> int:
        """Why the clocks are lower than they might be, as bits. Drivers before 535 know the older name only."""
        found = self._ask("clocks", pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        if found is None:
            found = self._ask("clocks_older", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return int(found or 0)

    def _ask(self, name: str, function: Callable[..., Any], *arguments: object) -> Any:
        if name in self._mute:
            return None
        try:
            return function(self._handle, *arguments)
        except pynvml.NVMLError as error:
            if error.value in NEVER:
                self._mute.add(name)
            return None


def _celsius(value: Any) -> int | None:
    return int(value) if value is not None and 0 < int(value) < 200 else None


def _count(value: Any) -> int | None:
    return int(value) if value is not None and 0 <= int(value) < LARGEST_COUNT else None
