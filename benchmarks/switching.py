"""A whole switch against its lower bound, for 1 to 16 services.

The bound is made of the same commands run directly in the same round, overlapping in the same way: how long each
leaving service takes from SIGTERM until it is gone and its memory free, how long each incoming one from exec until it
can answer 200, put together along the gates that memory and dependencies demand. No daemon can be faster; what it
takes longer is its own. For contrast, the same work one after the other.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from benchmarks import direct
from benchmarks.figures import Figure, Spread
from benchmarks.plot import Bar, Line, lines, timeline
from benchmarks.scenarios import SCENARIOS, Placed, Scenario
from benchmarks.stage import FIFTY, Backend, Stage, free_ports
from gpumodd.demo.model_server import boottime
from gpumodd.demo.table import Device
from tests.support.daemon import GPU, TOTAL_MIB, Daemon

SHOWN_IN_TIME = ("mix4", "mix16", "chain")  # the scenarios whose last round is drawn as a timeline


@dataclass
class Rounds:
    """What the rounds of one scenario on one backend found, in seconds."""

    switch: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)
    serial: float = 0.0
    ideal: Placed = field(default_factory=dict)  # of the last round …
    operation: dict[str, Any] = field(default_factory=dict)  # … and what the daemon made of it


def measure(stage: Stage) -> Iterator[Figure]:
    """Rounds: the daemons get ready, the commands run directly, each daemon switches."""
    scenarios = list(SCENARIOS)
    if stage.quick:
        scenarios = [scenario.hurried(0.1) for scenario in SCENARIOS if scenario.size in (1, 4, 16)]
    found = {(scenario.name, backend): Rounds() for scenario in scenarios for backend in stage.backends}
    with ExitStack() as stack:
        daemons = {backend: stack.enter_context(stage.daemon(backend, "switch")) for backend in stage.backends}
        for daemon in daemons.values():
            configure(daemon, scenarios)
            daemon.start()
        for scenario in scenarios:
            serial = direct.one_by_one(daemons[stage.first], scenario)
            for backend, daemon in daemons.items():
                found[scenario.name, backend].serial = serial
                if not stage.quick:  # so that it knows what each takes
                    daemon.switch(f"{scenario.name}-before")
                    daemon.switch(f"{scenario.name}-after")
        for _ in range(stage.times(5, 1)):
            for scenario in scenarios:
                one_round(daemons, scenario, {backend: found[scenario.name, backend] for backend in daemons})
        for daemon in daemons.values():
            assert not daemon.refusals(), "a device was over-committed"
    for backend in stage.backends:
        for scenario in scenarios:
            rounds = found[scenario.name, backend]
            if scenario.name in SHOWN_IN_TIME:
                stage.plot(f"switching-{scenario.name}-{backend.name}", chart(scenario, rounds, backend.words))
            yield from figures(scenario, rounds, backend)
        stage.fifty(backend)
        yield Figure(
            benchmark="switching",
            name=f"switch to {FIFTY} services, {backend.name}",
            spread=Spread.of([1000 * stage.fifty_took_s[backend.name]]),
            unit="ms",
            digits=0,
            how=f"servers that need no time to load; from the client's request to its answer; {backend.words}",
        )
    by_size = {s.size: s.name for s in scenarios if s.name.startswith("mix")}
    stage.plot("switching-sizes", sizes(by_size, found, stage.backends))


def figures(scenario: Scenario, rounds: Rounds, backend: Backend) -> Iterator[Figure]:
    """One scenario's on one backend."""
    what = f"{scenario.size} services" if scenario.name.startswith("mix") else scenario.name
    what += f", {backend.name}"
    yield Figure(
        benchmark="switching",
        name=f"switch / lower bound, {what}",
        spread=Spread.ratio(rounds.switch, rounds.bound),
        unit="×",
        goal=1.05 if scenario.size <= 4 else 1.10,
        digits=3,
        how=f"{scenario.words}; from the client's request to its answer; {backend.words}",
    )
    yield Figure(
        benchmark="switching",
        name=f"above the lower bound, {what}",
        spread=Spread.of(1000 * (s - p) for s, p in zip(rounds.switch, rounds.bound, strict=True)),
        unit="ms",
        digits=0,
        how="the same as a difference",
    )
    yield Figure(
        benchmark="switching",
        name=f"one after the other / switch, {what}",
        spread=Spread.of(rounds.serial / seconds for seconds in rounds.switch),
        unit="×",
        how="each command run directly and waited for, with its memory, before the next: so much longer",
    )


def configure(daemon: Daemon, scenarios: list[Scenario]) -> None:
    """All scenarios' services and modes on one device."""
    daemon.table.create(Device(GPU, 0, TOTAL_MIB))
    services = {name: service for scenario in scenarios for name, service in scenario.services.items()}
    for (name, service), port in zip(services.items(), free_ports(len(services)), strict=True):
        daemon.service(name, service.vram_mib, *service.server, port=port, depends_on=list(service.needs))
    for scenario in scenarios:
        daemon.mode(f"{scenario.name}-before", *scenario.leaving)
        daemon.mode(f"{scenario.name}-after", *scenario.coming)


def one_round(daemons: Mapping[Backend, Daemon], scenario: Scenario, rounds: Mapping[Backend, Rounds]) -> None:
    """Every daemon switches there, the commands run directly, each daemon switches on."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda daemon: daemon.switch(f"{scenario.name}-before"), daemons.values()))
    ideal = scenario.ideal(direct.together(next(iter(daemons.values())), scenario))
    for backend, daemon in daemons.items():
        mine = rounds[backend]
        mine.ideal = ideal
        begun = boottime()
        mine.operation = daemon.switch(f"{scenario.name}-after")
        mine.switch.append(boottime() - begun)
        mine.bound.append(max(end for _, end in ideal.values()))


# -- the pictures ---------------------------------------------------------------------------------------------

SHOWN = {"stop": "stop", "wait_release": "release", "start": "start", "wait_ready": "start"}


def chart(scenario: Scenario, rounds: Rounds, backend: str) -> str:
    """The last round, the ideal below what happened."""
    zero = seconds(rounds.operation["created_at"])
    bars: list[Bar] = []
    for name in [*scenario.leaving, *scenario.coming]:
        real = [
            Bar(
                row=name,
                kind=SHOWN[step["verb"]],
                begin=seconds(step["started_at"]) - zero,
                end=seconds(step["finished_at"]) - zero,
            )
            for step in rounds.operation["steps"]
            if step["service"] == name and step["verb"] in SHOWN
        ]
        best = [
            Bar(row=name, kind="ideal", begin=begin, end=end)
            for (_, service), (begin, end) in rounds.ideal.items()
            if service == name
        ]
        bars += real + best
    return timeline(f"{scenario.name}: {scenario.words} ({backend})", bars)


def seconds(at: str) -> float:
    """An RFC 3339 time as seconds."""
    return datetime.fromisoformat(at).timestamp()


def sizes(names: Mapping[int, str], found: Mapping[tuple[str, Backend], Rounds], backends: list[Backend]) -> str:
    """Seconds over the number of services: how little is between switch and bound, and what one by one takes."""

    def line(words: str, of: Any, *, ideal: bool = False) -> Line:
        return Line(name=words, points=[(size, of(name)) for size, name in names.items()], ideal=ideal)

    first = backends[0]
    shown = [line("one after the other", lambda name: found[name, first].serial)]
    for backend in backends:
        shown.append(line(backend.name, lambda name, b=backend: Spread.of(found[name, b].switch).median))
    shown.append(line("lower bound", lambda name: Spread.of(found[name, first].bound).median, ideal=True))
    return lines("a switch, in seconds, over the number of services that take part", shown)
