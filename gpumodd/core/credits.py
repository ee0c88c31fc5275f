"""Credits: memory handed out so that no order of a plan over-commits.

What is free now is a credit, and so is what each leaving service will give back. Every MiB is credited to one
start only, and a start comes after all the releases it draws on: whatever order the DAG permits, at no point is
more taken than there is.
"""

from collections.abc import Mapping

from gpumodd.core.ledger import HOST, Budget, share
from gpumodd.core.operations import StepKey, Verb
from gpumodd.core.placement import needed_mib
from gpumodd.core.plans import PlanInput, ServiceView
from gpumodd.core.problems import Reason


class Book:
    """One device's memory as credits: what is free now, then what each release will give back."""

    def __init__(self, free_mib: int, releases: list[tuple[int, StepKey]]) -> None:
        self.chunks: list[tuple[int, tuple[StepKey, ...]]] = [(max(0, free_mib), ())]
        self.chunks += [(mib, (key,)) for mib, key in releases]
        self.debt: tuple[StepKey, ...] = ()
        if free_mib < 0:  # somebody else grew: the first releases pay for that
            self.debt = tuple(sorted(self._take(min(-free_mib, self.total))))

    @property
    def total(self) -> int:
        return sum(mib for mib, _ in self.chunks)

    @property
    def free_now(self) -> int:
        return sum(mib for mib, keys in self.chunks if not keys)

    def draw(self, mib: int) -> frozenset[StepKey]:
        """Hand out this much, which must be there; returns the releases it has to wait for."""
        return frozenset(self.debt) | self._take(mib)

    def _take(self, mib: int) -> frozenset[StepKey]:
        keys: set[StepKey] = set()
        rest: list[tuple[int, tuple[StepKey, ...]]] = []
        for amount, origin in self.chunks:
            taken = min(mib, amount)
            mib -= taken
            if taken:
                keys.update(origin)
            if amount > taken:
                rest.append((amount - taken, origin))
        self.chunks = rest
        return frozenset(keys)


def gates(
    coming: list[ServiceView],
    leaving: list[ServiceView],
    placements: Mapping[str, tuple[str, ...]],
    given: PlanInput,
) -> tuple[dict[str, frozenset[StepKey]], list[Reason]]:
    """For each start the releases it draws on. Who gets memory at all goes by the order of `coming`; of what is free
    now, those are served first whom it satisfies, so that they wait for nothing."""
    # What is already on its way back comes first, then what is already stopping, then the rest.
    by_nearness = sorted(leaving, key=lambda v: (not v.gone, not v.stopping, v.id))
    books: dict[str, Book] = {}
    for uuid, budget in sorted(given.budgets.items()):
        releases = [(budget.held.get(v.id, 0), (Verb.WAIT_RELEASE, v.id)) for v in by_nearness]
        books[uuid] = Book(budget.available_mib, [r for r in releases if r[0] > 0])
    if given.host is not None:  # the kernel takes a process's memory back before it tells that the process is gone
        stops = [(given.host.held.get(v.id, 0), (Verb.STOP, v.id)) for v in by_nearness if not v.gone]
        books[HOST] = Book(given.host.available_mib, [s for s in stops if s[0] > 0])

    needs = {v.id: _needs(v, placements, books) for v in coming}
    left = {name: book.total for name, book in books.items()}
    admitted: list[str] = []
    reasons: list[Reason] = []
    for view in coming:
        needed = needs[view.id]
        short = [book for book, mib in needed.items() if mib > left[book]]
        reasons += [_too_little(view, book, needed[book], left[book], given) for book in short]
        if short and view.id in given.lenient:  # it waits for what can be had, and then comes all the same
            needed = needs[view.id] = {book: min(mib, left[book]) for book, mib in needed.items()}
        elif short:  # what cannot start takes nothing away from the others
            continue
        admitted.append(view.id)
        left.update({book: left[book] - mib for book, mib in needed.items()})
    at_once = [s for s in admitted if all(mib <= books[book].free_now for book, mib in needs[s].items())]
    drawn: dict[str, frozenset[StepKey]] = {}
    for service in (*at_once, *(s for s in admitted if s not in at_once)):
        drawn[service] = frozenset().union(*(books[book].draw(mib) for book, mib in needs[service].items()))
    return drawn, reasons


def _needs(view: ServiceView, placements: Mapping[str, tuple[str, ...]], books: Mapping[str, Book]) -> dict[str, int]:
    devices = placements.get(view.id, ())
    needs = {uuid: share(needed_mib(view), len(devices)) for uuid in devices}
    if HOST in books and view.spec is not None and view.spec.ram_mib:
        needs[HOST] = view.spec.ram_mib
    return needs


def _too_little(view: ServiceView, book: str, mib: int, had: int, given: PlanInput) -> Reason:
    if book == HOST:
        assert given.host is not None
        return _too_little_ram(view, mib, had, given.host)
    budget = given.budgets[book]
    limit = "" if budget.limit_mib is None else f", limit {budget.limit_mib}"
    return Reason(
        code="vram_insufficient",
        message=(
            f"cannot start {view.id} on {budget.name} (device {budget.index}): it needs {mib} MiB and"
            f" {max(0, had)} of {budget.total_mib} MiB can be had"
            f" (reserve {budget.reserve_mib}, foreign {budget.foreign_mib}{limit})"
        ),
        hint="`gpumodctl simulate` shows what would fit; `gpumodctl status` names who holds the memory",
        service=view.id,
        device=book,
        details={
            "needed_mib": mib,
            "available_mib": had,
            "total_mib": budget.total_mib,
            "reserve_mib": budget.reserve_mib,
            "foreign_mib": budget.foreign_mib,
            "committed_mib": budget.committed_mib,
            "limit_mib": budget.limit_mib,
        },
    )


def _too_little_ram(view: ServiceView, mib: int, had: int, host: Budget) -> Reason:
    return Reason(
        code="ram_insufficient",
        message=(
            f"cannot start {view.id}: not enough RAM, it needs {mib} MiB of MemAvailable and {max(0, had)} of"
            f" {host.total_mib} MiB can be had (reserve {host.reserve_mib}, others {host.foreign_mib})"
        ),
        hint="end something that holds host memory, lower `policy.ram_reserve_mib`, or pass --force",
        service=view.id,
        details={
            "needed_mib": mib,
            "available_mib": had,
            "total_mib": host.total_mib,
            "reserve_mib": host.reserve_mib,
            "foreign_mib": host.foreign_mib,
            "committed_mib": host.committed_mib,
        },
    )
