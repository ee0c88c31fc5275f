"""A service explains itself, phase by phase: why, what it rests on, what would change it, what happened."""

import pytest

from gpumodd.core.explain import Explanation, explain
from gpumodd.core.facts import Ended
from gpumodd.core.specs import HealthSpec, Policy
from tests.core.machine import Behaviour, Machine, catalog, service


def machine(**behaviours) -> Machine:
    health = HealthSpec(failures=2, recoveries=2)
    specs = (
        service("db", 1000, health=health, startup_timeout_s=30.0, stop_timeout_s=10.0),
        service("api", 1000, depends_on=("db",)),
        service("big", 20000),
    )
    modes = {"web": ("api", "db"), "data": ("db",), "heavy": ("big",), "all": ("api", "big", "db")}
    policy = Policy(release_timeout_s=60.0)
    return Machine(catalog(*specs, policy=policy, **modes), behaviours=behaviours).boot()


def told(m: Machine, service: str) -> Explanation:
    return explain(m.engine.state, service, m.at)


def story(m: Machine, service: str) -> list[str]:
    return [f"{x.text} [{x.cause}]" if x.cause else x.text for x in told(m, service).story]


def until(m: Machine, service: str, phase: str) -> Explanation:
    for _ in range(2000):
        if m.phase(service) == phase:
            return told(m, service)
        assert m.step(), "nothing more happens"
    raise AssertionError(f"{service} is never {phase}, but {m.phase(service)}")


def test_stopped_and_nobody_asks():
    found = told(machine(), "db")
    assert found.why == "no process of it runs"
    assert found.because == ("nothing asks for it", "it takes 1000 MiB (declared); 24052 MiB are left on device 0")
    assert found.would_change == (
        "`gpumodctl service start db` starts it",
        "`gpumodctl switch all` starts it with its mode",
        "`gpumodctl switch data` starts it with its mode",
        "`gpumodctl switch web` starts it with its mode",
    )


def test_stopped_and_waited_for():
    m = machine(db=Behaviour(load_s=5.0))
    m.ask("switch", "web", actor="alice")
    until(m, "db", "loading")
    found = told(m, "api")
    assert found.because[0] == "operation 1: switch web, asked by alice: will start it once db is ready"
    assert "it depends on db, which is loading" in found.because
    assert found.would_change == (
        "`gpumodctl service explain db` tells what db waits for",
        "`gpumodctl operation cancel 1` goes back to what was wanted before it",
    )
    assert story(m, "api")[0] == (
        "db: asked to start on device 0, 1000 MiB [operation 1: switch web, asked by alice]"
    ), "while it waits, what happens to what it needs is its story"


def test_starting_and_loading():
    m = machine(db=Behaviour(load_s=5.0))
    m.ask("switch", "data")
    assert until(m, "db", "starting").why.startswith("its unit is on the way up, asked to start 0.0 s ago")
    until(m, "db", "loading")
    m.run(2.0)
    found = told(m, "db")
    assert "and its health does not answer well yet; its last answer: loading" in found.why
    assert "it holds 250 MiB on device 0 (1000 declared)" in found.because
    assert found.would_change[0] == "a good answer makes it ready; if none comes, it counts as failed in 28 s"


def test_ready_says_who_wants_it_and_how_it_came_about():
    m = machine()
    m.do("switch", "web", actor="alice")
    m.run(60.0)
    found = told(m, "db")
    assert found.why.startswith("its process (pid ")
    assert "runs and answers, ready since 6" in found.why
    assert found.because[0] == "it is wanted by mode web, api, which depends on it"
    assert "a switch to a mode without it ends it" in found.would_change
    assert story(m, "db")[0] == "asked to start on device 0, 1000 MiB [operation 1: switch web, asked by alice]"
    assert story(m, "db")[-1].startswith("loading → ready after 1.")


def test_degraded():
    m = machine()
    m.do("switch", "data")
    m.manager.alive("db").sick = True
    m.touch()
    found = until(m, "db", "degraded")
    assert "its last answer: unhealthy, 2 bad answers in a row" in found.why
    assert "2 good answers in a row make it ready again" in found.would_change
    assert "`gpumodctl service restart db` starts it anew" in found.would_change
    assert "2 bad answers in a row, the last: unhealthy" in story(m, "db")


def test_stopping_and_releasing():
    m = machine(big=Behaviour(term_s=4.0, linger_s=3.0))
    m.do("switch", "heavy")
    m.ask("switch", "data", actor="bob")
    until(m, "big", "stopping")
    m.run(1.0)
    found = told(m, "big")
    assert found.why == "it was asked to end 1.0 s ago and has not ended yet"
    assert found.because[0] == "operation 2: switch data, asked by bob: is stopping it"
    assert any(change.endswith("s it is killed") for change in found.would_change)
    found = until(m, "big", "releasing")
    assert found.why.startswith("its process is gone, but its memory is not back: 20000 MiB on device 0")
    assert found.would_change[0] == "once its memory is back it is stopped; in 60 s it counts as not released"
    until(m, "big", "stopped")
    lines = story(m, "big")
    assert "asked to stop [operation 2: switch data, asked by bob]" in lines
    assert "ended as asked after 4.0 s" in lines
    assert any(line.startswith("its memory on device 0 is back, 3.") for line in lines)


def test_backoff_tells_the_crash_and_when_it_is_tried_again():
    m = machine()
    m.do("switch", "data")
    m.crash("db", code=137)
    found = until(m, "db", "backoff")
    assert found.why.startswith("it is down, and it is tried again in ")
    assert found.because[0] == "db ended by itself: exit-code, exit status 137"
    assert "after 6 failures in a row it is left alone" in found.would_change
    until(m, "db", "ready")
    cause = "asked to start on device 0, 1000 MiB [operation 2: heal db, it was wanted and did not run]"
    assert cause in story(m, "db")


def test_given_up():
    m = machine()
    m.do("switch", "data")
    m.behaviours["db"] = Behaviour(exit_after_s=0.1)
    m.crash("db")
    m.run(600.0)
    found = told(m, "db")
    assert found.why == "it went wrong, and is left alone"
    assert found.because[0].startswith("db ended by itself")
    assert "`gpumodctl service logs db` shows what it said last" in found.would_change
    assert any(line.endswith("[failure 6 in a row: it is left alone from now on]") for line in story(m, "db"))


def test_what_failed_an_operation_is_remembered_by_it():
    m = machine(db=Behaviour(exit_after_s=0.1, load_s=1.0))
    m.do("start", "db", actor="alice")
    found = told(m, "db")
    assert found.why == "it went wrong"
    assert found.because[0] == "db ended by itself: exit-code, exit status 3 (operation 1: start db)"


def test_stopped_by_a_person_without_us():
    m = machine()
    m.do("switch", "data")
    m.crash("db", ended=Ended.JOB)
    found = until(m, "db", "stopped")
    assert found.because[0] == "it was stopped without gpumodd, and that is respected"
    cause = "a stop job that is not gpumodd's: systemctl, or another program"
    assert f"stopped outside gpumodd [{cause}]" in story(m, "db")


def test_stopped_by_a_person_through_us():
    m = machine()
    m.do("switch", "web")
    m.do("stop", "db", actor="alice")
    assert "a person stopped it" in told(m, "db").because
    assert "asked to stop [operation 2: stop db, asked by alice]" in story(m, "db")


def test_a_refusal_is_part_of_the_story():
    m = machine()
    m.do("switch", "web")
    m.foreign["GPU-0"] = 10000
    m.touch()
    m.run(1.0)
    m.refused("switch", "heavy", actor="alice")
    (line,) = story(m, "big")
    assert line.startswith("refused: cannot start big on Sim 0 (device 0): it needs 20000 MiB and")
    assert line.endswith("[switch heavy, asked by alice]")


def test_what_stands_in_the_way_is_told_with_its_numbers_once():
    m = machine()
    m.do("switch", "heavy")
    m.crash("big")
    m.run(0.5)
    m.foreign["GPU-0"] = 15000
    m.touch()
    m.run(120.0)
    found = told(m, "big")
    assert any("it needs 20000 MiB and 9052 of 24564 MiB can be had" in line for line in found.because)
    assert any("`gpumodctl status` names who holds the memory" in line for line in found.would_change)
    assert sum(line.startswith("not started again yet") for line in story(m, "big")) <= 1


def test_unknown():
    m = machine()
    m.do("switch", "data")
    m.disconnect()
    m.run(1.0)
    assert told(m, "db").why.startswith("the service manager cannot say: ")


def test_the_way_back_is_a_cause_of_its_own():
    m = machine(big=Behaviour(exit_after_s=0.5, load_s=5.0))
    m.do("switch", "data")
    m.do("switch", "heavy", actor="alice")
    starts = [line for line in story(m, "db") if line.startswith("asked to start")]
    assert starts[-1].endswith(
        "[operation 2: switch heavy, on its way back: big ended by itself: exit-code, exit status 3]"
    )


def test_after_a_restart_of_the_daemon_operations_tell_what_was():
    m = machine()
    m.do("switch", "data", actor="alice")
    m.run(5.0)
    m.restart_daemon()
    m.run(1.0)
    lines = story(m, "db")
    assert "wait ready: done [operation 1: switch data, asked by alice]" in lines
    assert "found running" in lines
    assert [x.at for x in told(m, "db").story] == sorted(x.at for x in told(m, "db").story)


def test_what_nothing_configures_is_explained_too():
    m = machine()
    m.do("switch", "data")
    from dataclasses import replace

    from gpumodd.core import events as ev

    rest = {s: spec for s, spec in m.catalog.services.items() if s not in ("db", "api")}
    m.feed(ev.CatalogLoaded(at=m.at, catalog=replace(m.catalog, services=rest, modes={})))
    found = told(m, "db")
    assert "nothing asks for it" in found.because
    assert "its definition is gone" in story(m, "db")


@pytest.mark.parametrize("service", ["db", "api", "big", "nobody"])
def test_nothing_is_said_twice_and_nothing_is_empty(service):
    m = machine()
    m.do("switch", "web")
    found = told(m, service)
    for lines in (found.because, found.would_change):
        assert len(set(lines)) == len(lines)
        assert all(lines)


def test_what_was_let_through_is_told_as_long_as_it_runs():
    m = machine()
    m.foreign["GPU-0"] = 15000
    m.touch()
    m.run(1.0)
    m.do("switch", "heavy", force=True)
    (told_so,) = [
        line for line in told(m, "big").because if line.startswith("it was started in spite of this (forced)")
    ]
    assert "it needs 20000 MiB and 9052 of 24564 MiB can be had" in told_so
    m.do("switch", "blank")
    assert not [line for line in told(m, "big").because if "in spite" in line]


def test_memory_that_is_back_is_told_once():
    m = machine()
    m.do("switch", "heavy")
    m.do("switch", "blank")
    assert sum(line.startswith("its memory on device 0 is back") for line in story(m, "big")) == 1


def test_what_it_needs_matters_to_who_is_well_too():
    m = machine()
    m.do("switch", "web")
    assert not [line for line in story(m, "api") if line.startswith("db: ")]
    m.crash("db", code=9)
    until(m, "db", "backoff")
    assert m.phase("api") == "ready"
    found = told(m, "api")
    assert "it depends on db, which is backoff: db ended by itself: exit-code, exit status 9" in found.because
    assert "db: db ended by itself: exit-code, exit status 9" in story(m, "api")
    assert "`gpumodctl service explain db` tells what db waits for" in found.would_change
