"""How long deciding takes: one plan, and one event handled by the engine, as services and devices grow.

The machine is always full and in the middle of a switch: half of all services run and leave, the other half come,
every fourth depends on its neighbour. The baseline is a fixed amount of plain work per service.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.figures import Figure, Spread
from benchmarks.plot import Line, lines
from benchmarks.stage import Stage
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core import world
from gpumodd.core.engine import Engine
from gpumodd.core.facts import Active, DeviceFact, DevicesFact, HostFact, InspectFact, ProcessFact, UnitFact
from gpumodd.core.planner import plan
from gpumodd.core.specs import Catalog, ModeSpec, ServiceSpec

SERVICES = (10, 100, 1000)
DEVICES = (1, 8, 16)
TOTAL_MIB, RESERVE_MIB = 81_920, 512
PLAIN_WORK = 20  # rounds of the baseline: about what a plan costs where it is measured first


@dataclass
class Timed:
    """What one machine's rounds found, in seconds."""

    plan: list[float] = field(default_factory=list)
    event: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)


def measure(stage: Stage) -> Iterator[Figure]:
    """Rounds over machines of all sizes, each beside its baseline."""
    machines = {(count, devices): Switching(count, devices) for count in SERVICES for devices in DEVICES}
    found = {size: Timed() for size in machines}
    for _ in range(stage.times(15, 1)):
        for size, machine in machines.items():
            found[size].plan.append(seconds(machine.plans))
            found[size].plain.append(seconds(machine.plain_work))
            found[size].event.append(seconds(machine.hears))
    for (count, devices), timed in found.items():
        where = f"{count} services on {devices} {'device' if devices == 1 else 'devices'}"
        yield Figure(
            benchmark="planner",
            name=f"a plan, {where}",
            spread=Spread.of(1000 * s for s in timed.plan),
            unit="ms",
            goal=5.0 if (count, devices) == (100, 8) else None,
            how="`plan()` of a switch of the whole machine: half of the services leave, the others come",
        )
    for (count, devices), timed in found.items():
        where = f"{count} services on {devices} {'device' if devices == 1 else 'devices'}"
        yield Figure(
            benchmark="planner",
            name=f"an event, {where}",
            spread=Spread.of(1000 * s for s in timed.event),
            unit="ms",
            how="`Engine.handle` of one unit's news in the middle of that switch: views, ledger, plan, merge, journal",
        )
    for what, words in (("plan", "a plan"), ("event", "an event")):
        yield from ratios(what, words, found)
    stage.plot("planner-growth", chart(found))


def ratios(what: str, words: str, found: dict[tuple[int, int], Timed]) -> Iterator[Figure]:
    """Against plain work at each size, and how it grows."""
    for devices in DEVICES:
        large, small = (found[count, devices] for count in (1000, 100))
        yield Figure(
            benchmark="planner",
            name=f"{words} / plain work, 1000 services, {devices} devices",
            spread=Spread.ratio(getattr(large, what), large.plain),
            unit="×",
            digits=1,
            how=f"the plain work: {PLAIN_WORK} times a record of three fields made and sorted, for each service",
        )
        growth = [
            math.log10(one / other) for one, other in zip(getattr(large, what), getattr(small, what), strict=True)
        ]
        yield Figure(
            benchmark="planner",
            name=f"growth of {words}, {devices} devices",
            spread=Spread.of(growth),
            unit="",
            goal=1.25,
            how="the exponent from 100 to 1,000 services: 1 is linear, 2 would be quadratic",
        )


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, over a few milliseconds; the time of this thread alone, for nothing of it is waiting."""
    runs, begun = 0, time.thread_time()
    while (passed := time.thread_time() - begun) < 0.005 or not runs:
        work()
        runs += 1
    return passed / runs


class Switching:
    """An engine that has just begun to switch a full machine."""

    def __init__(self, count: int, devices: int) -> None:
        half = count // 2
        each_mib = (TOTAL_MIB - RESERVE_MIB) // -(-half // devices)
        self.old = [service("old", i, each_mib) for i in range(half)]
        self.new = [service("new", i, each_mib) for i in range(half)]
        self.uuids = [f"GPU-{i:02}" for i in range(devices)]
        self.engine = Engine()
        self.at = 1000.0
        self._boot()
        (inspect,) = self._handle(ev.SwitchRequested(at=self.at, request=1, mode="after"))
        assert isinstance(inspect, fx.Inspect)
        effects = self._handle(
            ev.Inspected(
                at=self.at,
                effect=inspect.id,
                services=tuple(InspectFact(service=s) for s in inspect.services),
                devices=self._sample(),
                host=HostFact(at=self.at, mem_available_mib=1_000_000, mem_total_mib=2_000_000),
            )
        )
        self.stops = sum(isinstance(effect, fx.StopUnit) for effect in effects)
        assert self.stops, f"nothing was begun: {effects}"
        self.given = world.plan_input(self.engine.state, self.engine.state.desired)
        assert not plan(self.given).blocked

    def plans(self) -> None:
        """From the world to the steps."""
        plan(self.given)

    def hears(self) -> None:
        """News of one unit: it still runs."""
        self.at += 0.001
        self._handle(ev.UnitsObserved(at=self.at, facts=(self._fact(0),)))

    def plain_work(self) -> None:
        """As much as a program could hardly do without, for each service."""
        for _ in range(PLAIN_WORK):
            records = [(spec.priority, spec.vram_mib, spec.id) for spec in (*self.old, *self.new)]
            records.sort(reverse=True)

    def _boot(self) -> None:
        specs = {spec.id: spec for spec in (*self.old, *self.new)}
        before = ModeSpec(id="before", services=tuple(spec.id for spec in self.old))
        after = ModeSpec(id="after", services=tuple(spec.id for spec in self.new))
        facts = tuple(self._fact(i) for i in range(len(self.old)))
        self._handle(
            ev.Recovered(at=self.at, snapshot=None),
            ev.CatalogLoaded(at=self.at, catalog=Catalog(services=specs, modes={m.id: m for m in (before, after)})),
            ev.UnitsObserved(at=self.at, facts=facts, complete=True),
            ev.DevicesSampled(at=self.at, fact=self._sample()),
            ev.ObservationCompleted(at=self.at),
        )

    def _handle(self, *events: ev.Event) -> list[fx.Effect]:
        effects = self.engine.handle(*events)
        return [e for e in effects if not isinstance(e, fx.Save | fx.Announce)]

    def _fact(self, i: int) -> UnitFact:
        return UnitFact(
            service=self.old[i].id, active=Active.ACTIVE, at=self.at, main_pid=100 + i, invocation=f"run-{i}"
        )

    def _sample(self) -> DevicesFact:
        processes: dict[str, list[ProcessFact]] = {uuid: [] for uuid in self.uuids}
        for i, spec in enumerate(self.old):
            uuid = self.uuids[i % len(self.uuids)]
            processes[uuid].append(ProcessFact(pid=100 + i, used_mib=spec.vram_mib, service=spec.id))
        found = tuple(
            DeviceFact(
                uuid=uuid,
                index=i,
                name=f"Device {i}",
                total_mib=TOTAL_MIB,
                used_mib=sum(p.used_mib or 0 for p in processes[uuid]),
                at=self.at,
                processes=tuple(processes[uuid]),
            )
            for i, uuid in enumerate(self.uuids)
        )
        return DevicesFact(at=self.at, backend="simulated", devices=found)


def service(side: str, i: int, vram_mib: int) -> ServiceSpec:
    """One of many; every fourth depends on the one before it."""
    needs = (f"{side}-{i - 1:04}",) if i % 4 == 3 else ()
    port = (10_000 if side == "old" else 20_000) + i
    return ServiceSpec(id=f"{side}-{i:04}", vram_mib=vram_mib - i % 3, ram_mib=100, port=port, depends_on=needs)


def chart(found: dict[tuple[int, int], Timed]) -> str:
    """Time over services, both on a logarithmic scale."""
    shown = []
    for what, words in (("plan", "a plan"), ("event", "an event")):
        for devices in (DEVICES[0], DEVICES[-1]):
            points = [(count, 1000 * Spread.of(getattr(found[count, devices], what)).median) for count in SERVICES]
            shown.append(Line(name=f"{words}, {devices} devices", points=points))
    linear = [(count, 5.0 * count / 100) for count in SERVICES]
    return lines(
        "deciding, in ms, over the number of services",
        [*shown, Line(name="linear", points=linear, ideal=True)],
        log=True,
    )
