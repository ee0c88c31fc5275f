"""The memory ledger: who holds what on each device, what is still on its way back, and what is left.

Owns the arithmetic; all figures are MiB. Per device

    available = min(total - reserve - foreign, limit) - sum of committed

where a service that runs, loads or stops is committed with max(its estimate, what it was seen to hold), and one
that ended with the memory that has not come back yet. Memory is *unlisted* when the driver counts it as used
but lists no process for it; what turns unlisted while one of ours ends is releasing, never foreign.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from gpumodd.core.facts import DeviceFact
from gpumodd.core.health import Ailment
from gpumodd.core.specs import DeviceLimit, Policy

HOST = "host"  # the name under which the host's memory is kept in the same books as the devices
TOLERANCE_MIB = 64  # drivers keep crumbs: back within this much of the value before the stop counts as released


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """One sample, sorted by whose the memory is."""

    services: Mapping[str, int]
    strangers_mib: int  # listed processes that are nobody's
    unlisted_mib: int  # used, but no listed process holds it
    guessed: frozenset[str] = frozenset()  # services whose processes' memory the driver does not tell

    @property
    def pids_of(self) -> frozenset[str]:
        """The services that have at least one process listed."""
        return frozenset(self.services)


def attribute(device: DeviceFact, estimate: Callable[[str], int]) -> Attribution:
    """Sort a sample's memory by owner; an estimate stands in where the driver does not say what a process holds."""
    services: dict[str, int] = {}
    strangers = 0
    silent: set[str] = set()
    for process in device.processes:
        if process.service is None:
            strangers += process.used_mib or 0
            continue
        services.setdefault(process.service, 0)
        if process.used_mib is None:
            silent.add(process.service)
        else:
            services[process.service] += process.used_mib
    unlisted = max(0, device.used_mib - strangers - sum(services.values()))
    for service in sorted(silent):
        share = min(unlisted, max(0, estimate(service) - services[service]))
        services[service] += share
        unlisted -= share
    return Attribution(services=services, strangers_mib=strangers, unlisted_mib=unlisted, guessed=frozenset(silent))


@dataclass(slots=True, kw_only=True)
class Leaving:
    """One service's memory on its way back. `ended_at` is when its last process was gone."""

    held_mib: int
    ended_at: float | None = None


@dataclass(slots=True, kw_only=True)
class ReleaseWindow:
    """The releases under way on one device, measured against the unlisted memory before the first of them."""

    baseline_mib: int
    leaving: dict[str, Leaving] = field(default_factory=dict)

    def lingering(self, unlisted_mib: int) -> dict[str, int]:
        """What each leaving service still holds beyond its processes' life: the newest end lingers first.

        The sum is exact; who holds it is a guess that nothing but the display depends on.
        """
        rest = max(0, unlisted_mib - self.baseline_mib)
        ended = [(s, entry) for s, entry in self.leaving.items() if entry.ended_at is not None]
        shares: dict[str, int] = {}
        newest_first = sorted(ended, key=lambda item: (-(item[1].ended_at or 0.0), item[0]))
        for i, (service, entry) in enumerate(newest_first):
            last = i == len(newest_first) - 1
            shares[service] = rest if last else min(rest, entry.held_mib)
            rest -= shares[service]
        return shares

    def settle(self, unlisted_mib: int, listed: Iterable[str], sampled_at: float) -> tuple[str, ...]:
        """Close and return what is verified: nothing listed and the memory back, in a sample taken after the end."""
        still = frozenset(listed)
        shares = self.lingering(unlisted_mib)
        over = [
            s
            for s, entry in sorted(self.leaving.items())
            if s not in still
            and entry.ended_at is not None
            and sampled_at >= entry.ended_at
            and shares[s] <= TOLERANCE_MIB
        ]
        for service in over:
            del self.leaving[service]
        return tuple(over)

    def waive(self) -> tuple[str, ...]:
        """Close and return the releases whose processes ended: the device is lost, nobody can verify them."""
        over = tuple(s for s, e in sorted(self.leaving.items()) if e.ended_at is not None)
        for service in over:
            del self.leaving[service]
        return over

    def give_up(self, unlisted_mib: int, before: float) -> tuple[str, ...]:
        """Close and return the releases whose processes ended before this time; what they left is foreign now."""
        lingering = self.lingering(unlisted_mib)
        late = [s for s, e in sorted(self.leaving.items()) if e.ended_at is not None and e.ended_at <= before]
        for service in late:
            self.baseline_mib += lingering[service]
            del self.leaving[service]
        return tuple(late)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One device's memory as the planner sees it."""

    uuid: str
    index: int
    name: str
    total_mib: int
    reserve_mib: int
    foreign_mib: int
    limit_mib: int | None
    held: Mapping[str, int]  # committed, by service; what has not come back counts under its old owner
    trouble: str = ""  # device_unhealthy or telemetry_stale: nothing may be started on it
    ailments: tuple[Ailment, ...] = ()  # what makes it unhealthy

    @property
    def committed_mib(self) -> int:
        """The sum of what services hold."""
        return sum(self.held.values())

    @property
    def capacity_mib(self) -> int:
        """What services may hold together."""
        physical = self.total_mib - self.reserve_mib - self.foreign_mib
        return physical if self.limit_mib is None else min(physical, self.limit_mib)

    @property
    def available_mib(self) -> int:
        """What a start may still take; negative when somebody else grew."""
        return self.capacity_mib - self.committed_mib


def limit_of(total_mib: int, policy: Policy, *names: str) -> int | None:
    """The policy's cap for a device of this size that goes by these names (UUID, index), in MiB. Whoever names a
    device twice means the smaller figure."""
    limits = [DeviceLimit(device="", mib=policy.vram_limit_mib, percent=policy.vram_limit_percent)]
    limits += [limit for limit in policy.vram_limits if limit.device in names]
    caps = [limit.mib for limit in limits if limit.mib is not None]
    caps += [int(total_mib * limit.percent / 100) for limit in limits if limit.percent is not None]
    return min(caps, default=None)


def share(vram_mib: int, devices: int) -> int:
    """A service's memory on each of its devices: an even split, rounded up."""
    return -(-vram_mib // devices) if devices else 0
