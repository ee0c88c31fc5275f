"""Processes that outlive their unit.

systemd stops waiting for what survives SIGKILL: it calls the unit failed, leaves the processes in the unit's cgroup,
and says nothing when they end at last. Owns the look into that cgroup, and the news that it is empty.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio

from gpumodd.adapters import procfs
from gpumodd.adapters.systemd.names import SLICE, unit_name
from gpumodd.ports import PortError

LOOK_EVERY_S = 0.25


class Survivors:
    """Asked by service; `tell` is called once the last process of one is gone."""

    def __init__(self, tell: Callable[[str], Awaitable[None]]) -> None:
        self._tell = tell
        self._known: set[str] = set()
        self._some = anyio.Event()
        self.manager: Path | None = None  # the directory of the manager's own cgroup

    def of(self, service: str) -> tuple[int, ...]:
        """The processes in the cgroup of a unit that the manager says is gone."""
        if self.manager is None:
            return ()
        pids = procfs.cgroup_members(self.manager / SLICE / unit_name(service))
        if pids:
            self._known.add(service)
            self._some.set()
        return pids

    def none(self, service: str) -> tuple[int, ...]:
        """The unit runs: what is in its cgroup has outlived nothing. The news that it was gone may have come late."""
        self._known.discard(service)
        return ()

    @property
    def known(self) -> frozenset[str]:
        """The services that are looked at again and again."""
        return frozenset(self._known)

    async def watch(self) -> None:
        """Until cancelled; it sleeps while there are none."""
        while True:
            await self._some.wait()
            await anyio.sleep(LOOK_EVERY_S)
            for service in sorted(self._known):
                if not self.of(service):
                    self._known.discard(service)
                    with suppress(PortError):  # the manager is out of reach: who finds it again looks at everything
                        await self._tell(service)
            if not self._known:
                self._some = anyio.Event()
