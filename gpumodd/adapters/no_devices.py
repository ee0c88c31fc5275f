"""A machine whose devices nobody looks at: `devices: {backend: none}`, or `auto` without a driver."""

import time

from gpumodd.core.facts import DevicesFact


class NoDevices:
    """The Devices port without a device."""

    backend = "none"

    def __init__(self, reason: str = "") -> None:
        self._reason = reason  # why there are none, when somebody looked for them

    async def sample(self, *, thorough: bool = False) -> DevicesFact:  # noqa: ARG002
        return DevicesFact(at=time.clock_gettime(time.CLOCK_BOOTTIME), backend=self.backend, error=self._reason)

    def asleep(self) -> bool:
        return False

    def close(self) -> None:
        pass
