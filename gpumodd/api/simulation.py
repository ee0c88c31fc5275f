"""mode.simulate: from a client's question to the core's answer, on facts gathered for it. Touches nothing.

It serves a running daemon and `gpumodd simulate` alike.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from gpumodd.api.lookup import Lookup
from gpumodd.api.views import Views
from gpumodd.core import events as ev
from gpumodd.core import requests, simulation
from gpumodd.core.specs import ServiceSpec
from gpumodd.runtime.definitions import Definitions
from gpumodd.runtime.inspect import Inspector
from gpumodd.wire import methods as m
from gpumodd.wire import types as t
from gpumodd.wire.errors import RpcError

NO_EFFECT = 0  # facts that nobody ordered: the engine takes them in and acts on none


class Simulator:
    """Answers what a switch would do. `observe` hands facts to the engine and returns once they are in."""

    def __init__(
        self,
        *,
        views: Views,
        inspector: Inspector,
        observe: Callable[[ev.Inspected], Awaitable[None]],
        definitions: Callable[[], Definitions],
    ) -> None:
        self._views = views
        self._lookup = Lookup(views)
        self._inspector = inspector
        self._observe = observe
        self._definitions = definitions

    async def simulate(self, params: m.SimulateParams) -> t.Simulation:
        """What the switch would do; RpcError `not_found` for an id that does not exist."""
        state = self._views.state
        members = self._members(params)
        # `blank` ends what is pinned, too; with something in it, it is blank no more.
        target = params.id if params.id is not None and not (params.id == "blank" and members) else "simulation"
        intent = requests.for_services(state, target, tuple(members))
        services = sorted(intent.wish(state.desired, state.catalog).services(state.catalog.services))
        contexts = {self._lookup.configured(s): context for s, context in params.context.items()}
        for service in sorted(contexts.keys() - set(services)):
            raise RpcError("invalid_params", f"cannot give {service} a context: it is not among what is simulated")
        facts = await self._inspector.inspect(NO_EFFECT, tuple(services))
        await self._observe(facts)
        specs, notes = self._resized(contexts)
        made = simulation.simulate(state, intent, facts, specs)
        notes += [f"{r.message}; a switch goes ahead all the same (`overcommit: warn`)" for r in made.plan.passed]
        shown = [s for s in (*members, *(s for s in services if s not in members)) if s in made.specs]
        return self._views.simulation(params.id, shown, made, notes)

    def _members(self, params: m.SimulateParams) -> list[str]:
        """The services that are asked for, in the order they were named."""
        configured = self._lookup.configured
        if params.id is not None:
            named = [s for s in self._lookup.mode(params.id).services if s in self._views.state.catalog.services]
        else:
            named = [configured(s) for s in params.services or ()]
        removed = {configured(s) for s in params.remove}
        return [s for s in dict.fromkeys([*named, *map(configured, params.add)]) if s not in removed]

    def _resized(self, contexts: Mapping[str, int]) -> tuple[dict[str, ServiceSpec], list[str]]:
        """The services as they would be with these contexts, and what is to be said about that."""
        specs: dict[str, ServiceSpec] = {}
        notes: list[str] = []
        for service, context in sorted(contexts.items()):
            spec = self._views.state.catalog.services.get(service)
            if spec is None or spec.context == context:
                continue
            vram_mib = self._definitions().vram_at(service, context)
            specs[service] = replace(spec, context=context, vram_mib=spec.vram_mib if vram_mib is None else vram_mib)
            if vram_mib is None:
                notes.append(_unmoved(spec))
        return specs, notes


def _unmoved(spec: ServiceSpec) -> str:
    if spec.vram_mib is None:
        return f"{spec.id}: nobody knows how much memory it takes, with any context"
    if spec.vram_source == "declared":
        return (
            f"{spec.id}: its memory is declared (`vram_mib: {spec.vram_mib}`), so it counts the same with any context"
        )
    return f"{spec.id}: how its memory follows the context is not known, so it counts {spec.vram_mib} MiB with any"
