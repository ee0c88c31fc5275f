"""The ports as far as the runtime's own tests need them; the real ones are tested in contracts and system."""

from collections.abc import Iterable, Mapping

from gpumodd.core.facts import Answer, DeviceFact, DevicesFact, HostFact, ProbeFact
from gpumodd.drivers.api import ProbeSpec
from gpumodd.ports import JobResult, PortError


class ManualClock:
    """Time that only the test moves."""

    def __init__(self, at: float = 100.0, *, boot: str = "boot-1", epoch: float = 1_700_000_000.0) -> None:
        self.at = at
        self.slept = 0.0
        self.boot = boot
        self.epoch = epoch

    def boottime(self) -> float:
        return self.at

    def suspended(self) -> float:
        return self.slept

    def sleep(self, seconds: float) -> None:
        """The lid is closed for a while."""
        self.at += seconds
        self.slept += seconds

    def wall(self) -> float:
        return self.epoch + self.at

    def boot_id(self) -> str:
        return self.boot


class ScriptedUnits:
    """Units whose every answer is set by the test."""

    backend = "scripted"

    def __init__(self) -> None:
        self.fails: BaseException | None = None
        self.asked: list[tuple[str, str]] = []
        self.listens: dict[str, bool | None] = {}

    async def start(self, service: str, env: Mapping[str, str]) -> JobResult:
        return self._do("start", service)

    async def stop(self, service: str) -> JobResult:
        return self._do("stop", service)

    async def kill(self, service: str) -> None:
        self._do("kill", service)

    async def refresh(self, service: str) -> None:
        self._do("refresh", service)

    async def logs(self, service: str, *, lines: int, this_run: bool = False) -> list[str]:
        self._do("logs", service)
        return ["last", "words"]

    async def owns_listener(self, service: str, host: str, port: int) -> bool | None:
        self._do("owns", service)
        return self.listens.get(service)

    async def pids(self, service: str) -> tuple[int, ...]:
        self._do("pids", service)
        return (7, 8)

    def owner(self, pid: int) -> str | None:
        return {7: "mine"}.get(pid)

    def _do(self, verb: str, service: str) -> JobResult:
        self.asked.append((verb, service))
        if self.fails is not None:
            raise self.fails
        return JobResult.DONE


class OneDevice:
    """A device whose sample is set by the test."""

    backend = "simulated"

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.samples = 0
        self.thorough = 0
        self.powered_down = False
        self.processes: tuple = ()

    async def sample(self, *, thorough: bool = False) -> DevicesFact:
        self.samples += 1
        self.thorough += thorough
        device = DeviceFact(
            uuid="GPU-0", index=0, name="One", total_mib=1000, used_mib=0, at=self.clock.at, processes=self.processes
        )
        return DevicesFact(at=self.clock.at, backend=self.backend, devices=(device,))

    def asleep(self) -> bool:
        return self.powered_down

    def close(self) -> None:
        pass


class QuietHost:
    """A host with memory, and whatever files and listeners the test says."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.unreadable = False
        self.missing: dict[str, str] = {}
        self.stranger = ""

    def memory(self) -> HostFact:
        if self.unreadable:
            raise PortError("host_unreadable", "cannot read the free memory")
        return HostFact(at=self.clock.at, mem_available_mib=8000)

    def held_mib(self, pids: Iterable[int]) -> int:
        return 10 * len(tuple(pids))

    def missing_file(self, path: str) -> str:
        return self.missing.get(path, "")

    async def listener(self, host: str, port: int) -> str:
        return self.stranger


class CountingProber:
    """Answers at once and counts."""

    def __init__(self, answer: Answer = Answer.HEALTHY) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def probe(self, service: str, spec: ProbeSpec) -> ProbeFact:
        self.asked.append(service)
        return ProbeFact(service=service, answer=self.answer, at=0.0)
