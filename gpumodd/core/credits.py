"""Credits: memory handed out so that no order of a plan over-commits.

What is free now is a credit, and so is what each leaving service will give back. Every MiB is credited to one
start only, and a start comes after all the releases it draws on: whatever order the DAG permits, at no point is
more taken than there is.
"""

from collections.abc import Mapping

from gpumodd.core.book import Book, Credit, Demand
from gpumodd.core.ledger import HOST, Budget, share
from gpumodd.core.operations import StepKey, Verb
from gpumodd.core.plans import PlanInput, ServiceView
from gpumodd.core.problems import Reason
from gpumodd.core.timing import Timing


def open_books(leaving: list[ServiceView], timing: Timing, given: PlanInput) -> dict[str, Book]:
    """Each device's memory and the host's, with what leaves as credits."""
    # Of those that take equally long, what is already on its way back comes first, then what is already stopping.
    near = sorted(leaving, key=lambda v: (not v.gone, not v.stopping, v.id))
    books: dict[str, Book] = {}
    for uuid, budget in sorted(given.budgets.items()):
        held = [(budget.held[v.id], v.id) for v in near if v.id in budget.held]
        releases = [Credit(mib=mib, step=(Verb.WAIT_RELEASE, s), at_s=timing.back_s[s]) for mib, s in held]
        books[uuid] = Book(budget.available_mib, releases)
    if given.host is not None:  # the kernel takes a process's memory back before it tells that the process is gone
        held = [(given.host.held[v.id], v.id) for v in near if v.id in given.host.held and not v.gone]
        stops = [Credit(mib=mib, step=(Verb.STOP, s), at_s=timing.gone_s[s]) for mib, s in held]
        books[HOST] = Book(given.host.available_mib, stops)
    return books


def gates(
    coming: list[ServiceView],
    placements: Mapping[str, tuple[str, ...]],
    books: Mapping[str, Book],
    timing: Timing,
    given: PlanInput,
) -> tuple[dict[str, frozenset[StepKey]], list[Reason]]:
    """For each start the releases it draws on. Who gets memory at all goes by the order of `coming`; who of them has
    to wait for which release goes by what makes the whole ready soonest."""
    left = {name: book.total_mib for name, book in books.items()}
    demands: dict[str, list[Demand]] = {name: [] for name in books}
    reasons: list[Reason] = []
    drawn: dict[str, frozenset[StepKey]] = {}
    for view in coming:
        needed = _needs(view, placements, books)
        short = [book for book, mib in needed.items() if mib > left[book]]
        reasons += [_too_little(view, book, needed[book], left[book], given) for book in short]
        if short and view.id in given.lenient:  # it waits for what can be had, and then comes all the same
            needed = {book: min(mib, left[book]) for book, mib in needed.items()}
        elif short:  # what cannot start takes nothing away from the others
            continue
        drawn[view.id] = frozenset()
        for book, mib in needed.items():
            left[book] -= mib
            demands[book].append(demand(view, mib, timing))
    end_s = max((books[name].soonest_end_s(asked) for name, asked in demands.items()), default=0.0)
    for name, asked in demands.items():
        for service, steps in books[name].hand_out(books[name].in_turn(asked, end_s)).items():
            drawn[service] |= steps
    return drawn, reasons


def demand(view: ServiceView, mib: int, timing: Timing) -> Demand:
    """A start's share of one book."""
    return Demand(service=view.id, mib=mib, head_s=timing.head_s[view.id], tail_s=timing.tail_s[view.id])


def _needs(view: ServiceView, placements: Mapping[str, tuple[str, ...]], books: Mapping[str, Book]) -> dict[str, int]:
    devices = placements.get(view.id, ())
    needs = {uuid: share(view.needed_mib, len(devices)) for uuid in devices}
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
