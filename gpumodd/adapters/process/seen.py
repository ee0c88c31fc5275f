"""Supervised subprocesses as seen by somebody else than their daemon: the port `Units`, for looking only.

Owns the reading of the records that shims write. It touches no process and no file; every command is refused. Where
there are no records, nothing runs.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio.to_thread

from gpumodd.adapters import procfs
from gpumodd.adapters.feed import Feed
from gpumodd.adapters.listeners import listening, unanswered
from gpumodd.adapters.process import leftovers
from gpumodd.core.facts import Active, UnitFact
from gpumodd.drivers.api import UnitFile
from gpumodd.ports import Applied, Clock, JobResult, PortError, UnitsChanged, UnitsEvent


class SeenProcesses:
    """`Units` that cannot be commanded, as they were when it was entered. `folder` is the other daemon's."""

    backend = "process"

    def __init__(self, clock: Clock, *, folder: Path) -> None:
        self._clock = clock
        self._folder = folder
        self._pids: dict[str, tuple[int, ...]] = {}
        self._owners: dict[int, str] = {}
        self._feed = Feed(self._snapshot)

    async def __aenter__(self) -> "SeenProcesses":
        await anyio.to_thread.run_sync(self._look)
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    def _look(self) -> None:
        for path in sorted(self._folder.glob(f"*{leftovers.SUFFIX}")):
            record = leftovers.read(path)
            if record is not None and (pids := record.alive()):
                service = path.name.removesuffix(leftovers.SUFFIX)
                self._pids[service] = tuple(sorted(pids))
                self._owners.update(dict.fromkeys(pids, service))

    def _snapshot(self) -> UnitsChanged:
        return UnitsChanged(facts=tuple(map(self._fact, sorted(self._pids))), complete=True)

    def _fact(self, service: str) -> UnitFact:
        pids = self._pids[service]
        return UnitFact(
            service=service,
            active=Active.ACTIVE,
            at=self._clock.boottime(),
            main_pid=pids[0],
            invocation=f"pid {pids[0]}",
            pids=pids,
        )

    # -- looking --------------------------------------------------------------------------------------------------

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[UnitsEvent]]:
        return self._feed.listen()

    async def refresh(self, service: str) -> None:
        if service in self._pids:
            self._feed.send(UnitsChanged(facts=(self._fact(service),)))

    async def pids(self, service: str) -> tuple[int, ...]:
        return self._pids.get(service, ())

    def owner(self, pid: int) -> str | None:
        return self._owners.get(pid)

    async def owns_listener(self, service: str, host: str, port: int) -> bool | None:
        return await anyio.to_thread.run_sync(self._owns, service, host, port)

    def _owns(self, service: str, host: str, port: int) -> bool | None:
        try:
            listeners = listening(host, port)
            inodes = set().union(*(procfs.socket_inodes(pid) for pid in self._pids.get(service, ())))
        except OSError as error:
            raise unanswered(host, port, error) from error
        return all(listener.inode in inodes for listener in listeners) if listeners else None

    async def logs(self, service: str, *, lines: int, this_run: bool = False) -> list[str]:  # noqa: ARG002
        return []

    def needs(self) -> str:
        return ""

    # -- commanding -----------------------------------------------------------------------------------------------

    async def apply(self, files: Mapping[str, UnitFile]) -> Applied:  # noqa: ARG002
        raise _only_looking("change units")

    async def start(self, service: str, env: Mapping[str, str]) -> JobResult:  # noqa: ARG002
        raise _only_looking(f"start {service}")

    async def stop(self, service: str) -> JobResult:
        raise _only_looking(f"stop {service}")

    async def kill(self, service: str) -> None:
        raise _only_looking(f"kill {service}")

    async def reset_failed(self, service: str) -> None:
        raise _only_looking(f"reset {service}")


def _only_looking(what: str) -> PortError:
    return PortError("driver_error", f"cannot {what}: another daemon's services can only be looked at")
