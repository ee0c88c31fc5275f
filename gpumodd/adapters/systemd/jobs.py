"""Who waits for which systemd job.

Owns the matching by job path, also of a JobRemoved that is read before the reply that names the job.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gpumodd.ports import JobResult


class Jobs:
    """All waits of one connection."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[asyncio.Future[JobResult]]] = {}
        self._early: dict[str, JobResult] = {}
        self._expected = 0

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """A call is under way whose reply names a job: until it is here, remember every job that ends."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected:
                self._early.clear()

    def removed(self, path: str, result: str) -> None:
        ended = job_result(result)
        if self._expected:
            self._early[path] = ended
        for waiter in self._waiting.pop(path, ()):
            if not waiter.done():
                waiter.set_result(ended)

    def wait_for(self, path: str) -> asyncio.Future[JobResult]:
        """The end of this job; to be called within `expecting`."""
        waiter: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()
        if path in self._early:
            waiter.set_result(self._early[path])
        else:
            self._waiting.setdefault(path, []).append(waiter)
        return waiter

    def lost(self) -> None:
        """Nobody will ever say how these jobs ended."""
        for path in list(self._waiting):
            self.removed(path, JobResult.LOST)


def job_result(text: str) -> JobResult:
    """systemd has more words for a job that was never carried out; all of them are failures to start or stop."""
    try:
        return JobResult(text)
    except ValueError:
        return JobResult.FAILED
