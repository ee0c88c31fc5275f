"""The engine on a machine in virtual time: switches, failures, drift, recovery."""

from dataclasses import replace

from gpumodd.core import attention, conditions, world
from gpumodd.core import effects as fx
from gpumodd.core import events as ev
from gpumodd.core.facts import Active, Ended, UnitFact
from gpumodd.core.operations import State, StepState, Verb
from gpumodd.core.ops import Command
from gpumodd.core.specs import HealthSpec, OnFailure, Policy
from gpumodd.core.state import State as EngineState
from tests.core.machine import Behaviour, Machine, catalog, service


def two_modes(**policy) -> Machine:
    specs = [
        service("chat", 16000, port=8001),
        service("embed", 5000, port=8002),
        service("code", 15000, port=8003),
        service("tiny", 1000, port=8004),
    ]
    modes = {"chat": ("chat", "tiny"), "rag": ("embed", "tiny"), "code": ("code", "embed"), "huge": ("chat", "code")}
    return Machine(catalog(*specs, policy=Policy(**policy), **modes)).boot()


def test_a_first_switch_starts_every_member():
    m = two_modes()
    op = m.do("switch", "chat")
    assert op.state is State.SUCCEEDED
    assert m.running() == {"chat", "tiny"}
    assert m.engine.state.reached_mode == "chat"
    assert op.done(Verb.START) == ("chat", "tiny")
    assert op.kept == ()


def test_a_switch_keeps_stops_and_starts_and_says_which():
    m = two_modes()
    m.do("switch", "chat")
    op = m.do("switch", "rag")
    assert (op.done(Verb.STOP), op.done(Verb.START), op.kept) == (("chat",), ("embed",), ("tiny",))
    assert m.running() == {"embed", "tiny"}


def test_a_start_waits_for_the_release_it_needs_and_for_no_other():
    m = two_modes()
    m.do("switch", "chat")
    m.behaviours["chat"] = Behaviour(term_s=0.5, linger_s=2.0)
    m.log.clear()
    op = m.do("switch", "code")  # code needs chat's memory; embed fits beside it
    assert op.state is State.SUCCEEDED
    assert m.log.index("start embed") < m.log.index("start code")
    starts = {s.service: s.started_at for s in op.steps if s.verb is Verb.START}
    released = next(s.finished_at for s in op.steps if s.verb is Verb.WAIT_RELEASE and s.service == "chat")
    assert starts["embed"] < released <= starts["code"]


def test_what_cannot_fit_is_refused_with_numbers_and_nothing_is_touched():
    m = two_modes()
    m.do("switch", "rag")
    m.log.clear()
    refusal = m.refused("switch", "huge")
    assert refusal.code == "refused"
    assert [r.code for r in refusal.reasons] == ["vram_insufficient"]
    assert refusal.reasons[0].details["needed_mib"] == 15000
    assert m.log == []
    assert m.engine.state.desired.mode == "rag"


def test_a_refused_start_says_whom_to_stop_and_that_works():
    m = Machine(catalog(service("a", 12000), service("b", 9000), service("c", 8000), rag=("a", "b"))).boot()
    m.behaviours = {"a": Behaviour(load_s=8.0), "b": Behaviour(load_s=2.0)}
    m.do("switch", "rag")
    refusal = m.refused("start", "c")
    assert [x.message for x in refusal.alternatives] == ["stop b (part of mode rag)", "stop a (part of mode rag)"]
    assert [round(x.cost_s) for x in refusal.alternatives] == [2, 8]
    assert refusal.hint == "to make it fit, stop b (part of mode rag)"
    m.do("stop", "b")
    m.do("start", "c")
    assert m.running() == {"a", "c"}


def test_what_nothing_configures_any_more_can_be_stopped_to_make_room():
    m = Machine(catalog(service("old", 12000), service("new", 16000), x=("old",))).boot()
    m.do("switch", "x")
    m.catalog = catalog(m.catalog.services["new"])
    m.feed(ev.CatalogLoaded(at=m.at, catalog=m.catalog))
    refusal = m.refused("start", "new")
    assert [x.message for x in refusal.alternatives] == ["stop old (runs, though nothing asks for it)"]
    m.do("stop", "old")
    m.do("start", "new")
    assert m.running() == {"new"}


def test_what_is_refused_for_something_else_has_no_alternatives():
    m = Machine(catalog(service("a", 12000), x=("a",)), taken_ports={"a"}).boot()
    refusal = m.refused("switch", "x")
    assert [r.code for r in refusal.reasons] == ["port_conflict"]
    assert refusal.alternatives == ()


def test_force_passes_the_memory_refusal():
    m = two_modes()
    m.devices["GPU-0"] = 24000
    request = m.ask("switch", "huge", force=True)
    m.run()
    assert m.replies[request].operation is not None
    assert m.witness.overcommits  # it sees what force allowed


def test_what_force_has_passed_is_recorded_with_its_numbers():
    m = two_modes()
    op = m.do("switch", "huge", force=True)
    assert op.force
    assert [(r.code, r.service, r.details["needed_mib"]) for r in op.passed] == [("vram_insufficient", "code", 15000)]
    assert m.do("switch", "rag").passed == ()


def test_a_warning_policy_lets_it_pass_and_records_it():
    m = two_modes(overcommit="warn")
    m.witness.lenient = True
    op = m.do("switch", "huge")
    assert (op.state, op.force) == (State.SUCCEEDED, False)
    assert [r.code for r in op.passed] == ["vram_insufficient"]
    assert "overcommitted" in m.problems()


def test_force_is_for_the_one_who_uses_it():
    m = two_modes()
    m.do("switch", "rag")
    m.behaviours["chat"] = Behaviour(load_s=30.0)
    m.ask("start", "chat", force=True)
    m.run(1.0)
    assert m.refused("start", "code").reasons[0].code == "vram_insufficient"
    m.run()
    assert m.running() == {"embed", "tiny", "chat"}


def test_a_crash_that_is_healed_never_looks_like_a_failure():
    m = two_modes()
    m.do("switch", "rag")
    before = len(m.history)
    m.crash("embed")
    m.run(30.0)
    changes = [e.change for _, effects in m.history[before:] for e in effects if isinstance(e, fx.Announce)]
    phases = [c.now for c in changes if isinstance(c, fx.PhaseChanged) and c.service == "embed"]
    assert phases == ["releasing", "backoff", "starting", "loading", "ready"]


def test_the_same_mode_again_repairs_drift_and_says_what_it_started():
    m = two_modes(drift="report")
    m.do("switch", "rag")
    m.crash("embed")
    m.run()
    assert m.running() == {"tiny"}
    op = m.do("switch", "rag")
    assert op.done(Verb.START) == ("embed",)
    assert op.kept == ("tiny",)


def test_blank_stops_everything_whatever_its_phase():
    m = two_modes()
    m.behaviours["chat"] = Behaviour(load_s=500)
    m.ask("switch", "chat")
    for _ in range(20):
        m.step()
    assert m.phase("chat") == "loading"
    op = m.do("switch", "blank")
    assert op.state is State.SUCCEEDED
    assert m.running() == set()
    assert m.engine.state.reached_mode == "blank"


def test_dependencies_start_first_and_stop_last():
    specs = [service("db", 100, port=1), service("api", 100, port=2, depends_on=("db",))]
    m = Machine(catalog(*specs, app=("api",))).boot()
    m.do("switch", "app")
    assert m.log == ["start db", "start api"]
    m.log.clear()
    m.do("switch", "blank")
    assert m.log == ["stop api", "stop db"]


def test_a_failing_member_rolls_back_to_what_ran_before():
    m = two_modes()
    m.do("switch", "chat")
    m.behaviours["code"] = Behaviour(exit_after_s=0.3)
    op = m.do("switch", "code")
    assert op.state is State.ROLLED_BACK
    assert op.failure.reason.code == "unit_failed"
    assert op.failure.log == ("last words",)
    assert m.running() == {"chat", "tiny"}
    assert (m.engine.state.desired.mode, m.engine.state.reached_mode) == ("chat", "chat")


def test_keep_leaves_what_came_up():
    m = two_modes()
    m.behaviours["code"] = Behaviour(exit_after_s=0.3)
    op = m.do("switch", "code", on_failure=OnFailure.KEEP)
    assert op.state is State.FAILED
    assert m.running() == {"embed"}
    assert m.engine.state.desired.mode == "code"
    assert m.engine.state.reached_mode is None


def test_stop_ends_what_the_operation_started():
    m = two_modes()
    m.do("switch", "rag")
    m.behaviours["chat"] = Behaviour(exit_after_s=0.3)
    op = m.do("switch", "chat", on_failure=OnFailure.STOP)
    assert op.state is State.FAILED
    assert m.running() == {"tiny"}


def test_a_service_that_never_gets_ready_fails_with_a_timeout():
    specs = [service("slow", 1000, startup_timeout_s=5.0)]
    m = Machine(catalog(*specs, slow=("slow",)), behaviours={"slow": Behaviour(never_ready=True)}).boot()
    op = m.do("switch", "slow")
    assert op.state is State.ROLLED_BACK
    assert op.failure.reason.code == "health_timeout"
    assert m.running() == set()


def test_memory_that_does_not_come_back_fails_the_operation():
    m = two_modes(release_timeout_s=3.0)
    m.do("switch", "chat")
    m.behaviours["chat"] = Behaviour(linger_s=400.0)
    op = m.do("switch", "code")
    assert op.failure.reason.code == "vram_not_released"
    assert op.state in (State.FAILED, State.ROLLED_BACK)


def test_a_crash_is_healed_with_growing_pauses_and_a_give_up():
    m = two_modes()
    m.do("switch", "rag")
    m.behaviours["embed"] = Behaviour(exit_after_s=0.2)
    m.crash("embed")
    before = m.at
    m.run(3000)
    track = m.engine.state.track("embed")
    assert track.gave_up
    assert m.phase("embed") == "failed"
    assert m.at - before > 15
    assert m.running() == {"tiny"}


def test_a_crash_heals():
    m = two_modes()
    m.do("switch", "rag")
    m.crash("embed")
    m.run(0.1)
    assert m.phase("embed") == "backoff"
    m.run()
    assert m.running() == {"embed", "tiny"}
    assert m.phase("embed") == "ready"


def test_a_stop_outside_is_not_fought():
    m = two_modes()
    m.do("switch", "rag")
    m.crash("embed", ended=Ended.JOB)
    m.run()
    assert m.running() == {"tiny"}
    assert m.engine.state.track("embed").stopped_outside
    assert m.do("switch", "rag").done(Verb.START) == ("embed",)


def test_a_new_switch_supersedes_the_running_one():
    m = two_modes()
    m.behaviours["chat"] = Behaviour(load_s=100)
    first = m.ask("switch", "chat")
    for _ in range(10):
        m.step()
    op = m.do("switch", "rag")
    old = m.engine.state.operations[m.replies[first].operation]
    assert (old.state, old.failure.reason.code) == (State.CANCELLED, "conflict")
    assert op.state is State.SUCCEEDED
    assert m.running() == {"embed", "tiny"}


def test_the_same_switch_again_joins_the_running_one():
    m = two_modes()
    first = m.ask("switch", "chat")
    second = m.ask("switch", "chat")
    m.run(0.5)
    third = m.ask("switch", "chat")
    m.run()
    assert len({m.replies[r].operation for r in (first, second, third)}) == 1


def test_cancel_returns_to_the_previous_mode():
    m = two_modes()
    m.do("switch", "rag")
    m.behaviours["chat"] = Behaviour(load_s=100)
    request = m.ask("switch", "chat")
    m.run(1.0)
    m.ask("cancel", m.replies[request].operation)
    m.run()
    op = m.engine.state.operations[m.replies[request].operation]
    assert op.state is State.CANCELLED
    assert m.running() == {"embed", "tiny"}
    assert m.engine.state.reached_mode == "rag"


def test_start_stop_and_restart_of_one_service():
    m = two_modes()
    m.do("switch", "rag")
    assert m.do("start", "code").done(Verb.START) == ("code",)
    assert m.running() == {"embed", "tiny", "code"}
    restarted = m.do("restart", "code")
    assert (restarted.done(Verb.STOP), restarted.done(Verb.START)) == (("code",), ("code",))
    m.do("stop", "code")
    assert m.running() == {"embed", "tiny"}
    m.do("stop", "embed")
    m.run()
    assert m.running() == {"tiny"}


def test_stop_reaches_a_service_that_is_still_loading():
    m = two_modes()
    m.behaviours["chat"] = Behaviour(load_s=500)
    request = m.ask("start", "chat")
    m.run(1.0)
    assert m.do("stop", "chat").state is State.SUCCEEDED
    assert m.running() == set()
    assert m.engine.state.operations[m.replies[request].operation].state is State.CANCELLED


def test_unknown_ids_are_not_found_and_name_what_exists():
    m = two_modes()
    assert "blank, chat, code" in m.refused("switch", "nope").hint
    assert m.refused("start", "nope").code == "not_found"


def test_unknown_memory_is_refused():
    m = Machine(catalog(service("mystery", None), x=("mystery",))).boot()
    assert m.refused("switch", "x").reasons[0].code == "vram_unknown"


def test_quiesce_refuses_then_waits():
    m = two_modes(quiesce_s=30.0)
    m.do("switch", "chat")
    m.do("switch", "blank")
    refusal = m.refused("switch", "rag")
    assert refusal.reasons[0].code == "quiesce_active"
    assert 0 < refusal.retry_after_s <= 30
    assert m.do("switch", "rag", quiesce=False).state is State.SUCCEEDED


def test_a_restarted_daemon_finishes_the_open_operation_under_its_own_id():
    m = two_modes()
    m.do("switch", "rag")
    m.behaviours["chat"] = Behaviour(load_s=20.0)
    request = m.ask("switch", "chat")
    m.run(2.0)
    op_id = m.replies[request].operation
    m.restart_daemon()
    m.run()
    assert m.engine.state.operations[op_id].state is State.SUCCEEDED
    assert m.running() == {"chat", "tiny"}
    assert "start chat" not in m.log  # it was loading already: adopted, not started twice


def test_who_was_ready_for_longer_than_a_start_may_take_is_no_failure_of_the_next_daemon():
    m = two_modes()
    m.do("switch", "rag")
    m.run(1000.0)
    request = m.ask("switch", "chat")  # tiny is in both
    m.run(0.001)
    op_id = m.replies[request].operation
    m.restart_daemon()
    assert m.problems() == set()
    m.run()
    assert m.engine.state.operations[op_id].state is State.SUCCEEDED
    assert m.running() == {"chat", "tiny"}


def test_after_a_reboot_the_mode_is_restored():
    m = two_modes()
    m.do("switch", "rag")
    m.restart_daemon(same_boot=False)
    assert m.running() == set()
    m.run()
    assert m.running() == {"embed", "tiny"}


def test_a_state_file_that_cannot_be_written_stops_everything_before_it_begins():
    m = two_modes()
    m.save_fails = True
    m.do("switch", "rag")
    refusal = m.refused("switch", "chat")
    assert refusal.reasons[0].code == "state_unwritable"


def test_the_end_of_an_operation_shows_figures_taken_after_its_last_step():
    m = two_modes()
    for mode in ("chat", "rag", "rag", "blank"):
        op = m.do("switch", mode)
        assert m.engine.state.devices.at >= op.last_step_at
    m.hung = True  # nothing newer can be had: the end does not wait for it
    op = m.do("stop", "chat")
    assert (op.state, op.finished_at - op.last_step_at <= 1.0) == (State.SUCCEEDED, True)


def test_a_problem_keeps_the_time_it_began():
    m = two_modes()
    m.lost.add("GPU-0")
    m.touch()
    m.run(1.0)
    since = [p.since for p in conditions.problems(m.engine.state)]
    m.touch()
    m.run(10.0)
    assert [p.since for p in conditions.problems(m.engine.state)] == since != []


def test_without_restoring_a_mode_that_is_down_after_a_reboot_is_told_and_left_alone():
    m = two_modes(restore_mode_at_start=False)
    m.do("switch", "rag")
    m.restart_daemon(same_boot=False)
    m.run()
    assert (m.running(), m.standing(), m.problems()) == (set(), "degraded", {"stopped_outside"})
    assert m.do("switch", "rag").done(Verb.START) == ("embed", "tiny")
    assert m.standing() == "converged"


def test_a_stop_by_hand_ends_what_was_named_and_nothing_that_was_not():
    m = Machine(catalog(service("db", 100), service("api", 100, depends_on=("db",)), app=("api",))).boot()
    for begin in (("start", "api"), ("switch", "app")):
        m.do(*begin)
        assert m.do("stop", "api").done(Verb.STOP) == ("api",)
        assert (m.running(), m.standing(), m.problems()) == ({"db"}, "converged", set())
        m.do("switch", "blank")


def test_a_member_that_fails_has_the_failed_step():
    m = two_modes()
    m.behaviours["embed"] = Behaviour(load_s=5.0, exit_after_s=1.0)
    op = m.do("switch", "rag")
    assert [(s.verb, s.service) for s in op.steps if s.state is StepState.FAILED] == [(Verb.WAIT_READY, "embed")]


def test_blank_does_not_wait_for_the_memory_of_a_device_that_is_lost():
    m = two_modes()
    m.do("switch", "rag")
    m.lost.add("GPU-0")
    m.touch()
    m.run(1.0)
    began = m.at
    assert m.do("switch", "blank").state is State.SUCCEEDED
    assert m.at - began < 5
    assert m.standing() == "converged"
    m.lost.clear()
    m.touch()
    m.run()
    assert m.do("switch", "chat").state is State.SUCCEEDED


def test_wishes_are_judged_in_the_order_they_were_asked_for():
    m = two_modes()
    m.inspect_s = 5.0
    first = m.ask("switch", "chat")
    m.step()
    m.inspect_s = 0.001
    second = m.ask("switch", "rag")
    m.run()
    assert m.operation(first).state is State.CANCELLED
    assert m.operation(second).state is State.SUCCEEDED
    assert m.running() == {"embed", "tiny"}


def test_force_does_not_wait_for_the_quiesce_that_it_passes():
    m = two_modes(quiesce_s=30.0)
    m.do("switch", "chat")
    m.do("switch", "blank")
    began = m.at
    assert m.do("switch", "rag", force=True).state is State.SUCCEEDED
    assert m.at - began < 10
    m.do("switch", "blank")
    began = m.at
    assert m.do("start", "tiny", force=True).state is State.SUCCEEDED
    assert m.at - began < 10


def test_a_unit_without_a_definition_is_planned_for_until_its_stop_job_is_over():
    """Its end may be seen before its job's: a step that vanished then would show as cancelled."""
    state = EngineState()
    track = state.track("orphan")
    track.unit = UnitFact(service="orphan", active=Active.INACTIVE, at=1.0, ended=Ended.JOB)
    track.command, track.stop_asked_at = Command.STOPPING, 0.5
    assert world.views(state, frozenset())["orphan"].stopping
    track.command = Command.IDLE
    assert world.views(state, frozenset()) == {}


# -- definitions that change under what runs ------------------------------------------------------------------


def redefined(m: Machine, service: str, **how) -> None:
    """A reload, as far as the engine sees one."""
    changed = replace(m.catalog.services[service], **how)
    m.catalog = replace(m.catalog, services={**m.catalog.services, service: changed})
    m.feed(ev.CatalogLoaded(at=m.at, catalog=m.catalog))


def runs(m: Machine) -> dict[str, str]:
    return {p.service: p.invocation for p in m.manager.processes()}


def test_a_reload_touches_nothing_that_runs_and_a_switch_restarts_what_is_stale():
    m = two_modes()
    redefined(m, "tiny", fingerprint="1")
    m.do("switch", "rag")
    before = runs(m)
    redefined(m, "tiny", fingerprint="2")
    m.run()
    assert (runs(m), m.problems(), m.standing()) == (before, {"definition_changed"}, "converged")
    op = m.do("switch", "rag")
    assert (op.done(Verb.STOP), op.done(Verb.START), op.kept) == (("tiny",), ("tiny",), ("embed",))
    assert runs(m)["embed"] == before["embed"]
    assert m.problems() == set()
    assert m.do("switch", "rag").kept == ("embed", "tiny")


def test_what_does_not_reach_the_process_makes_nothing_stale():
    m = two_modes()
    redefined(m, "tiny", fingerprint="1")
    m.do("switch", "rag")
    redefined(m, "tiny", name="T", priority=7, aliases=("t",), health=HealthSpec(interval_s=3.0))
    m.run()
    assert (m.problems(), m.do("switch", "rag").kept) == (set(), ("embed", "tiny"))


def test_a_stale_service_outside_the_mode_is_simply_stopped():
    m = two_modes()
    redefined(m, "tiny", fingerprint="1")
    m.do("switch", "rag")
    redefined(m, "tiny", fingerprint="2")
    op = m.do("switch", "blank")
    assert (op.done(Verb.STOP), op.done(Verb.START)) == (("embed", "tiny"), ())


def test_what_somebody_else_started_runs_the_definition_of_that_moment():
    m = two_modes()
    redefined(m, "tiny", fingerprint="1")
    m.do("switch", "rag")
    redefined(m, "tiny", fingerprint="2")
    m.crash("tiny", ended=Ended.JOB)
    m.begin_outside("tiny")
    m.run(30.0)
    assert m.problems() == set()
    redefined(m, "tiny", fingerprint="3")
    assert m.problems() == {"definition_changed"}


def test_what_depends_on_a_stale_service_is_restarted_with_it():
    specs = [service("db", 1000), service("app", 1000, depends_on=("db",)), service("other", 1000)]
    m = Machine(catalog(*specs, all=("app", "other"))).boot()
    redefined(m, "db", fingerprint="1")
    m.do("switch", "all")
    redefined(m, "db", fingerprint="2")
    m.log.clear()
    op = m.do("switch", "all")
    assert (m.log, op.kept) == (["stop app", "stop db", "start db", "start app"], ("other",))


def test_what_was_wrong_with_a_service_goes_with_its_definition():
    m = two_modes(drift="report")
    m.do("switch", "rag")
    m.crash("tiny")
    m.run(5.0)
    assert m.problems() == {"unit_failed"}
    services = {s: spec for s, spec in m.catalog.services.items() if s != "tiny"}
    modes = {
        id: replace(mode, services=tuple(s for s in mode.services if s != "tiny"))
        for id, mode in m.catalog.modes.items()
    }
    m.catalog = replace(m.catalog, services=services, modes=modes)
    m.feed(ev.CatalogLoaded(at=m.at, catalog=m.catalog))
    m.run(5.0)
    assert (m.problems(), m.standing()) == (set(), "converged")
    m.restart_daemon()
    m.run(5.0)
    assert (m.problems(), m.standing()) == (set(), "converged")


def test_a_new_definition_that_does_not_work_ends_in_a_stated_place_and_not_in_a_loop():
    """Nobody can go back to the old one: it is not there any more. What else ran goes on untouched."""
    m = two_modes()
    redefined(m, "tiny", fingerprint="1")
    m.do("switch", "rag")
    before = runs(m)
    redefined(m, "tiny", fingerprint="2", startup_timeout_s=5.0)
    m.behaviours["tiny"] = Behaviour(never_ready=True)
    op = m.do("switch", "rag")
    m.run(300.0)
    assert op.state in (State.ROLLED_BACK, State.FAILED)
    assert op.failure.reason.code == "health_timeout"
    assert runs(m)["embed"] == before["embed"]
    assert m.engine.state.track("tiny").gave_up
    assert (m.standing(), "gave_up" in m.problems()) == ("degraded", True)
    commands = len(m.log)
    m.run(3600.0)
    assert len(m.log) == commands
    del m.behaviours["tiny"]
    assert m.do("switch", "rag").state is State.SUCCEEDED


def test_a_run_is_asked_where_it_listens_also_by_the_next_daemon():
    m = two_modes()
    redefined(m, "tiny", fingerprint="1")
    m.do("switch", "rag")
    redefined(m, "tiny", fingerprint="2", port=9999)
    assert attention.probing(m.engine.state)["tiny"].address == ("127.0.0.1", 8004)
    m.restart_daemon()
    m.run(5.0)
    assert attention.probing(m.engine.state)["tiny"].address == ("127.0.0.1", 8004)
    assert (m.phase("tiny"), m.problems()) == ("ready", {"definition_changed"})
    m.do("switch", "rag")
    assert attention.probing(m.engine.state)["tiny"].address == ("127.0.0.1", 9999)
