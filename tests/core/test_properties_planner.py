"""Whatever the machine and the wish, a plan keeps its promises, in every order that it permits.

One world after the other is drawn, and every promise is checked on each. Orders are rehearsed by an interpreter of
its own, with accounts of its own of memory, ports and who runs.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from gpumodd.core.costs import Costs
from gpumodd.core.ledger import Budget, share
from gpumodd.core.operations import PlannedStep, StepKey, Verb
from gpumodd.core.phase import Phase
from gpumodd.core.planner import plan
from gpumodd.core.plans import Plan, PlanInput, ServiceView
from gpumodd.core.problems import CODES
from gpumodd.core.specs import ServiceSpec

NAMES = ("a", "b", "c", "d", "e", "f")
ORDERS = 3  # orders rehearsed per plan
GONE = (Phase.STOPPED, Phase.STOPPED, Phase.FAILED, Phase.RELEASING)
UP = (Phase.STARTING, Phase.LOADING, Phase.READY, Phase.READY, Phase.DEGRADED, Phase.STOPPING)
MEMORY = ("vram_insufficient", "ram_insufficient")


# -- worlds ---------------------------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> PlanInput:
    """A machine at some moment: what runs is on devices and in their books, what is gone may still be releasing."""
    uuids = [f"GPU-{i}" for i in range(draw(st.integers(1, 3)))]
    trouble = draw(st.sampled_from([False, False, True]))
    services: dict[str, ServiceView] = {}
    held: dict[str, dict[str, int]] = {uuid: {} for uuid in uuids}
    ports: set[int] = set()
    crowded = draw(st.booleans())
    for i, name in enumerate(NAMES[: draw(st.sampled_from([5, 6] if crowded else [1, 2, 3, 4]))]):
        pinned = draw(st.sampled_from([None, None, "0", "GPU-1"]))
        port = draw(st.sampled_from([8000 + i, 8000 + i, 9000, None]))
        phase = draw(st.sampled_from(GONE if port in ports else (*GONE, *UP)))
        spec = ServiceSpec(
            id=name,
            vram_mib=draw(st.sampled_from([0, 100, 3000, 7000, 12000, 20000, None if trouble else 5000])),
            ram_mib=draw(st.sampled_from([0, 0, 1000, 8000])),
            port=port,
            depends_on=tuple(sorted(draw(st.sets(st.sampled_from(NAMES[:i]), max_size=2)))) if i else (),
            devices=None if pinned is None else (pinned,),
            device_count=draw(st.sampled_from([1, 1, len(uuids)])) if pinned is None else 1,
            priority=draw(st.sampled_from([50, 50, 60])),
        )
        devices: tuple[str, ...] = ()
        if phase not in (Phase.STOPPED, Phase.FAILED):
            devices = tuple(uuids[: draw(st.integers(1, len(uuids)))])[-spec.device_count :]
        for uuid in devices:
            mib = share(spec.vram_mib or 0, len(devices)) + draw(st.sampled_from([0, 0, 500]))
            if mib:
                held[uuid][name] = mib // 2 + 1 if phase is Phase.RELEASING else mib
        if phase in UP and port is not None:
            ports.add(port)
        services[name] = ServiceView(
            id=name,
            phase=phase,
            gone=phase in GONE,
            spec=draw(st.sampled_from([spec] * 9 + [None])) if phase in (Phase.READY, Phase.STOPPING) else spec,
            starting=phase is Phase.STARTING and draw(st.booleans()),
            stopping=phase is Phase.STOPPING,
            releasing=phase is Phase.RELEASING,
            restart=phase in UP and draw(st.sampled_from([False] * 5 + [True])),
            devices=devices,
            costs=draw(costs()),
        )
    if draw(st.sampled_from([False] * 5 + [True])):  # memory of which nothing more is known than that it was ours
        held[uuids[0]][""] = draw(st.sampled_from([64, 3000]))
    budgets = {
        uuid: Budget(
            uuid=uuid,
            index=i,
            name=f"Sim {i}",
            total_mib=24564,
            reserve_mib=512,
            foreign_mib=draw(st.sampled_from([0, 0, 2000, 9000, 15000])),
            limit_mib=draw(st.sampled_from([None, None, 16000])),
            held=held[uuid],
            trouble=draw(st.sampled_from(["", "", "telemetry_stale", "device_unhealthy"])) if trouble else "",
        )
        for i, uuid in enumerate(uuids)
    }
    specs = {name: view.spec for name, view in services.items() if view.spec is not None}
    roots = draw(st.sets(st.sampled_from(sorted(specs)))) if specs else set()
    return PlanInput(
        services=services,
        wanted=needed_by(roots, specs),
        budgets=budgets,
        host=draw(hosts(services)),
        lenient=frozenset(draw(st.sampled_from([(), (), (), sorted(services)[:1], sorted(services)]))),
        paused=trouble and draw(st.booleans()),
        able=not trouble or draw(st.booleans()),
    )


@st.composite
def costs(draw) -> Costs:
    """What is known of a service's times: all, some, or nothing."""
    loads, stops, releases = (draw(st.sampled_from([(), (), (0.1,), (2.0,), (40.0,)])) for _ in range(3))
    return Costs(loads=loads, stops=stops, releases=releases)


@st.composite
def hosts(draw, services: dict[str, ServiceView]) -> Budget | None:
    """The host's memory: what runs holds what it declares, or more."""
    room = draw(st.sampled_from([None, 0, 4000, 64000]))
    if room is None:
        return None
    held = {
        v.id: v.spec.ram_mib + draw(st.sampled_from([0, 0, 700]))
        for v in services.values()
        if v.spec is not None and not v.gone
    }
    total = room + sum(held.values()) + 2048 - draw(st.sampled_from([0, 0, 500]))
    return Budget(
        uuid="host", index=-1, name="", total_mib=total, reserve_mib=2048, foreign_mib=0, limit_mib=None, held=held
    )


def needed_by(roots: set[str], specs: Mapping[str, ServiceSpec]) -> frozenset[str]:
    found = set(roots)
    while more := {d for s in found for d in specs[s].depends_on if d in specs} - found:
        found |= more
    return frozenset(found)


def coming(world: PlanInput) -> list[ServiceSpec]:
    """What has to be started, by the words of the views alone."""
    views = (world.services[s] for s in sorted(world.wanted))
    return [v.spec for v in views if v.spec and (v.restart or ((v.gone or v.stopping) and not v.starting))]


def starts(made: Plan) -> list[PlannedStep]:
    return [s for s in made.steps if s.verb is Verb.START and not s.in_flight]


# -- the rehearsal --------------------------------------------------------------------------------------------


@dataclass
class Rehearsal:
    """Carries a plan out step by step."""

    world: PlanInput
    made: Plan
    over: set[StepKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.held = {uuid: dict(b.held) for uuid, b in self.world.budgets.items()}
        self.running = {v.id for v in self.world.services.values() if not v.gone}
        self.host_held = dict(self.world.host.held) if self.world.host is not None else {}

    def run(self, dice: random.Random) -> "Rehearsal":
        """In one order in which each step comes after what it waits for; what is blocked never happens."""
        left = list(self.made.steps)
        while free := [s for s in left if not s.blocked and self.over.issuperset(s.after)]:
            step = dice.choice(free)
            left.remove(step)
            self._happens(step)
            self.over.add(step.key)
        return self

    def _happens(self, step: PlannedStep) -> None:
        view = self.world.services[step.service]
        match step.verb:
            case Verb.STOP:
                self.running.discard(step.service)
                self.host_held.pop(step.service, None)
            case Verb.WAIT_RELEASE:
                assert step.service not in self.running, "it waits for memory of something that runs"
                for held in self.held.values():
                    held.pop(step.service, None)
            case Verb.START if not step.in_flight:
                assert view.spec is not None
                self._starts(view.spec)
            case Verb.WAIT_READY:
                assert step.service in self.running, "it waits for something that does not run"

    def _forced(self, held: Mapping[str, int]) -> bool:
        """Is somebody there who was let in by force?"""
        return any(s in self.world.lenient and (Verb.START, s) in {p.key for p in starts(self.made)} for s in held)

    def _starts(self, spec: ServiceSpec) -> None:
        assert spec.id not in self.running, "it starts what runs"
        devices = self.made.placements[spec.id]
        for uuid in devices:
            budget, each_mib = self.world.budgets[uuid], share(spec.vram_mib or 0, len(devices))
            assert not budget.trouble, "it starts on a device in trouble"
            self.held[uuid][spec.id] = each_mib
            fits = sum(self.held[uuid].values()) <= budget.capacity_mib
            assert fits or not each_mib or self._forced(self.held[uuid]), "it over-commits a device"
        if self.world.host is not None and spec.ram_mib:
            self.host_held[spec.id] = spec.ram_mib
            fits = sum(self.host_held.values()) <= self.world.host.capacity_mib
            assert fits or self._forced(self.host_held), "it over-commits the host's memory"
        for other in self.running:
            holder = self.world.services[other].spec
            assert holder is None or holder.port is None or holder.port != spec.port, "two have one port"
        for needed in spec.depends_on:
            if needed in self.world.wanted:
                ready = self.world.services[needed].ready or (Verb.WAIT_READY, needed) in self.over
                assert ready and needed in self.running, "what it needs is not ready"
        self.running.add(spec.id)


# -- promises -------------------------------------------------------------------------------------------------


def no_order_is_unsafe(world: PlanInput, made: Plan, dice: random.Random) -> None:
    for _ in range(ORDERS):
        Rehearsal(world, made).run(dice)


def without_obstacles_every_order_leads_to_the_wish(world: PlanInput, made: Plan, dice: random.Random) -> None:
    if made.blocked or not world.able or world.paused:
        return
    for _ in range(ORDERS):
        rehearsal = Rehearsal(world, made).run(dice)
        assert rehearsal.over == {s.key for s in made.steps}
        assert rehearsal.running == world.wanted
    there = {
        name: replace(
            view,
            phase=Phase.READY if name in world.wanted else Phase.STOPPED,
            gone=name not in world.wanted,
            starting=False,
            stopping=False,
            releasing=False,
            restart=False,
        )
        for name, view in world.services.items()
    }
    assert plan(replace(world, services=there)).steps == (), "what it leads to would need a plan"


def only_a_satisfied_world_needs_nothing(world: PlanInput, made: Plan, dice: random.Random) -> None:
    satisfied = all(
        (view.phase in (Phase.READY, Phase.DEGRADED) and not view.restart)
        if name in world.wanted
        else (view.gone and not view.releasing)
        for name, view in world.services.items()
    )
    assert satisfied == (made.steps == ())


def nothing_is_touched_that_may_stay(world: PlanInput, made: Plan, dice: random.Random) -> None:
    assert {s.service for s in made.steps}.isdisjoint(made.kept)
    assert {s.service for s in starts(made)} == {spec.id for spec in coming(world)}
    for step in made.steps:
        view = world.services[step.service]
        if step.verb in (Verb.START, Verb.WAIT_READY):
            assert step.service in world.wanted
        elif step.service in world.wanted:
            assert view.restart or view.stopping or view.releasing


def steps_stand_in_an_order_in_which_they_may_run(world: PlanInput, made: Plan, dice: random.Random) -> None:
    keys = [s.key for s in made.steps]
    assert len(keys) == len(set(keys))
    for i, step in enumerate(made.steps):
        assert set(step.after) <= set(keys[:i])
        assert step.why


def dependents_stop_first(world: PlanInput, made: Plan, dice: random.Random) -> None:
    stops = {s.service: s for s in made.steps if s.verb is Verb.STOP}
    for service, step in stops.items():
        spec = world.services[service].spec
        for needed in spec.depends_on if spec is not None else ():
            if needed in stops and not stops[needed].in_flight:
                assert step.key in stops[needed].after


def nothing_begins_that_cannot(world: PlanInput, made: Plan, dice: random.Random) -> None:
    for step in made.ready():
        assert world.able
        assert not (step.verb is Verb.START and world.paused)


def what_is_blocked_is_explained(world: PlanInput, made: Plan, dice: random.Random) -> None:
    assert all(r.code in CODES and r.message.startswith("cannot ") and r.hint for r in made.blocked)
    if world.able and not world.paused:
        assert {s.service for s in starts(made) if s.blocked} == {r.service for r in made.blocked}


def a_start_with_room_waits_for_no_memory(world: PlanInput, made: Plan, dice: random.Random) -> None:
    need = dict.fromkeys(world.budgets, 0)
    for step in starts(made):
        devices = made.placements[step.service]
        for uuid in devices:
            need[uuid] += share(world.services[step.service].spec.vram_mib or 0, len(devices))
    roomy = {uuid for uuid, budget in world.budgets.items() if budget.available_mib >= need[uuid]}
    for step in starts(made):
        if roomy.issuperset(made.placements[step.service]):
            assert {service for verb, service in step.after if verb is Verb.WAIT_RELEASE} <= {step.service}


def the_order_of_the_input_does_not_matter(world: PlanInput, made: Plan, dice: random.Random) -> None:
    def shuffled(items: Mapping) -> dict:
        return dict(dice.sample(list(items.items()), len(items)))

    budgets = {uuid: replace(b, held=shuffled(b.held)) for uuid, b in shuffled(world.budgets).items()}
    assert plan(replace(world, services=shuffled(world.services), budgets=budgets)) == made


def a_service_gets_the_devices_it_names(world: PlanInput, made: Plan, dice: random.Random) -> None:
    index = {uuid: str(budget.index) for uuid, budget in world.budgets.items()}
    for step in starts(made):
        spec = world.services[step.service].spec
        devices = made.placements[step.service]
        assert len(set(devices)) == len(devices)
        assert spec.devices is None or all({uuid, index[uuid]} & set(spec.devices) for uuid in devices)
        assert step.blocked or len(devices) == (spec.device_count if spec.vram_mib != 0 else 0)


def more_memory_never_blocks_what_fitted(world: PlanInput, made: Plan, dice: random.Random) -> None:
    if any(r.code in MEMORY for r in made.blocked):
        return
    budgets = dict(world.budgets)
    uuid = dice.choice(sorted(budgets))
    budgets[uuid] = replace(budgets[uuid], total_mib=budgets[uuid].total_mib + dice.randint(1, 20_000))
    assert not any(r.code in MEMORY for r in plan(replace(world, budgets=budgets)).blocked)


def what_could_be_placed_is_placed(world: PlanInput, made: Plan, dice: random.Random) -> None:
    """If all fit on some devices, they are not refused for lack of memory there."""
    if any(r.code == "vram_insufficient" for r in made.blocked) and not any(b.trouble for b in world.budgets.values()):
        assert not fits_somehow(world)


def fits_somehow(world: PlanInput) -> bool:
    """Every choice of devices, tried one after the other."""
    views = world.services.values()
    going = {v.id for v in views if v.id not in world.wanted or v.restart or v.stopping or (v.gone and v.releasing)}
    room = {u: b.capacity_mib - sum(m for s, m in b.held.items() if s not in going) for u, b in world.budgets.items()}
    specs = [spec for spec in coming(world) if spec.vram_mib]
    choices = []
    for spec in specs:
        named = sorted(room) if spec.devices is None else ["GPU-" + spec.devices[0].removeprefix("GPU-")]
        choices.append(list(combinations([uuid for uuid in named if uuid in room], spec.device_count)))
    for chosen in product(*choices):
        left = dict(room)
        for spec, devices in zip(specs, chosen, strict=True):
            for uuid in devices:
                left[uuid] -= share(spec.vram_mib or 0, len(devices))
        if all(left[uuid] >= 0 for devices in chosen for uuid in devices):
            return True
    return False


PROMISES: tuple[Callable[[PlanInput, Plan, random.Random], None], ...] = (
    no_order_is_unsafe,
    without_obstacles_every_order_leads_to_the_wish,
    only_a_satisfied_world_needs_nothing,
    nothing_is_touched_that_may_stay,
    steps_stand_in_an_order_in_which_they_may_run,
    dependents_stop_first,
    nothing_begins_that_cannot,
    what_is_blocked_is_explained,
    a_start_with_room_waits_for_no_memory,
    the_order_of_the_input_does_not_matter,
    a_service_gets_the_devices_it_names,
    more_memory_never_blocks_what_fitted,
    what_could_be_placed_is_placed,
)


@settings(settings.get_profile("core-pure"))
@given(world=worlds(), seed=st.integers(0, 1 << 16))
def test_every_plan_keeps_its_promises(world: PlanInput, seed: int):
    made = plan(world)
    for promise in PROMISES:
        promise(world, made, random.Random(seed))
