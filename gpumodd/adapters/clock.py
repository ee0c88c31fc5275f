"""Time as the kernel tells it: the one implementation of the port `Clock`.

Owns no state but the boot id. Nothing else in the daemon asks the system for the time.
"""

import time
from functools import cached_property
from pathlib import Path

from gpumodd.ports import PortError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """CLOCK_BOOTTIME for deadlines and ages, wall time for people and for deadlines that outlive the boot."""

    def __init__(self, *, boot_id_file: Path = BOOT_ID) -> None:
        self._boot_id_file = boot_id_file

    def boottime(self) -> float:
        """Seconds since the boot; unlike the monotonic clock it goes on during suspend."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def suspended(self) -> float:
        """Only its growth means something: a time namespace may begin with any value."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def wall(self) -> float:
        """Unix time in seconds; it may jump."""
        return time.time()

    def boot_id(self) -> str:
        """Says whether a saved CLOCK_BOOTTIME still means something."""
        return self._boot_id

    @cached_property
    def _boot_id(self) -> str:
        try:
            return self._boot_id_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise PortError(
                "host_unreadable",
                f"cannot read the boot id from {self._boot_id_file}: {error}",
                hint="the daemon needs /proc to be mounted",
            ) from error
