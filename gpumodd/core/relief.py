"""Relief: how much memory is lacking at least, and how much a change frees at most.

Plain arithmetic that a search asks before it plans: changes that free less than is lacking cannot make it fit. It
never says that changes suffice; only a plan does.
"""

from collections import Counter
from collections.abc import Iterable

from gpumodd.core.changes import Change, Kind, Question
from gpumodd.core.desired import closure, dependents
from gpumodd.core.ledger import HOST, share
from gpumodd.core.operations import Verb
from gpumodd.core.plans import Plan

ALL = ""  # all devices together; else a device's UUID, HOST, or a service whose memory nobody knows


class Shortage:
    """What a plan lacks, by where. `coming` are the services that it starts."""

    def __init__(self, question: Question, proposed: Plan) -> None:
        self._question = question
        self._specs = question.specs
        self.coming = frozenset(s.service for s in proposed.steps if s.verb is Verb.START and not s.in_flight)
        self.lacking = self._count(proposed)

    def may_end_with(self, reliefs: Iterable[Counter[str]]) -> bool:
        """Could these together be enough?"""
        total: Counter[str] = Counter()
        for relief in reliefs:
            total.update(relief)
        return all(total[where] >= mib for where, mib in self.lacking.items())

    def _count(self, proposed: Plan) -> dict[str, int]:
        given = self._question.given
        leaving = {s.service for s in proposed.steps if s.verb is Verb.WAIT_RELEASE}
        # Where somebody else grew there is less than nothing: that is lacking only as long as something comes there.
        room = {
            uuid: max(0, budget.available_mib + sum(mib for s, mib in budget.held.items() if s in leaving))
            for uuid, budget in given.budgets.items()
        }
        lacking = Counter({ALL: -sum(room.values())})
        for service in self.coming:
            lacking[ALL] += given.services[service].needed_mib
            for uuid, mib in self._bound(service).items():
                lacking[uuid] += mib if uuid in lacking else mib - room[uuid]
        for reason in proposed.blocked:
            needed, had = reason.details.get("needed_mib"), reason.details.get("available_mib")
            if reason.code == "vram_unknown" and reason.service is not None:
                lacking[reason.service] = 1
            elif reason.code == "ram_insufficient" and isinstance(needed, int) and isinstance(had, int):
                lacking[HOST] = max(lacking[HOST], needed - max(0, had))
        return {where: mib for where, mib in lacking.items() if mib > 0}

    # -- what a change frees ----------------------------------------------------------------------------------

    def relief(self, change: Change) -> Counter[str]:
        """What a change frees at most, by where."""
        question = self._question
        match change.kind:
            case Kind.END:
                taken = question.taken_by(change.pid)
                return Counter({ALL: sum(taken.values()), **taken})
            case Kind.MOVE:
                freed = self._of(change.service)
                del freed[ALL], freed[HOST]  # it takes elsewhere what it gives back here
                return freed
            case Kind.CONTEXT:
                freed = self._of(change.service)
                del freed[HOST]
                left = share(change.vram_mib, question.specs[change.service].device_count)
                return Counter({u: mib - (change.vram_mib if u == ALL else left) for u, mib in freed.items()})
            case Kind.STOP | Kind.REMOVE:
                wanted = question.given.wanted
                ends = {change.service, *dependents([change.service], self._specs)} & wanted
                total: Counter[str] = Counter()
                for service in (ends | closure(ends, self._specs)) & wanted:
                    total.update(self._of(service))
                return total

    def _of(self, service: str) -> Counter[str]:
        """What there would be more without it."""
        given = self._question.given
        if service not in self.coming:
            freed = Counter({u: b.held[service] for u, b in given.budgets.items() if service in b.held})
            freed[ALL] = sum(freed.values())
            freed[HOST] = given.host.held.get(service, 0) if given.host is not None else 0
            return freed
        freed = Counter(self._bound(service))
        freed[ALL] = given.services[service].needed_mib
        spec = self._specs[service]
        freed[HOST] = spec.ram_mib
        if spec.vram_mib is None:
            freed[service] = 1
        return freed

    def _bound(self, service: str) -> dict[str, int]:
        """What a coming service takes on devices that it cannot do without."""
        spec, budgets = self._specs[service], self._question.given.budgets
        named = spec.devices or (tuple(budgets) if len(budgets) == spec.device_count else ())
        by_index = {str(b.index): u for u, b in budgets.items()}
        uuids = {by_index.get(name, name) for name in named} & budgets.keys()
        if not spec.vram_mib or len(uuids) != spec.device_count:
            return {}
        return dict.fromkeys(sorted(uuids), share(spec.vram_mib, spec.device_count))
