"""How fast the daemon notices: a service that became ready, memory that came back.

The moments themselves are told by the model server and the device table; the daemon's answer is taken where a
client sees it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.direct import DirectServer
from benchmarks.figures import Figure, Spread
from benchmarks.stage import Backend, Stage, free_ports
from benchmarks.witness import Death, Subscriber, able_since, memory_back
from gpumodd.demo.model_server import boottime
from tests.support.daemon import Daemon

# Different lengths, so that no rhythm of the probes or samples can fit them all.
SERVICES = {
    "early": ("--load-s", "0.31", "--term-s", "0.07"),
    "late": ("--load-s", "0.57", "--late-listen", "--linger-ms", "180"),
    "slow": ("--load-s", "1.13", "--linger-ms", "333"),
    "quick": ("--load-s", "0.05", "--late-listen", "--term-s", "0.19"),
}
LONG = {f"long-{seconds}": ("--load-s", str(seconds)) for seconds in (31, 33, 35)}
VRAM_MIB = 2000
EVERY_S = 0.005  # the baseline's pace


@dataclass
class Seen:
    """Samples in milliseconds."""

    ready: list[float] = field(default_factory=list)
    plainly: list[float] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    released: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)


def measure(stage: Stage) -> Iterator[Figure]:
    """Each service comes and goes, again and again."""
    for backend in stage.backends:
        seen = Seen()
        long: list[float] = []
        with stage.daemon(backend, "reaction") as daemon:
            ports = dict(zip([*SERVICES, *LONG], free_ports(len(SERVICES) + len(LONG)), strict=True))
            for service, arguments in (SERVICES | LONG).items():
                daemon.service(service, VRAM_MIB, *arguments, port=ports[service], startup_timeout_s=90)
            daemon.mode("long", *LONG)
            daemon.start()
            with Subscriber(daemon) as subscriber:
                for _ in range(stage.times(5, 1)):
                    for service in list(SERVICES)[: stage.times(len(SERVICES), 2)]:
                        come_and_go(daemon, subscriber, service, ports[service], seen)
                        seen.plainly.append(come_directly(daemon, service))
                if not stage.quick:
                    long = long_loads(daemon, subscriber, ports)
        yield from figures(backend, seen, long)


def come_and_go(daemon: Daemon, subscriber: Subscriber, service: str, port: int, seen: Seen) -> None:
    """One start and one stop."""
    begun = boottime()
    daemon.rpc("service.start", id=service, wait=True)
    over = boottime()
    able = able_since(port)
    seen.ready.append(1000 * (subscriber.phase(service, "ready", since=begun) - able))
    seen.started.append(1000 * (over - able))
    pid = daemon.rpc("service.get", id=service)["pid"]
    death = Death(pid)
    begun = boottime()
    daemon.rpc("service.stop", id=service, wait=True)
    over = boottime()
    back = memory_back(daemon.table, pid, death.at())
    seen.released.append(1000 * (subscriber.step("wait_release", service, since=begun) - back))
    seen.stopped.append(1000 * (over - back))


def come_directly(daemon: Daemon, service: str) -> float:
    """How long after it could answer a plain loop has the answer."""
    with DirectServer(daemon, VRAM_MIB, SERVICES[service]) as server:
        return 1000 * (server.answered_at(EVERY_S) - able_since(server.port))


def long_loads(daemon: Daemon, subscriber: Subscriber, ports: dict[str, int]) -> list[float]:
    """Services that load for more than half a minute, all at once."""
    begun = boottime()
    daemon.switch("long")
    seen = [1000 * (subscriber.phase(service, "ready", since=begun) - able_since(ports[service])) for service in LONG]
    daemon.switch("blank")
    return seen


def figures(backend: Backend, seen: Seen, long: list[float]) -> Iterator[Figure]:
    """What was seen, with the goals."""
    ready = "from the model server's own note that it can answer 200 until"
    back = "from the memory being free (the device table's stamp, or the end of the process) until"
    lines = [
        ("ready seen", seen.ready, 10.0, f"{ready} a subscriber has the event"),
        (
            "ready seen by a plain loop",
            seen.plainly,
            None,
            f"{ready} a blocking loop that asks every {1000 * EVERY_S:g} ms has it; the same command, without a daemon",
        ),
        ("start over", seen.started, None, f"{ready} the client that waits for the operation has its answer"),
        ("ready seen, loads over 30 s", long, 30.0, f"{ready} a subscriber has the event"),
        ("release seen", seen.released, 50.0, f"{back} a subscriber has the step `wait_release` done"),
        ("stop over", seen.stopped, None, f"{back} the client that waits for the operation has its answer"),
    ]
    for name, samples, goal, how in lines:
        if samples:
            yield Figure(
                benchmark="reaction",
                name=f"{name}, {backend.name}",
                spread=Spread.of(samples),
                unit="ms",
                goal=goal,
                how=f"{how}; {backend.words}",
                digits=1,
            )
