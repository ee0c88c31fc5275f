"""A machine whose devices nobody looks at: `devices: {backend: none}`, or `auto` without a driver."""

import time

from gpumodd.core.facts import DevicesFact


class NoDevices:
    """The Devices port without a device."""

    backend = "none"

    async def sample(self) -> DevicesFact:
        return DevicesFact(at=time.clock_gettime(time.CLOCK_BOOTTIME), backend=self.backend)

    def asleep(self) -> bool:
        return False

    def close(self) -> None:
        pass
