"""Whatever the machine and the wish, no other order of handing memory out is expected to be ready sooner.

The plan's memory gates are thrown away and others put in their place: memory handed out by id, in the plan's own
order, the small first, or in any order. With the durations that are known, none of these ends sooner.
"""

import random
from dataclasses import dataclass, field, replace

from hypothesis import event, given, settings
from hypothesis import strategies as st

from gpumodd.core import timing
from gpumodd.core.costs import Costs
from gpumodd.core.ledger import Budget, share
from gpumodd.core.operations import PlannedStep, StepKey, Verb
from gpumodd.core.phase import Phase
from gpumodd.core.planner import plan
from gpumodd.core.plans import Plan, PlanInput, ServiceView
from gpumodd.core.specs import ServiceSpec

ORDERS = 4  # other than the obvious ones
LEAVING, COMING = ("o1", "o2", "o3", "o4"), ("i1", "i2", "i3", "i4")

SIZES = st.sampled_from([500, 1000, 1000, 1500, 2500])
SECONDS = st.sampled_from([(), (0.1,), (1.0,), (5.0,), (40.0,)])
COSTS = st.builds(Costs, loads=SECONDS, stops=SECONDS, releases=SECONDS)


@st.composite
def switches(draw: st.DrawFn) -> PlanInput:
    """A few services leave and a few come, on devices that are rather full; times are long and short."""
    count = draw(st.sampled_from([1, 1, 2]))
    devices = [f"G{i}" for i in range(count)]
    held: dict[str, dict[str, int]] = {uuid: {} for uuid in devices}
    views: dict[str, ServiceView] = {}
    for i, name in enumerate(LEAVING[: draw(st.integers(1, 4))]):
        uuid = devices[i % count]
        spec = ServiceSpec(
            id=name, vram_mib=draw(SIZES), port=8000 + i, ram_mib=100, depends_on=draw(some(LEAVING[:i]))
        )
        phase = draw(st.sampled_from([Phase.READY, Phase.READY, Phase.STOPPING, Phase.RELEASING]))
        held[uuid][name] = spec.vram_mib or 0
        views[name] = ServiceView(
            id=name,
            phase=phase,
            gone=phase is Phase.RELEASING,
            spec=spec,
            stopping=phase is Phase.STOPPING,
            releasing=phase is Phase.RELEASING,
            devices=(uuid,),
            costs=draw(COSTS),
        )
    for i, name in enumerate(COMING[: draw(st.integers(2, 4))]):
        spec = ServiceSpec(
            id=name,
            vram_mib=draw(SIZES),
            ram_mib=100,
            port=8000 + draw(st.sampled_from([10 + i, 10 + i, 10 + i, 0])),
            depends_on=draw(some(COMING[:i])),
            device_count=draw(st.sampled_from([1, 1, 1, count])),
        )
        views[name] = ServiceView(id=name, phase=Phase.STOPPED, gone=True, spec=spec, costs=draw(COSTS))
    used = sum(sum(each.values()) for each in held.values())
    comes = sum(v.needed_mib for v in views.values() if v.id in COMING)
    total = max(used, comes) // count + draw(st.sampled_from([0, 5, 10, 20])) * 100
    budgets = {uuid: budget(uuid, i, total, held[uuid]) for i, uuid in enumerate(devices)}
    ram = {v.id: 100 for v in views.values() if not v.gone}
    host = draw(st.sampled_from([None, budget("host", -1, 400, ram)]))
    return PlanInput(services=views, wanted=frozenset(views) & frozenset(COMING), budgets=budgets, host=host)


def some(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.sampled_from([(), (), *((name,) for name in names)])


def budget(uuid: str, index: int, total_mib: int, held: dict[str, int]) -> Budget:
    return Budget(
        uuid=uuid,
        index=index,
        name=uuid,
        total_mib=total_mib,
        reserve_mib=0,
        foreign_mib=0,
        limit_mib=None,
        held=held,
    )


def over(world: PlanInput, steps: tuple[PlannedStep, ...]) -> dict[StepKey, float]:
    """When each step is over, if each begins as soon as it may and takes as long as is expected."""
    took = {
        Verb.STOP: timing.stop_s,
        Verb.WAIT_RELEASE: timing.release_s,
        Verb.START: lambda _: 0.0,
        Verb.WAIT_READY: timing.load_s,
    }
    over_at: dict[StepKey, float] = {}
    for step in steps:
        begins = max((over_at[key] for key in step.after), default=0.0)
        over_at[step.key] = begins + took[step.verb](world.services[step.service])
    return over_at


@dataclass
class Purse:
    """What one budget has and gets back, MiB by MiB, soonest first."""

    coins: list[tuple[float, StepKey | None, int]]
    debt: set[StepKey] = field(default_factory=set)

    @classmethod
    def of(cls, budget: Budget, verb: Verb, over_at: dict[StepKey, float]) -> "Purse":
        back = [(over_at[verb, s], (verb, s), mib) for s, mib in budget.held.items() if (verb, s) in over_at]
        purse = cls([(0.0, None, max(0, budget.available_mib)), *sorted(back)])
        purse.debt = purse.take(max(0, -budget.available_mib))
        return purse

    def take(self, mib: int) -> set[StepKey]:
        """Hand out so much; the steps that give it back."""
        keys = set(self.debt)
        while mib > 0 and self.coins:
            at_s, key, has = self.coins.pop(0)
            taken = min(has, mib)
            mib -= taken
            if has > taken:
                self.coins.insert(0, (at_s, key, has - taken))
            if taken and key is not None:
                keys.add(key)
        return keys


def handed_out(world: PlanInput, made: Plan, order: list[str]) -> tuple[PlannedStep, ...]:
    """The same steps, memory handed out in this order; whatever else a start waits for stays."""
    over_at = over(world, made.steps)
    purses = {uuid: Purse.of(budget, Verb.WAIT_RELEASE, over_at) for uuid, budget in world.budgets.items()}
    if world.host is not None:
        purses["host"] = Purse.of(world.host, Verb.STOP, over_at)
    gates: dict[str, set[StepKey]] = {}
    for service in order:
        spec, devices = world.services[service].spec, made.placements[service]
        gates[service] = set()
        for uuid in devices:
            gates[service] |= purses[uuid].take(share(spec.vram_mib or 0, len(devices)))
        if world.host is not None and spec.ram_mib:
            gates[service] |= purses["host"].take(spec.ram_mib)
    return tuple(
        replace(s, after=tuple(sorted(gates[s.service] | {key for key in s.after if not_for_memory(world, s, key)})))
        if s.verb is Verb.START and s.service in gates
        else s
        for s in made.steps
    )


def not_for_memory(world: PlanInput, start: PlannedStep, key: StepKey) -> bool:
    verb, other = key
    one, two = world.services[start.service].spec, world.services[other].spec
    same_port = verb is Verb.STOP and two is not None and two.port is not None and one.port == two.port
    return verb is Verb.WAIT_READY or same_port or key == (Verb.WAIT_RELEASE, start.service)


def end(over_at: dict[StepKey, float]) -> float:
    return max(over_at.values(), default=0.0)


@settings(settings.get_profile("core-runs"))
@given(world=switches(), seed=st.integers(0, 1 << 16))
def test_no_other_order_is_expected_to_be_ready_sooner(world: PlanInput, seed: int):
    made = plan(world)
    order = [s.service for s in made.steps if s.verb is Verb.START]
    if made.blocked:
        event("does not fit, or two have one port")
        return
    dice = random.Random(seed)
    by_size = sorted(order, key=lambda s: world.services[s].needed_mib)
    others = [order, sorted(order), by_size, *(dice.sample(order, len(order)) for _ in range(ORDERS))]
    seconds = [end(over(world, handed_out(world, made, other))) for other in others]
    chosen = end(over(world, made.steps))
    assert chosen <= min(seconds) + 1e-6
    event(f"the order matters: {max(seconds) > chosen + 1e-6}")


def test_the_orders_it_is_held_against_are_real():
    """The checker itself sees that an order is worse, where one is."""
    from tests.core.test_critical_path import down, machine, service, took, up

    world = machine(
        up(service("old", 14000), costs=took(stop=5.0, release=1.0)),
        down(service("quick", 10000), costs=took(load=2.0)),
        down(service("slow", 10000), costs=took(load=40.0)),
        wanted=("quick", "slow"),
    )
    made = plan(world)
    assert end(over(world, made.steps)) == 40.0
    assert end(over(world, handed_out(world, made, ["quick", "slow"]))) == 46.0
