"""Whatever happens to a machine, in whatever order, the engine keeps its promises.

A machine in virtual time is driven by chance: requests, crashes, strangers, lost devices, a broken bus, a full disk,
killed daemons. `tests.core.witness` checks after every batch; here stands what must hold once it may rest.
"""

from dataclasses import replace

from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gpumodd.core import conditions, world
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.engine import Engine
from gpumodd.core.explain import explain
from gpumodd.core.facts import Ended, HealthFact
from gpumodd.core.operations import State
from gpumodd.core.phase import AT_REST
from gpumodd.core.problems import CODES
from gpumodd.core.specs import DeviceLimit, HealthSpec, OnFailure, OnLeave, Policy, ServiceSpec
from gpumodd.core.timeline import timeline
from gpumodd.runtime import recording
from tests.core.machine import Behaviour, Machine, catalog

NAMES = ("a", "b", "c", "d", "e")
MODES = ("one", "two", "three")
HEARD_TWICE = (ev.UnitsObserved, ev.Probed, ev.DevicesSampled, ev.EffectEnded, ev.Ticked, ev.SaveWorked)
SELDOM = st.sampled_from([False, False, True])  # so that faults pass, and something works in between
LIMITS = (DeviceLimit(device="0", percent=60.0), DeviceLimit(device="GPU-1", mib=15000))
HOT, DAMAGED = HealthFact(temperature_c=97, shutdown_c=98), HealthFact(reset_needed=True)
HEALTH = HealthSpec(interval_s=5.0, failures=3, recoveries=2)


@st.composite
def catalogs(draw, gpus):
    specs = []
    count = draw(st.integers(2, 5))
    for i, name in enumerate(NAMES[:count]):
        specs.append(
            ServiceSpec(
                id=name,
                vram_mib=draw(st.sampled_from([0, 300, 4000, 5000, 9000, 14000, 20000])),
                ram_mib=draw(st.sampled_from([0, 0, 2000])),
                port=draw(st.sampled_from([8000 + i, 8000 + i, None])),
                depends_on=tuple(draw(st.sets(st.sampled_from(NAMES[:i]), max_size=2))) if i else (),
                device_count=draw(st.sampled_from([1] * gpus + [gpus])),
                devices=draw(st.sampled_from([None, None, ("0",)])),
                priority=draw(st.sampled_from([50, 50, 60])),
                pinned=draw(st.sampled_from([False, False, False, True])),
                startup_timeout_s=10.0,
                stop_timeout_s=3.0,
                health=HEALTH,
                on_leave=OnLeave.STOP,
            )
        )
    specs = [replace(s, device_count=1) if s.devices else s for s in specs]
    members = st.sets(st.sampled_from(NAMES[:count]), min_size=1, max_size=3).map(lambda s: tuple(sorted(s)))
    policy = Policy(
        on_failure=draw(st.sampled_from(OnFailure)),
        drift=draw(st.sampled_from(["heal", "heal", "report"])),
        quiesce_s=draw(st.sampled_from([0.0, 0.0, 2.0])),
        release_timeout_s=5.0,
        vram_limit_percent=draw(st.sampled_from([None, None, 80.0])),
        vram_limits=draw(st.sampled_from([(), (), LIMITS])),
        restore_mode_at_start=draw(st.sampled_from([True, True, False])),
    )
    return catalog(*specs, policy=policy, **{m: draw(members) for m in MODES})


behaviours = st.builds(
    Behaviour,
    load_s=st.sampled_from([0.0, 0.5, 2.0, 8.0]),
    term_s=st.sampled_from([0.0, 0.1, 2.0, 60.0]),
    linger_s=st.sampled_from([0.0, 0.0, 0.3, 2.0, 20.0]),
    start_result=st.sampled_from(["done"] * 5 + ["failed"]),
    exit_after_s=st.sampled_from([None] * 5 + [0.0, 0.2, 3.0]),
    never_ready=st.sampled_from([False] * 5 + [True]),
    unkillable_s=st.sampled_from([0.0] * 5 + [12.0, 25.0, 200.0]),
)


class Chaos(RuleBasedStateMachine):
    """One machine and everything that can happen to it."""

    @initialize(data=st.data(), gpus=st.sampled_from([1, 1, 2]), silent=st.sampled_from([False, False, True]))
    def begin(self, data, gpus, silent):
        found = data.draw(catalogs(gpus))
        self.m = Machine(found, devices={f"GPU-{i}": 24564 for i in range(gpus)}, silent=silent).boot()
        self.names = sorted(found.services)

    def pick(self, names, n):
        names = sorted(names)
        return names[n % len(names)] if names else None

    # -- requests ---------------------------------------------------------------------------------------------

    @rule(mode=st.sampled_from((*MODES, "blank")), policy=st.sampled_from([None, None, *OnFailure]))
    def switch(self, mode, policy):
        self.m.ask("switch", mode, on_failure=policy)

    @rule(mode=st.sampled_from(MODES))
    def switch_and_wait(self, mode):
        self.m.ask("switch", mode, quiesce=False)
        self.m.run(5.0)

    @rule(mode=st.sampled_from(MODES))
    def simulate_then_switch(self, mode):
        """What a simulation says is what the switch then does, or why it is refused."""
        m = self.m
        if m.engine.state.active_operations() or m.engine.state.intents or m.engine.state.observing:
            return
        made = m.simulate(mode)
        due = m.engine.next_deadline()
        began = len(m.history)
        request = m.ask("switch", mode)
        while request in m.asked - m.replies.keys() and m.step(m.at + 1.0):
            pass
        if request not in m.replies:
            return  # the daemon was killed meanwhile
        between = [e for batch, _ in m.history[began:] for e in batch]
        if [type(e) for e in between] != [ev.SwitchRequested, ev.Inspected] or (due is not None and due <= m.at):
            return  # something else happened meanwhile
        reply = m.replies[request]
        if reply.refusal is not None:
            reasons = [r for r in reply.refusal.reasons if r.code != "state_unwritable"]
            assert [(r.code, r.service, r.device) for r in reasons] == [
                (r.code, r.service, r.device) for r in made.reasons
            ]
            assert reply.refusal.alternatives == made.alternatives
            return
        assert made.reasons == ()
        _, *steps = m.engine.state.operations[reply.operation].steps
        keys = {s.id: s.key for s in steps}
        # What is under way already stands first in an operation.
        assert sorted((s.key, sorted(keys[i] for i in s.after)) for s in steps) == sorted(
            (s.key, sorted(s.after)) for s in made.plan.steps
        )
        for effect in (e for _, effects in m.history[began:] for e in effects if isinstance(e, fx.StartUnit)):
            assert effect.devices == made.plan.placements[effect.service]

    @rule(n=st.integers(0, 9))
    def start_and_wait(self, n):
        self.m.ask("start", self.pick(self.names, n))
        self.m.run(5.0)

    @rule(n=st.integers(0, 9), kind=st.sampled_from(["start", "start", "stop", "restart"]))
    def service(self, n, kind):
        self.m.ask(kind, self.pick(self.names, n))

    @rule(n=st.integers(0, 3))
    def cancel(self, n):
        operations = list(self.m.engine.state.operations)
        if operations:
            self.m.ask("cancel", operations[-1 - n % len(operations)])

    @rule(n=st.integers(0, 9), mode=st.sampled_from(MODES))
    def force(self, n, mode):
        if n == 0:
            self.m.ask("switch", mode, force=True)

    # -- time -------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.003, 0.05, 0.5, 2.0, 15.0, 90.0]))
    def wait(self, seconds):
        self.m.run(seconds)

    @rule(steps=st.integers(1, 6))
    def go_on(self, steps):
        for _ in range(steps):
            self.m.step(self.m.at + 60)

    @rule(seconds=st.sampled_from([0.7, 40.0, 30_000.0]))
    def sleeps(self, seconds):
        self.m.sleep(seconds)

    # -- services ---------------------------------------------------------------------------------------------

    @rule(n=st.integers(0, 9), behaviour=behaviours)
    def behave(self, n, behaviour):
        self.m.behaviours[self.pick(self.names, n)] = behaviour

    @rule(n=st.integers(0, 9), ended=st.sampled_from(Ended))
    def ends(self, n, ended):
        name = self.pick(self.m.running(), n)
        if name is not None:
            self.m.crash(name, ended=ended)

    @rule(n=st.integers(0, 9))
    def begins_outside(self, n):
        name = self.pick(self.names, n)
        if self.m.manager.alive(name) is None:
            self.m.begin_outside(name)
            self.m.run(0.1)

    @rule(n=st.integers(0, 9))
    def stopped_by_a_person(self, n):
        name = self.pick(self.m.running(), n)
        if name is not None:
            self.m.manager.stop(name, lambda _: None)

    @rule(n=st.integers(0, 9), refused=SELDOM)
    def the_manager_refuses(self, n, refused):
        (self.m.refused_units.add if refused else self.m.refused_units.discard)(self.pick(self.names, n))

    @rule(n=st.integers(0, 9), sick=st.booleans())
    def health_turns(self, n, sick):
        process = self.m.manager.alive(self.pick(self.names, n))
        if process is not None:
            process.sick = sick

    # -- the machine ------------------------------------------------------------------------------------------

    @rule(n=st.integers(0, 1), mib=st.sampled_from([0, 0, 500, 500, 5000, 15000]), listed=st.booleans())
    def a_stranger_takes_memory(self, n, mib, listed):
        (self.m.strangers if listed else self.m.foreign)[self.pick(self.m.devices, n)] = mib
        self.m.touch()

    @rule(n=st.integers(0, 1), lost=SELDOM)
    def a_device_is_lost(self, n, lost):
        (self.m.lost.add if lost else self.m.lost.discard)(self.pick(self.m.devices, n))
        self.m.touch()

    @rule(n=st.integers(0, 1), missing=SELDOM)
    def a_device_vanishes(self, n, missing):
        (self.m.missing.add if missing else self.m.missing.discard)(self.pick(self.m.devices, n))
        self.m.touch()

    @rule(n=st.integers(0, 1), health=st.sampled_from([HealthFact(), HealthFact(), HOT, DAMAGED]))
    def a_device_ails(self, n, health):
        self.m.health[self.pick(self.m.devices, n)] = health
        self.m.touch()

    @rule(hung=SELDOM)
    def the_driver_hangs(self, hung):
        self.m.hung = hung
        self.m.touch()

    @rule(down=SELDOM)
    def the_bus_breaks(self, down):
        if down is self.m.connected:
            (self.m.disconnect if down else self.m.connect)()

    @rule(n=st.integers(0, 9), taken=SELDOM)
    def a_port_is_taken(self, n, taken):
        (self.m.taken_ports.add if taken else self.m.taken_ports.discard)(self.pick(self.names, n))

    @rule(fails=SELDOM)
    def the_disk_is_full(self, fails):
        self.m.save_fails = fails

    @rule(mib=st.sampled_from([500, 5000, 64000, 64000, 64000]))
    def host_memory(self, mib):
        self.m.mem_available_mib = mib
        self.m.touch()

    @rule(unit=st.sampled_from([0.0, 0.0, 0.02, 0.3]), job=st.sampled_from([0.0, 0.0, 0.02, 0.3]))
    def news_is_late(self, unit, job):
        self.m.unit_lag_s, self.m.job_lag_s = unit, job

    @rule(seconds=st.sampled_from([0.001, 0.001, 0.3]))
    def looking_takes_long(self, seconds):
        self.m.inspect_s = seconds

    # -- the daemon -------------------------------------------------------------------------------------------

    @rule(same_boot=st.sampled_from([True, True, True, False]))
    def killed(self, same_boot):
        self.m.restart_daemon(same_boot=same_boot)

    @rule()
    def killed_after_a_save(self):
        self.m.dies_after_save = True

    @rule()
    def killed_before_a_save(self):
        self.m.dies_before_save = True

    @rule(n=st.integers(0, 30))
    def heard_twice(self, n):
        told = [e for batch, _ in self.m.history[-10:] for e in batch if isinstance(e, HEARD_TWICE)]
        told = [e for e in told if not isinstance(e, ev.UnitsObserved) or not e.complete]  # that is never an old one
        if told:
            self.m.feed(told[n % len(told)])

    @rule(n=st.integers(0, 9), vram_mib=st.sampled_from([300, 9000, 20000]))
    def reload(self, n, vram_mib):
        if self.m.silent:
            return  # attribution is a guess from the declared figures then, and a lie about them cannot be seen through
        name = self.pick(self.names, n)
        changed = replace(self.m.catalog.services[name], vram_mib=vram_mib, fingerprint=str(vram_mib))
        services = {**self.m.catalog.services, name: changed}
        self.m.catalog = replace(self.m.catalog, services=services)
        self.m.feed(ev.CatalogLoaded(at=self.m.at, catalog=self.m.catalog))

    @rule(n=st.integers(0, 9))
    def somebody_asks_why(self, n):
        self.explained(self.pick({*self.names, *self.m.engine.state.tracks}, n))

    # -- the promises -----------------------------------------------------------------------------------------

    def explained(self, service):
        """Whatever has happened, there is an answer, and a timeline of everything that was done."""
        state = self.m.engine.state
        found = explain(state, service, self.m.at)
        for lines in ((found.why,), found.because, found.would_change, [x.text for x in found.story]):
            assert all(line.strip() for line in lines), lines
        assert len(set(found.because)) == len(found.because)
        assert [x.at for x in found.story] == sorted(x.at for x in found.story)
        for op in state.operations.values():
            timings = timeline(op, self.m.at)
            assert timings.keys() == {s.id for s in op.steps}
            assert all(t.seconds is None or t.seconds >= 0 for t in timings.values())
        return found

    def teardown(self):
        if not hasattr(self, "m"):
            return
        m = self.m
        m.run(1120.0)
        self.rests("with the faults that there are")
        self.mend()
        m.run(1000.0)
        self.rests("mended")
        self.blank_always_works()
        self.replays()

    def rests(self, how):
        m = self.m
        state = m.engine.state
        note(f"{how}: {m.standing()}, {sorted(m.problems())}")
        assert not state.active_operations(), "an operation stays open"
        assert m.asked <= m.replies.keys(), "a request was never answered"
        assert not state.windows or not m.connected, "a release is never over"
        assert m.standing() in ("converged", "degraded", "blocked")
        assert all(p.code in CODES and p.message and p.hint for p in conditions.problems(state))
        desired = state.desired.services(m.catalog.services)
        for service in sorted(state.tracks):
            found = self.explained(service)
            if service in desired and world.phase_of(state, service) in AT_REST:
                assert not found.because[0].startswith("it is wanted"), "it does not say why it is down"
        if m.standing() == "converged":
            desired = state.desired.services(m.catalog.services)
            assert m.running() == desired
            asked = [s for s in desired if m.catalog.services[s].port is not None]
            assert all(m.manager.alive(s).ready_at <= m.at for s in asked)
        else:
            assert m.problems(), "nothing says why it is not converged"

    def mend(self):
        m = self.m
        if not m.connected:
            m.connect()
        m.lost.clear()
        m.missing.clear()
        m.health.clear()
        m.foreign.clear()
        m.strangers.clear()
        m.taken_ports.clear()
        m.refused_units.clear()
        m.behaviours.clear()
        m.hung = m.save_fails = m.dies_after_save = m.dies_before_save = False
        m.mem_available_mib = 64000
        m.unit_lag_s = m.job_lag_s = 0.0
        m.inspect_s = 0.001
        for process in m.manager.processes():
            process.sick = False
        m.touch()

    def blank_always_works(self):
        m = self.m
        op = m.do("switch", "blank")
        assert op.state is State.SUCCEEDED
        assert m.running() == set()
        m.run(30.0)
        assert m.standing() == "converged", m.problems()
        assert m.engine.state.reached_mode == "blank"

    def replays(self):
        """What was recorded leads a fresh engine, and a copy of it made on the way, to the same effects and state."""
        for engine, history in (*self.m.past, (self.m.engine, self.m.history)):
            again = Engine()
            for n, (events, effects) in enumerate(history):
                if n == len(history) // 2:
                    again = copied(again)
                entry = recording.read_entry(recording.batch(n, events, effects))
                assert again.handle(*recording.read_events(entry)) == effects
            assert again.state == engine.state
            assert recording.parts(again.state) == recording.parts(engine.state)


def copied(engine):
    """An engine that starts with what a recording's head says of this one."""
    _, state = recording.read_head(recording.head(engine.state, version="", boot_id="", epoch=0.0, n=0))
    return Engine(state)


TestChaos = Chaos.TestCase
TestChaos.settings = settings.get_profile("core-runs")
