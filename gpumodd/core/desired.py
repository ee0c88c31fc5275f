"""What was asked for, as claims: one owner's wish that some services run.

Owns the arithmetic of wishes. It never looks at the world: whether a wish is fulfilled is the planner's question.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gpumodd.core.specs import ModeSpec, ServiceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One owner's wish that these services are ready. `kind` is mode, manual, lease or job."""

    kind: str
    owner: str
    services: tuple[str, ...]
    ends_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The sum of all claims, less what a person stopped.

    `mode` is the mode last asked for and not given up; `stopped` are manual stops, which outweigh claims.
    """

    mode: str | None = None
    claims: tuple[Claim, ...] = ()
    stopped: tuple[str, ...] = ()

    def claimed(self) -> frozenset[str]:
        """Every service that some claim names."""
        return frozenset(service for claim in self.claims for service in claim.services)

    def services(self, specs: Mapping[str, ServiceSpec]) -> frozenset[str]:
        """Every service that is to run: what is claimed and what that depends on, less manual stops and what cannot
        run without those."""
        stopped = {*self.stopped, *dependents(self.stopped, specs)} if self.stopped else set()
        return closure((s for s in self.claimed() if s not in stopped), specs)


def closure(roots: Iterable[str], specs: Mapping[str, ServiceSpec]) -> frozenset[str]:
    """These services and, transitively, what they depend on; unknown ids are left out."""
    found: set[str] = set()
    todo = [service for service in roots if service in specs]
    while todo:
        service = todo.pop()
        if service not in found:
            found.add(service)
            todo.extend(d for d in specs[service].depends_on if d in specs)
    return frozenset(found)


def dependents(services: Iterable[str], specs: Mapping[str, ServiceSpec]) -> frozenset[str]:
    """The services that, transitively, depend on one of these."""
    found: set[str] = set()
    todo = [*services]
    while todo:
        needed = todo.pop()
        for other in specs.values():
            if needed in other.depends_on and other.id not in found:
                found.add(other.id)
                todo.append(other.id)
    return frozenset(found)


def after_switch(desired: Desired, mode: ModeSpec, specs: Mapping[str, ServiceSpec]) -> Desired:
    """The wish once this mode is asked for: it replaces mode and manual starts and clears manual stops.

    Pinned services, leases and jobs stay; `blank` ends those too.
    """
    if mode.id == "blank":
        return Desired(mode=mode.id, claims=(Claim(kind="mode", owner=mode.id, services=()),))
    wanted = desired.services(specs)
    pinned = tuple(sorted(s for s in wanted if specs[s].pinned and s not in mode.services))
    claims = [Claim(kind="mode", owner=mode.id, services=tuple(s for s in mode.services if s in specs))]
    claims += [Claim(kind="manual", owner=s, services=(s,)) for s in pinned]
    claims += [c for c in desired.claims if c.kind in ("lease", "job")]
    return Desired(mode=mode.id, claims=tuple(claims))


def undone(now: Desired, *, before: Desired, after: Desired) -> Desired:
    """What is desired now, less what led from `before` to `after`; what others have asked for since stays."""
    claims = [c for c in now.claims if c in before.claims or c not in after.claims]
    claims += [c for c in before.claims if c not in after.claims and c not in claims]
    added, removed = set(after.stopped) - set(before.stopped), set(before.stopped) - set(after.stopped)
    return Desired(
        mode=before.mode if now.mode == after.mode else now.mode,
        claims=tuple(claims),
        stopped=tuple(sorted(set(now.stopped) - added | removed)),
    )


def after_start(desired: Desired, service: str, specs: Mapping[str, ServiceSpec]) -> Desired:
    """The wish once somebody starts this service by hand."""
    claims = desired.claims
    if service not in desired.claimed():
        claims = (*claims, Claim(kind="manual", owner=service, services=(service,)))
    needed = closure([service], specs)
    return replace(desired, claims=claims, stopped=tuple(s for s in desired.stopped if s not in needed))


def after_stop(desired: Desired, services: Iterable[str], specs: Mapping[str, ServiceSpec]) -> Desired:
    """The wish once somebody stops these services by hand: manual starts end, other claims are outweighed.

    What only they needed was not asked to stop: it goes on as a manual start.
    """
    leaving = frozenset(services)
    claims = tuple(c for c in desired.claims if not (c.kind == "manual" and leaving.issuperset(c.services)))
    kept = Desired(mode=desired.mode, claims=claims)
    stopped = {s for s in desired.stopped if s in kept.claimed()} | leaving
    kept = replace(kept, stopped=tuple(sorted(stopped)))
    lost = desired.services(specs) - kept.services(specs) - leaving - dependents(leaving, specs)
    return replace(kept, claims=(*claims, *(Claim(kind="manual", owner=s, services=(s,)) for s in sorted(lost))))
