"""A whole switch against its critical path.

The path is computed from the same commands run directly in the same round: how long each leaving service takes
from SIGTERM until it is gone and its memory free, how long each incoming one from exec until it can answer 200,
put together along the gates that memory and dependencies demand, with everything else overlapping perfectly.
No daemon can be faster; what it takes longer is its own.
"""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from benchmarks.direct import DirectServer
from benchmarks.figures import Figure, Spread
from benchmarks.plot import Bar, timeline
from benchmarks.stage import FIFTY, Backend, Stage, free_ports
from benchmarks.witness import Death
from gpumodd.demo.model_server import boottime
from gpumodd.demo.table import Device
from tests.support.daemon import GPU, TOTAL_MIB, Daemon

Placed = Mapping[tuple[str, str], tuple[float, float]]  # (what, service) -> begin and end, seconds


@dataclass(frozen=True, kw_only=True)
class Service:
    """One of the four: its memory, its times, what it depends on and whose release it waits for."""

    vram_mib: int
    load_s: float = 0.0
    term_s: float = 0.0
    linger_s: float = 0.0
    late_listen: bool = False
    needs: tuple[str, ...] = ()
    room_from: tuple[str, ...] = ()

    @property
    def server(self) -> list[str]:
        """The model server's arguments."""
        times = ["--load-s", f"{self.load_s:g}", "--term-s", f"{self.term_s:g}"]
        linger = ["--linger-ms", str(round(1000 * self.linger_s))]
        return [*times, *linger, *(["--late-listen"] if self.late_listen else [])]

    def hurried(self, factor: float) -> "Service":
        """The same with shorter times."""
        return replace(self, load_s=self.load_s * factor, term_s=self.term_s * factor, linger_s=self.linger_s * factor)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Two services leave, two come. Nothing but these gates keeps them apart."""

    name: str
    words: str
    leaving: Mapping[str, Service]
    coming: Mapping[str, Service]

    @property
    def services(self) -> Mapping[str, Service]:
        return {**self.leaving, **self.coming}

    def hurried(self, factor: float) -> "Scenario":
        """The same with shorter times."""
        return replace(
            self,
            leaving={name: service.hurried(factor) for name, service in self.leaving.items()},
            coming={name: service.hurried(factor) for name, service in self.coming.items()},
        )

    def ideal(self, took: Mapping[str, float]) -> Placed:
        """When everything happens if all that may overlap does."""
        placed: dict[tuple[str, str], tuple[float, float]] = {}

        def place(what: str, service: str, seconds: float, after: list[tuple[str, str]]) -> None:
            begin = max((placed[other][1] for other in after), default=0.0)
            placed[what, service] = (begin, begin + seconds)

        for name in self.leaving:  # dependents stand first
            dependents = [other for other, service in self.leaving.items() if name in service.needs]
            place("stop", name, took[name], [("stop", other) for other in dependents])
            place("release", name, self.leaving[name].linger_s, [("stop", name)])
        for name, service in self.coming.items():  # what is needed stands first
            gates = [("release", other) for other in service.room_from] + [("start", other) for other in service.needs]
            place("start", name, took[name], gates)
        return placed


# One device of 24564 MiB, of which 512 are reserved: what comes fits only where something has left.
SCENARIOS = (
    Scenario(
        name="fan",
        words="each of two starts waits for one of two releases",
        leaving={
            "fan-out-a": Service(vram_mib=9_000, term_s=0.2, linger_s=0.3),
            "fan-out-b": Service(vram_mib=15_000, term_s=0.7, linger_s=0.2),
        },
        coming={
            "fan-in-a": Service(vram_mib=9_000, load_s=1.2, room_from=("fan-out-a",)),
            "fan-in-b": Service(vram_mib=15_000, load_s=0.9, late_listen=True, room_from=("fan-out-b",)),
        },
    ),
    Scenario(
        name="chain",
        words="a dependent leaves before what it needs, another comes after what it needs",
        leaving={
            "chain-out-top": Service(vram_mib=4_000, term_s=0.1, linger_s=0.1, needs=("chain-out-low",)),
            "chain-out-low": Service(vram_mib=20_000, term_s=0.4, linger_s=0.3),
        },
        coming={
            "chain-in-low": Service(vram_mib=19_000, load_s=0.7, room_from=("chain-out-low",)),
            "chain-in-top": Service(
                vram_mib=5_000,
                load_s=0.3,
                late_listen=True,
                needs=("chain-in-low",),
                room_from=("chain-out-low", "chain-out-top"),
            ),
        },
    ),
)


@dataclass
class Rounds:
    """What the rounds of one scenario found, in seconds."""

    switch: list[float] = field(default_factory=list)
    path: list[float] = field(default_factory=list)
    ideal: Placed = field(default_factory=dict)  # of the last round …
    operation: dict[str, Any] = field(default_factory=dict)  # … and what the daemon made of it


def measure(stage: Stage) -> Iterator[Figure]:
    """Rounds: the daemon gets ready, the commands run directly, the daemon switches."""
    scenarios = [scenario.hurried(0.1) for scenario in SCENARIOS] if stage.quick else list(SCENARIOS)
    for backend in stage.backends:
        found = {scenario.name: Rounds() for scenario in scenarios}
        with stage.daemon(backend, "switch") as daemon:
            configure(daemon, scenarios)
            daemon.start()
            for _ in range(stage.times(7, 1)):
                for scenario in scenarios:
                    one_round(daemon, scenario, found[scenario.name])
            assert not daemon.refusals(), "a device was over-committed"
        for scenario in scenarios:
            rounds = found[scenario.name]
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


def figures(scenario: Scenario, rounds: Rounds, backend: Backend) -> Iterator[Figure]:
    """One scenario's."""
    yield Figure(
        benchmark="switching",
        name=f"switch / critical path, {scenario.name}, {backend.name}",
        spread=Spread.ratio(rounds.switch, rounds.path),
        unit="×",
        goal=1.05,
        digits=3,
        how=f"{scenario.words}; from the client's request to its answer; {backend.words}",
    )
    yield Figure(
        benchmark="switching",
        name=f"above the critical path, {scenario.name}, {backend.name}",
        spread=Spread.of(1000 * (s - p) for s, p in zip(rounds.switch, rounds.path, strict=True)),
        unit="ms",
        digits=0,
        how="the same as a difference",
    )


def configure(daemon: Daemon, scenarios: Sequence[Scenario]) -> None:
    """All scenarios' services and modes on one device."""
    daemon.table.create(Device(GPU, 0, TOTAL_MIB))
    services = {name: service for scenario in scenarios for name, service in scenario.services.items()}
    for (name, service), port in zip(services.items(), free_ports(len(services)), strict=True):
        daemon.service(name, service.vram_mib, *service.server, port=port, depends_on=list(service.needs))
    for scenario in scenarios:
        daemon.mode(f"{scenario.name}-before", *scenario.leaving)
        daemon.mode(f"{scenario.name}-after", *scenario.coming)


def one_round(daemon: Daemon, scenario: Scenario, rounds: Rounds) -> None:
    """One switch there, the commands directly, one switch on."""
    daemon.switch(f"{scenario.name}-before")
    took = {name: leave_directly(daemon, service) for name, service in scenario.leaving.items()}
    took |= {name: come_directly(daemon, service) for name, service in scenario.coming.items()}
    rounds.ideal = scenario.ideal(took)
    begun = boottime()
    rounds.operation = daemon.switch(f"{scenario.name}-after")
    rounds.switch.append(boottime() - begun)
    rounds.path.append(max(end for _, end in rounds.ideal.values()))


# -- the same commands without a daemon -----------------------------------------------------------------------


def come_directly(daemon: Daemon, service: Service) -> float:
    """Seconds from exec until it can answer 200, by its own account."""
    with DirectServer(daemon, service.vram_mib, service.server) as server:
        return server.able_at() - server.begun


def leave_directly(daemon: Daemon, service: Service) -> float:
    """Seconds from SIGTERM until the process is gone."""
    with DirectServer(daemon, service.vram_mib, service.server) as server:
        server.able_at()
        death = Death(server.process.pid)
        begun = boottime()
        server.process.send_signal(signal.SIGTERM)
        return death.at() - begun


# -- the picture ----------------------------------------------------------------------------------------------

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
