"""What every implementation of the port `Units` must do; the same tests on systemd and on subprocesses."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpumodd.adapters import procfs
from gpumodd.core.facts import Active, Ended, UnitFact
from gpumodd.ports import JobResult, PortError, Units, UnitsChanged
from tests.support.sandbox import Sandbox
from tests.support.unit_backends import (
    ProcessBackend,
    SystemdBackend,
    eventually,
    files,
    python,
    sh,
    unit,
    watching,
)

Backend = ProcessBackend | SystemdBackend
FOREVER = sh("exec sleep 1000")
DEAF = sh("trap '' TERM; echo deaf; while :; do sleep 0.05; done")


@pytest.fixture(params=["process", pytest.param("systemd", marks=pytest.mark.real)])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    if request.param == "process":
        yield ProcessBackend(tmp_path / "process")
        return
    box: Sandbox = request.getfixturevalue("sandbox")
    for name in ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, box.env[name])
    yield SystemdBackend(box, tmp_path / "environment")


async def deaf_is_running(units: Units, service: str) -> None:
    """It ignores SIGTERM from its first line on."""

    async def said() -> bool:
        return "deaf" in await units.logs(service, lines=5, this_run=True)

    async with asyncio.timeout(15):
        while not await said():
            await asyncio.sleep(0.02)


# -- start ----------------------------------------------------------------------------------------------------------


async def test_the_machine_has_what_the_backend_needs(backend: Backend) -> None:
    async with backend.open() as units:
        assert units.backend == backend.name
        assert units.needs() == ""


async def test_a_start_is_done_when_the_program_runs(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert await units.start("a", {}) is JobResult.DONE
        fact = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        assert fact.main_pid is not None
        assert fact.invocation
        assert fact.ended is None
        assert fact.since is not None and before - 0.1 <= fact.since <= fact.at
        assert await units.pids("a") == (fact.main_pid,)


async def test_a_run_never_looks_ended_while_it_starts(backend: Backend) -> None:
    """Also not a second run, after a failure."""
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        for _ in range(2):
            await units.start("a", {})
            running = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
            await units.kill("a")
            await watch.until_gone("a")
            run = [fact for fact in watch.facts("a") if fact.invocation == running.invocation]
            assert run[0].active is Active.ACTIVATING
            assert [fact.gone for fact in run] == sorted(fact.gone for fact in run)


async def test_a_missing_program_fails_the_job_at_once(backend: Backend) -> None:
    async with backend.open(unit("a", "/nonexistent/program")) as units, watching(units) as watch:
        began = time.monotonic()
        assert await units.start("a", {}) is JobResult.FAILED
        assert time.monotonic() - began < 3
        fact = await watch.until_gone("a")
        assert (fact.active, fact.result, fact.exit_code, fact.ended) == (Active.FAILED, "exit-code", 203, Ended.EXIT)
        assert await units.start("a", {}) is JobResult.FAILED, "the second failure is a failure too"


@pytest.mark.parametrize(
    ("code", "active", "result"), [(0, Active.INACTIVE, "success"), (3, Active.FAILED, "exit-code")]
)
async def test_a_program_that_exits_at_once(backend: Backend, code: int, active: Active, result: str) -> None:
    async with backend.open(unit("a", *sh(f"exit {code}"))) as units, watching(units) as watch:
        # systemd itself fails the job now and then, if the exit arrives with the news of the exec
        assert await units.start("a", {}) in (JobResult.DONE, JobResult.FAILED)
        fact = await watch.until_gone("a")
        assert (fact.active, fact.result, fact.exit_code, fact.ended) == (active, result, code, Ended.EXIT)
        assert fact.main_pid is None


async def test_a_start_of_a_running_unit_changes_nothing(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        await units.start("a", {})
        before = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        assert await units.start("a", {"CUDA_VISIBLE_DEVICES": "1"}) is JobResult.DONE
        await units.refresh("a")
        after = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        assert (after.invocation, after.main_pid) == (before.invocation, before.main_pid)


async def test_two_starts_at_once_make_one_run(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        assert await asyncio.gather(units.start("a", {}), units.start("a", {})) == [JobResult.DONE] * 2
        await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        assert len({fact.invocation for fact in watch.facts("a") if fact.invocation}) == 1
        assert len(await units.pids("a")) == 1


@pytest.mark.parametrize("service", ["nobody", "../../etc/passwd", "a b", ""])
async def test_a_start_of_what_does_not_exist(backend: Backend, service: str) -> None:
    async with backend.open(unit("a", *FOREVER)) as units:
        with pytest.raises(PortError, match=r"^cannot ") as caught:
            await units.start(service, {})
        assert caught.value.code == "unit_missing"


# -- stop -----------------------------------------------------------------------------------------------------------


async def test_a_stop_is_done_when_nothing_is_left(backend: Backend) -> None:
    async with backend.open(unit("a", *sh("sleep 1000 & exec sleep 1000"))) as units, watching(units) as watch:
        await units.start("a", {})
        await eventually_pids(units, "a", 2)
        pids = await units.pids("a")
        assert await units.stop("a") is JobResult.DONE
        assert not [pid for pid in pids if procfs.alive(pid)]
        fact = await watch.until_gone("a")
        assert (fact.active, fact.ended) == (Active.INACTIVE, Ended.JOB)
        assert await units.pids("a") == ()


async def test_who_ignores_sigterm_is_killed_after_the_stop_timeout(backend: Backend) -> None:
    async with backend.open(unit("a", *DEAF, stop_timeout_s=0.5)) as units, watching(units) as watch:
        await units.start("a", {})
        await deaf_is_running(units, "a")
        began = time.monotonic()
        assert await units.stop("a") is JobResult.DONE
        assert 0.4 < time.monotonic() - began < 10
        fact = await watch.until_gone("a")
        assert (fact.active, fact.result, fact.ended) == (Active.FAILED, "timeout", Ended.JOB)


async def test_an_angry_exit_status_on_sigterm_is_still_a_stop(backend: Backend) -> None:
    script = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\nprint('deaf', flush=True)\nsignal.pause()"
    async with backend.open(unit("a", *python(script))) as units, watching(units) as watch:
        await units.start("a", {})
        await deaf_is_running(units, "a")
        assert await units.stop("a") is JobResult.DONE
        fact = await watch.until_gone("a")
        assert (fact.active, fact.exit_code, fact.ended) == (Active.FAILED, 7, Ended.JOB)


async def test_a_stop_of_what_does_not_run(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units:
        assert await units.stop("a") is JobResult.DONE
        assert await units.stop("nobody") is JobResult.DONE


async def test_a_stop_while_it_starts_wins(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        start = asyncio.create_task(units.start("a", {}))
        await watch.until("a", lambda fact: fact.active in (Active.ACTIVATING, Active.ACTIVE))
        assert await units.stop("a") is JobResult.DONE
        assert await start in (JobResult.CANCELED, JobResult.DONE)
        assert (await watch.until_gone("a")).ended is Ended.JOB
        assert await units.pids("a") == ()


async def test_a_start_cancels_a_stop_and_begins_a_new_run(backend: Backend) -> None:
    async with backend.open(unit("a", *DEAF, stop_timeout_s=0.7)) as units, watching(units) as watch:
        await units.start("a", {})
        await deaf_is_running(units, "a")
        stop = asyncio.create_task(units.stop("a"))
        leaving = await watch.until("a", lambda fact: fact.active is Active.DEACTIVATING)
        assert await units.start("a", {}) is JobResult.DONE
        assert await stop is JobResult.CANCELED
        again = await watch.until("a", lambda fact: fact.active is Active.ACTIVE and fact.ended is None)
        assert again.invocation != leaving.invocation
        first = [fact for fact in watch.facts("a") if fact.invocation == leaving.invocation]
        assert first[-1].gone and first[-1].ended is Ended.JOB


async def test_two_stops_at_once(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units:
        await units.start("a", {})
        assert await asyncio.gather(units.stop("a"), units.stop("a")) == [JobResult.DONE] * 2


async def test_a_caller_that_gives_up_waiting_changes_nothing(backend: Backend) -> None:
    async with backend.open(unit("a", *DEAF, stop_timeout_s=0.5)) as units, watching(units) as watch:
        await units.start("a", {})
        await deaf_is_running(units, "a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await units.stop("a")
        assert (await watch.until_gone("a")).ended is Ended.JOB


# -- ends of its own ------------------------------------------------------------------------------------------------


async def test_kill_ends_every_process(backend: Backend) -> None:
    async with backend.open(unit("a", *sh("setsid sleep 1000 & exec sleep 1000"))) as units, watching(units) as watch:
        await units.start("a", {})
        await eventually_pids(units, "a", 2)
        pids = await units.pids("a")
        await units.kill("a")
        fact = await watch.until_gone("a")
        assert (fact.active, fact.result, fact.exit_code, fact.ended) == (Active.FAILED, "signal", 9, Ended.EXIT)
        await eventually(lambda: not [pid for pid in pids if procfs.alive(pid)], "a process survives")
        await units.kill("a")
        await units.kill("nobody")


@pytest.mark.parametrize(("number", "active"), [(signal.SIGKILL, Active.FAILED), (signal.SIGTERM, Active.INACTIVE)])
async def test_a_strangers_signal_is_no_stop(backend: Backend, number: int, active: Active) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        await units.start("a", {})
        fact = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        assert fact.main_pid
        os.kill(fact.main_pid, number)
        fact = await watch.until_gone("a")
        assert (fact.active, fact.ended) == (active, Ended.EXIT)


async def test_who_forks_away_does_not_get_away(backend: Backend, tmp_path: Path) -> None:
    """The main process ends, and a daemon of its own session is left: the service is over, and so is the daemon."""
    pid_file = tmp_path / "pid"
    fork = f"setsid sh -c 'echo $$ >{pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 1000' &"
    script = f"{fork} while ! [ -e {pid_file} ]; do sleep 0.01; done"
    async with backend.open(unit("a", *sh(script))) as units, watching(units) as watch:
        await units.start("a", {})
        fact = await watch.until_gone("a")
        assert fact.ended is Ended.EXIT
        assert not procfs.alive(int(pid_file.read_text()))


async def test_reset_failed(backend: Backend) -> None:
    async with backend.open(unit("a", *sh("exit 3"))) as units, watching(units) as watch:
        await units.start("a", {})
        await watch.until("a", lambda fact: fact.active is Active.FAILED)
        await units.reset_failed("a")
        await watch.until("a", lambda fact: fact.active is Active.INACTIVE)
        await units.reset_failed("a")
        await units.reset_failed("nobody")


# -- what is seen ---------------------------------------------------------------------------------------------------


async def test_the_first_event_is_the_complete_list(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER), unit("b", *FOREVER)) as units:
        await units.start("b", {})
        async with units.events() as events:
            first = await anext(events)
        assert isinstance(first, UnitsChanged)
        assert first.complete
        assert {fact.service: fact.active for fact in first.facts} == {"a": Active.INACTIVE, "b": Active.ACTIVE}


async def test_every_listener_hears_everything(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as one, watching(units) as other:
        await units.start("a", {})
        await units.stop("a")
        assert await one.until_gone("a") == await other.until_gone("a")
        assert one.facts("a") == other.facts("a")


async def test_a_listener_that_falls_behind_gets_the_whole_list(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, units.events() as events:
        for _ in range(1030):
            await units.refresh("a")
        await units.start("a", {})
        await anext(events)
        async for event in events:
            if isinstance(event, UnitsChanged) and event.facts[0].active is Active.ACTIVE:
                break


async def test_refresh_reports_also_what_is_the_same(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        await units.start("a", {})
        before = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        await units.refresh("a")
        after = await watch.until("a", lambda fact: fact.at > before.at)
        assert (after.active, after.invocation) == (before.active, before.invocation)
        assert after.pids == await units.pids("a")


async def test_refresh_of_what_does_not_exist(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        await units.refresh("nobody")
        assert (await watch.until("nobody", lambda fact: True)).active is Active.INACTIVE
        assert await listed(units) == {"a": Active.INACTIVE}


async def test_pids_and_their_owner(backend: Backend) -> None:
    async with backend.open(unit("a", *sh("setsid sleep 1000 & exec sleep 1000")), unit("b", *FOREVER)) as units:
        await units.start("a", {})
        await units.start("b", {})
        await eventually_pids(units, "a", 2)
        for service in ("a", "b"):
            assert {units.owner(pid) for pid in await units.pids(service)} == {service}
        gone = (await units.pids("b"))[0]
        await units.stop("b")
        assert [units.owner(pid) for pid in (os.getpid(), 1, 0, -1, gone, 1 << 22)] == [None] * 6
        assert await units.pids("b") == ()
        assert await units.pids("nobody") == ()


LISTEN = """
import os, socket, sys, time
host, path = sys.argv[1:3]
if os.fork():  # a child listens: what matters is whose cgroup or family it is
    time.sleep(1000)
made = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                            dualstack_ipv6=host == "::")
with open(path + ".new", "w") as file:
    file.write(str(made.getsockname()[1]))
os.rename(path + ".new", path)
time.sleep(1000)
"""


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::", "::1"])
async def test_whose_listener_it_is(backend: Backend, tmp_path: Path, bound: str) -> None:
    path = tmp_path / "port"
    listener = unit("a", *python(LISTEN, bound, str(path)))
    async with backend.open(listener, unit("b", *FOREVER)) as units:
        await units.start("a", {})
        await units.start("b", {})
        port = int(await eventually(lambda: path.exists() and path.read_text(), "nobody listens"))
        host = "::1" if bound == "::1" else "127.0.0.1"
        assert await units.owns_listener("a", host, port) is True
        assert await units.owns_listener("a", bound, port) is True
        assert await units.owns_listener("b", host, port) is False
        assert await units.owns_listener("nobody", host, port) is False
        if bound == "127.0.0.1":
            assert await units.owns_listener("a", "localhost", port) is True
            assert await units.owns_listener("a", "::1", port) is None
        await units.stop("a")
        assert await units.owns_listener("a", host, port) is None


async def test_a_strangers_listener(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units:
        await units.start("a", {})
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            port = stranger.getsockname()[1]
            assert await units.owns_listener("a", "127.0.0.1", port) is False
            assert await units.owns_listener("a", "127.0.0.2", port) is None
        assert await units.owns_listener("a", "127.0.0.1", port) is None


# -- environment and output -----------------------------------------------------------------------------------------

STRANGE = {
    "NEWLINES": "one\ntwo\n\nfour\n",
    "QUOTES": "'single' \"double\" `back`",
    "PERCENT": "%h %% %n 100%",
    "DOLLAR": "$HOME ${HOME} $$ $(id)",
    "BACKSLASH": "\\ \\n \\\\ end\\",
    "SPACES": "  leading and trailing\t ",
    "HASH": "# no comment ; neither",
    "UNICODE": "Grüße ☃ 日本語",
    "EMPTY": "",
    "LONG": "x" * 20_000,
}
DUMP = """
import json, os, sys
with open(sys.argv[1] + ".new", "w") as file:
    json.dump({k.decode(): v.hex() for k, v in os.environb.items()}, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
"""


async def test_the_environment_arrives_byte_for_byte_and_the_units_own_wins(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    own = (*STRANGE.items(), ("BOTH", "unit"))
    async with backend.open(unit("a", *python(DUMP, str(path)), env=own)) as units:
        await units.start("a", {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2", "BOTH": "selection"})
        await eventually(path.exists, "nothing ran")
        seen = {name: bytes.fromhex(value).decode() for name, value in json.loads(path.read_text()).items()}
        assert {name: seen.get(name) for name in STRANGE} == STRANGE
        assert seen["BOTH"] == "unit"
        assert seen["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
        assert "PATH" in seen
        path.unlink()
        async with watching(units) as watch:
            await units.refresh("a")
            if not (await watch.until("a", lambda fact: True)).gone:
                await watch.until_gone("a")
        await units.start("a", {"CUDA_VISIBLE_DEVICES": "GPU-3"})
        await eventually(path.exists, "nothing ran")
        assert bytes.fromhex(json.loads(path.read_text())["CUDA_VISIBLE_DEVICES"]) == b"GPU-3", "no start is the last"


async def test_logs_have_the_last_words_of_who_dies_at_once(backend: Backend) -> None:
    async with backend.open(unit("a", *sh("for i in 1 2 3 4 5; do echo line $i; done; echo err >&2; exit 1"))) as units:
        for _ in range(2):
            async with watching(units) as watch:
                await units.start("a", {})
                await watch.until_gone("a")
            said = await units.logs("a", lines=100, this_run=True)
            assert said == [*(f"line {i}" for i in range(1, 6)), "err"]
        assert await units.logs("a", lines=3, this_run=True) == ["line 4", "line 5", "err"]
        assert len(await units.logs("a", lines=100)) >= 12
        assert await units.logs("a", lines=0) == []


async def test_logs_of_who_has_never_run(backend: Backend) -> None:
    async with backend.open(unit("never-ran", *FOREVER)) as units:
        assert await units.logs("never-ran", lines=10) == []
        assert await units.logs("never-ran", lines=10, this_run=True) == []


async def test_logs_survive_what_a_service_writes(backend: Backend) -> None:
    script = (
        "import sys\nw = sys.stdout.buffer.write\nw(b'x' * (10 << 20) + b'\\n')\nw(b'bad \\xff\\xfe utf-8\\n')\n"
        "w(b'\\x1b[31mred\\0nul\\n')\nw(b'the end\\n')"
    )
    async with backend.open(unit("a", *python(script))) as units, watching(units) as watch:
        await units.start("a", {})
        await watch.until_gone("a")
        lines = await units.logs("a", lines=1000, this_run=True)
        assert lines[-1] == "the end"
        assert any("red" in line for line in lines[-3:])  # journald breaks a line at the NUL
        assert "bad \ufffd\ufffd utf-8" in lines[-4:]
        assert max(map(len, lines)) < 1 << 16
        assert sum(map(len, lines)) < 10 << 20


async def test_output_without_an_end_of_line(backend: Backend) -> None:
    async with backend.open(unit("a", *sh("printf 'no newline'"))) as units, watching(units) as watch:
        await units.start("a", {})
        await watch.until_gone("a")
        assert await units.logs("a", lines=5, this_run=True) == ["no newline"]


# -- apply ----------------------------------------------------------------------------------------------------------


async def test_apply_changes_what_differs_and_nothing_else(backend: Backend) -> None:
    one, two = unit("a", *FOREVER), unit("b", *FOREVER)
    async with backend.open() as units:
        applied = await units.apply(files(one, two))
        assert (applied.written, applied.removed, applied.unchanged) == (("a", "b"), (), ())
        applied = await units.apply(files(one, two))
        assert (applied.written, applied.removed, applied.unchanged) == ((), (), ("a", "b"))
        applied = await units.apply(files(unit("b", *sh("true")), unit("c", *FOREVER)))
        assert (applied.written, applied.removed, applied.unchanged) == (("b", "c"), ("a",), ())
        with pytest.raises(PortError):
            await units.start("a", {})


async def test_apply_starts_and_stops_nothing(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER), unit("b", *FOREVER)) as units, watching(units) as watch:
        await units.start("a", {})
        running = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        await units.apply(files(unit("a", *sh("exec sleep 2000")), unit("b", *FOREVER)))
        await units.refresh("a")
        assert (await watch.until("a", lambda fact: fact.at > running.at)).main_pid == running.main_pid


async def test_a_unit_removed_while_it_runs_stays_until_it_ends(backend: Backend) -> None:
    async with backend.open(unit("a", *FOREVER), unit("b", *FOREVER)) as units:
        await units.start("a", {})
        pids = await units.pids("a")
        assert (await units.apply(files(unit("b", *FOREVER)))).removed == ("a",)
        assert await units.pids("a") == pids
        assert units.owner(pids[0]) == "a"
        assert await listed(units) == {"a": Active.ACTIVE, "b": Active.INACTIVE}
        assert await units.stop("a") is JobResult.DONE
        await units.apply({})
        assert await listed(units) == {}


async def test_a_changed_unit_takes_effect_with_the_next_start(backend: Backend) -> None:
    async with backend.open(unit("a", *sh("echo old"))) as units:
        for word in ("old", "new"):
            await units.apply(files(unit("a", *sh(f"echo {word}"))))
            async with watching(units) as watch:
                await units.start("a", {})
                await watch.until_gone("a")
            assert await units.logs("a", lines=5, this_run=True) == [word]


async def listed(units: Units) -> dict[str, Active]:
    async with units.events() as events:
        first = await anext(events)
    assert isinstance(first, UnitsChanged) and first.complete
    return {fact.service: fact.active for fact in first.facts}


async def eventually_pids(units: Units, service: str, count: int) -> tuple[int, ...]:
    async with asyncio.timeout(15):
        while len(pids := await units.pids(service)) != count:
            await asyncio.sleep(0.01)
    return pids


# -- the end of the daemon ------------------------------------------------------------------------------------------


async def test_closing_keeps_what_can_be_adopted_and_ends_the_rest(backend: Backend) -> None:
    first = backend.make()
    keep: UnitFact | None = None
    try:
        async with first as units:
            await units.apply(files(unit("a", *FOREVER)))
            await units.start("a", {})
            pids = await units.pids("a")
            async with watching(units) as watch:
                await units.refresh("a")
                keep = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        if backend.name == "process":
            assert not [pid for pid in pids if procfs.alive(pid)]
            return
        async with backend.make() as units, units.events() as events:
            event = await anext(events)
            assert isinstance(event, UnitsChanged)
            (fact,) = event.facts
            assert (fact.invocation, fact.main_pid, fact.ended) == (keep.invocation, keep.main_pid, None)
            assert fact.since == pytest.approx(keep.since, abs=0.5)
            assert await units.pids("a") == pids
            assert units.owner(pids[0]) == "a"
            assert await units.stop("a") is JobResult.DONE
    finally:
        if isinstance(backend, SystemdBackend):
            backend.clear()
