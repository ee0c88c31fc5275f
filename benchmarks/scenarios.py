"""What is switched: services that leave and come on one full device, and the best that can be made of it.

Owns the scenarios and the computation of the lower bound: with given durations, when everything happens if all that
may overlap does, and if memory goes to whom the rest waits for longest. No order is better, so no daemon is faster.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

Placed = Mapping[tuple[str, str], tuple[float, float]]  # (what, service) -> begin and end, seconds
Gates = Mapping[str, frozenset[str]]  # coming service -> the leaving ones whose memory it takes

RESERVE_MIB = 512
ROOM_MIB = 24_000  # of the device, when nothing runs; the rest is less than any service takes


@dataclass(frozen=True, kw_only=True)
class Service:
    """Its memory, its times, and what it depends on."""

    vram_mib: int = 0
    load_s: float = 0.0
    term_s: float = 0.0
    linger_s: float = 0.0
    late_listen: bool = False
    needs: tuple[str, ...] = ()

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
    """Some services leave, dependents before what they need; others come, what is needed before its dependents."""

    name: str
    words: str
    leaving: Mapping[str, Service]
    coming: Mapping[str, Service]

    @property
    def services(self) -> Mapping[str, Service]:
        return {**self.leaving, **self.coming}

    @property
    def size(self) -> int:
        return len(self.services)

    def hurried(self, factor: float) -> "Scenario":
        """The same with shorter times."""
        return replace(
            self,
            leaving={name: service.hurried(factor) for name, service in self.leaving.items()},
            coming={name: service.hurried(factor) for name, service in self.coming.items()},
        )

    @property
    def nominal(self) -> Mapping[str, float]:
        """What each would take if a process took no time of its own."""
        coming = {name: service.load_s for name, service in self.coming.items()}
        return coming | {name: service.term_s for name, service in self.leaving.items()}

    def before_stop(self, name: str) -> list[str]:
        """Who has to be gone before this one may be stopped."""
        return [other for other, service in self.leaving.items() if name in service.needs]

    def gates(self, took: Mapping[str, float]) -> Gates:
        """Whose memory each coming service takes: what is back first goes to whom the rest waits for longest."""
        back = {name: end for (what, name), (_, end) in self._leave(took).items() if what == "release"}
        soonest = sorted(back, key=lambda name: back[name])
        purse = [(ROOM_MIB - sum(service.vram_mib for service in self.leaving.values()), "")]
        purse += [(self.leaving[name].vram_mib, name) for name in soonest if self.leaving[name].vram_mib]
        tails = self._tails(took)
        gates: dict[str, frozenset[str]] = {}
        for name in sorted(self.coming, key=lambda name: -tails[name]):
            missing, drawn = self.coming[name].vram_mib, set()
            while missing:
                mib, owner = purse.pop(0)
                if mib > missing:
                    purse.insert(0, (mib - missing, owner))
                missing -= min(mib, missing)
                drawn.add(owner)
            gates[name] = frozenset(drawn - {""})
        return gates

    def ideal(self, took: Mapping[str, float]) -> Placed:
        """When everything happens, with these seconds from exec to able and from SIGTERM to gone."""
        placed = self._leave(took)
        gates = self.gates(took)
        for name, service in self.coming.items():
            waits = [placed["release", other][1] for other in gates[name]]
            begin = max([*waits, *(placed["start", other][1] for other in service.needs)], default=0.0)
            placed["start", name] = (begin, begin + took[name])
        return placed

    def _leave(self, took: Mapping[str, float]) -> dict[tuple[str, str], tuple[float, float]]:
        placed: dict[tuple[str, str], tuple[float, float]] = {}
        for name, service in self.leaving.items():
            begin = max((placed["stop", other][1] for other in self.before_stop(name)), default=0.0)
            placed["stop", name] = (begin, begin + took[name])
            placed["release", name] = (begin + took[name], begin + took[name] + service.linger_s)
        return placed

    def _tails(self, took: Mapping[str, float]) -> dict[str, float]:
        tails: dict[str, float] = {}
        for name in reversed(self.coming):
            after = [tails[other] for other, service in self.coming.items() if name in service.needs]
            tails[name] = took[name] + max(after, default=0.0)
        return tails


def mixed(size: int) -> Scenario:
    """So many services: four kinds of pairs in turn, one leaving and one coming in each.

    Pairs of the first two kinds wait for memory only, those of the third are chained to the second by a dependency on
    both sides, and those of the fourth take no memory and wait for nothing.
    """
    pairs = max(1, size // 2)
    takers = sum(1 for i in range(pairs) if i % 4 != 3)
    each_mib = ROOM_MIB // takers
    leaving: dict[str, Service] = {}
    coming: dict[str, Service] = {}
    for i in range(pairs):
        kind, turn = i % 4, i // 4
        mib = 0 if kind == 3 else each_mib
        load_s = (1.4, 0.6, 0.8, 1.7)[kind] + 0.15 * turn
        term_s, linger_s = ((0.2, 0.3), (0.5, 0.2), (0.1, 0.1), (0.4, 0.0))[kind]
        behind = (f"mix{size}-in-{i - 1}",) if kind == 2 else ()
        above = (f"mix{size}-out-{i - 1}",) if kind == 2 else ()
        leaving[f"mix{size}-out-{i}"] = Service(vram_mib=mib, term_s=term_s, linger_s=linger_s, needs=above)
        coming[f"mix{size}-in-{i}"] = Service(vram_mib=mib, load_s=load_s, late_listen=kind == 1, needs=behind)
    if size == 1:
        leaving.clear()
    # Dependents stop first, so they stand first.
    in_order = dict(sorted(leaving.items(), key=lambda item: not item[1].needs))
    words = f"{len(leaving)} leave and {len(coming)} come: independent, chained by memory, chained by dependencies"
    return Scenario(name=f"mix{size}", words=words, leaving=in_order, coming=coming)


CHAIN = Scenario(
    name="chain",
    words="a dependent leaves before what it needs, another comes after what it needs",
    leaving={
        "chain-out-top": Service(vram_mib=4_000, term_s=0.1, linger_s=0.1, needs=("chain-out-low",)),
        "chain-out-low": Service(vram_mib=20_000, term_s=0.4, linger_s=0.3),
    },
    coming={
        "chain-in-low": Service(vram_mib=19_000, load_s=0.7),
        "chain-in-top": Service(vram_mib=5_000, load_s=0.3, late_listen=True, needs=("chain-in-low",)),
    },
)
SIZES = (1, 2, 4, 8, 16)
SCENARIOS = (*map(mixed, SIZES), CHAIN)
