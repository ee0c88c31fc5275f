"""The process adapter beyond the contract: nothing outlives the daemon, nothing fills the disk, nobody gets away."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gpumodd.adapters import procfs
from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.process import SeenProcesses
from gpumodd.adapters.process.log import MARK, LogFile
from gpumodd.core.facts import Active, Ended
from gpumodd.ports import JobResult, PortError, UnitsChanged
from tests.support.sandbox import REPOSITORY
from tests.support.unit_backends import ProcessBackend, eventually, files, python, sh, unit, watching

FOREVER = sh("exec sleep 1000")
FAMILY = "setsid sleep 1000 & sh -c 'trap \"\" TERM; while :; do sleep 0.05; done' & exec sleep 1000"


@pytest.fixture
def backend(tmp_path: Path) -> ProcessBackend:
    return ProcessBackend(tmp_path / "processes")


def shim_of(pid: int) -> int:
    found = procfs.parent(pid)
    assert found is not None
    return found


def gone(pids: list[int]) -> bool:
    return not any(map(procfs.alive, pids))


# -- the daemon's end -----------------------------------------------------------------------------------------------

DAEMON = """
import asyncio, os, sys, time
from pathlib import Path
from gpumodd.adapters import procfs
from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.process import ProcessUnits
from gpumodd.drivers.api import UnitFile

async def main(folder, script, stop_timeout_s):
    async with ProcessUnits(SystemClock(), folder=Path(folder)) as units:
        argv = ("/bin/sh", "-c", script)
        file = UnitFile(service="a", description="a", argv=argv, stop_timeout_s=float(stop_timeout_s))
        await units.apply({"a": file})
        await units.start("a", {})
        while len(pids := await units.pids("a")) < 4:
            await asyncio.sleep(0.01)
        print(*pids, flush=True)
        await asyncio.sleep(1000)

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def daemon(folder: Path, stop_timeout_s: float) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A daemon with one service: a main process, one in a session of its own, and one that ignores SIGTERM."""
    argv = [sys.executable, "-c", DAEMON, str(folder), FAMILY, str(stop_timeout_s)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        pids: list[int] = []
        try:
            assert process.stdout
            pids = [int(word) for word in process.stdout.readline().split()]
            assert len(pids) == 4
            yield process, pids
        finally:
            process.kill()
            for pid in pids:
                if procfs.alive(pid):
                    os.kill(pid, signal.SIGKILL)


async def test_services_end_with_a_daemon_that_is_killed(backend: ProcessBackend) -> None:
    with daemon(backend.folder, stop_timeout_s=0.3) as (process, pids):
        process.kill()
        await eventually(lambda: gone(pids), "a service outlives its daemon")
        await eventually(lambda: not list(backend.folder.glob("*.run")), "the record is left")


async def test_the_next_daemon_does_not_wait_for_the_last_ones_stop_timeout(backend: ProcessBackend) -> None:
    with daemon(backend.folder, stop_timeout_s=600) as (process, pids):
        process.kill()
        process.wait()
        await eventually(
            lambda: len([pid for pid in pids if procfs.alive(pid)]) <= 2, "SIGTERM has ended the polite ones"
        )
        assert not gone(pids), "one ignores it"
        async with backend.open(unit("a", *FOREVER)) as units:
            assert gone(pids)
            assert await units.pids("a") == ()


async def test_what_a_killed_daemon_and_a_killed_shim_leave_is_ended_at_the_next_start(backend: ProcessBackend) -> None:
    with daemon(backend.folder, stop_timeout_s=600) as (process, pids):
        record = json.loads((backend.folder / "a.run").read_text())
        os.kill(record["shim"], signal.SIGSTOP)
        process.kill()
        process.wait()
        os.kill(record["shim"], signal.SIGKILL)
        main = next(pid for pid in pids if str(pid) in record["pids"])
        await eventually(lambda: gone([main]), "the main process outlives its shim")
        left = [pid for pid in pids if procfs.alive(pid) and os.getsid(pid) == main]
        assert left
        async with backend.open():
            assert gone(left)
        assert not list(backend.folder.glob("*.run"))


async def test_an_orderly_end_stops_all_services_together(backend: ProcessBackend) -> None:
    deaf = sh("trap '' TERM; echo deaf; while :; do sleep 0.05; done")
    names = "abcd"
    began = 0.0
    async with backend.open(*(unit(name, *deaf, stop_timeout_s=1) for name in names)) as units:
        for name in names:
            assert await units.start(name, {}) is JobResult.DONE
            async with asyncio.timeout(10):
                while "deaf" not in await units.logs(name, lines=5):
                    await asyncio.sleep(0.01)
        pids = [pid for name in names for pid in await units.pids(name)]
        began = asyncio.get_running_loop().time()
    assert 0.9 < asyncio.get_running_loop().time() - began < 3.5
    assert gone(pids)


async def test_services_end_when_the_daemon_is_cancelled(backend: ProcessBackend) -> None:
    started: asyncio.Future[tuple[int, ...]] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with backend.open(unit("a", *FOREVER)) as units:
            await units.start("a", {})
            started.set_result(await units.pids("a"))
            await asyncio.sleep(1000)

    task = asyncio.create_task(run())
    pids = list(await started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pids)


async def test_a_start_that_waits_while_the_daemon_ends_never_starts(backend: ProcessBackend) -> None:
    late = python(
        "import signal, sys, time\nsignal.signal(15, lambda *_: (time.sleep(0.5), sys.exit(0)))\nsignal.pause()"
    )
    async with backend.open(unit("a", *late)) as units, watching(units) as watch:
        await units.start("a", {})
        stop = asyncio.create_task(units.stop("a"))
        await watch.until("a", lambda fact: fact.active is Active.DEACTIVATING)
        start = asyncio.create_task(units.start("a", {}))
        assert await stop is JobResult.CANCELED
    assert await start is JobResult.CANCELED


# -- records of the past --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"boot_id": "another boot"},
        {"pids": {"PID": 1}},
        {"pids": {}},
        {"shim": None},
        {"pids": {"1": 0, "PID": 1}, "shim": 1},
    ],
)
async def test_a_pid_alone_is_no_proof(backend: ProcessBackend, change: dict) -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        try:
            pid = str(stranger.pid)
            change = json.loads(json.dumps(change).replace("PID", pid))
            backend.folder.mkdir()
            record = {"boot_id": procfs.boot_id(), "pids": {pid: 1}, "shim": 1 << 21, **change}
            (backend.folder / "a.run").write_text(json.dumps(record))
            async with backend.open():
                assert procfs.alive(stranger.pid)
            assert not (backend.folder / "a.run").exists()
        finally:
            stranger.kill()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"boot_id": 3}', '{"pids": 7}', '{"pids": {"x": "y"}}', "\0"])
async def test_a_damaged_record_is_forgotten(backend: ProcessBackend, text: str) -> None:
    backend.folder.mkdir()
    if text.startswith('{"pids'):
        text = text.replace("{", f'{{"boot_id": "{procfs.boot_id()}", ', 1)
    (backend.folder / "a.run").write_text(text)
    async with backend.open(unit("a", *FOREVER)) as units:
        assert await units.start("a", {}) is JobResult.DONE


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PortError, match=r"^cannot make "):
        async with ProcessBackend(tmp_path / "file/below").open():
            pass


# -- the shim -------------------------------------------------------------------------------------------------------


async def test_a_shim_that_is_killed_takes_its_service_along(backend: ProcessBackend) -> None:
    async with backend.open(unit("a", *sh("sleep 1000 & exec sleep 1000"))) as units, watching(units) as watch:
        await units.start("a", {})
        async with asyncio.timeout(10):
            while len(pids := await units.pids("a")) < 2:
                await asyncio.sleep(0.01)
        main = (await watch.until("a", lambda fact: fact.main_pid is not None)).main_pid
        os.kill(shim_of(main), signal.SIGKILL)
        fact = await watch.until_gone("a")
        assert (fact.active, fact.result, fact.exit_code, fact.ended) == (Active.FAILED, "signal", 9, Ended.EXIT)
        assert gone(list(pids))
        assert await units.start("a", {}) is JobResult.DONE


async def test_a_fork_server_that_is_killed_takes_nothing_along_and_there_is_a_new_one(backend: ProcessBackend) -> None:
    async with backend.open(unit("a", *FOREVER), unit("b", *FOREVER)) as units:
        await units.start("a", {})
        (pid,) = await units.pids("a")
        server = shim_of(shim_of(pid))
        assert server != os.getpid()
        os.kill(server, signal.SIGKILL)
        await eventually(lambda: gone([server]), "the fork server has ended")
        assert await units.start("b", {}) is JobResult.DONE
        assert await units.pids("a") == (pid,)
        (other,) = await units.pids("b")
        again = shim_of(shim_of(other))
        assert await units.stop("a") is JobResult.DONE
        assert gone([pid])
    assert gone([again, other]), "it has ended with the daemon"


async def test_signals_meant_for_the_daemons_terminal_do_not_reach_services(backend: ProcessBackend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units:
        await units.start("a", {})
        (pid,) = await units.pids("a")
        shim = shim_of(pid)
        assert os.getpgid(0) not in (os.getpgid(pid), os.getpgid(shim))
        assert os.getsid(pid) == pid
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(shim, number)
        await units.refresh("a")
        assert await units.pids("a") == (pid,)


async def test_a_script_that_signals_its_own_group_does_not_take_the_shim_along(backend: ProcessBackend) -> None:
    async with backend.open(unit("a", *sh("sleep 1000 & kill -9 0"))) as units, watching(units) as watch:
        await units.start("a", {})
        fact = await watch.until_gone("a")
        assert (fact.result, fact.exit_code) == ("signal", 9)


async def test_no_signal_stays_ignored_in_a_service(backend: ProcessBackend) -> None:
    async with backend.open(unit("a", "/bin/cat", "/proc/self/status")) as units, watching(units) as watch:
        await units.start("a", {})
        await watch.until_gone("a")
        status = dict(line.split(":\t") for line in await units.logs("a", lines=100) if ":\t" in line)
        ignored = int(status["SigIgn"], 16)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            assert not ignored & 1 << (number - 1), number
        assert int(status["SigBlk"], 16) == 0


async def test_a_service_inherits_no_descriptor(backend: ProcessBackend) -> None:
    with Path(os.devnull).open() as leak:
        os.set_inheritable(leak.fileno(), True)
        script = python("import os; print(*sorted(os.listdir('/proc/self/fd')))")
        async with backend.open(unit("a", *script)) as units, watching(units) as watch:
            await units.start("a", {})
            await watch.until_gone("a")
            assert await units.logs("a", lines=1) == ["0 1 2 3"]  # 3 is the listing's own


async def test_a_fork_bomb_ends(backend: ProcessBackend) -> None:
    bomb = "while :; do setsid sh -c 'trap \"\" TERM; sleep 1000' & sleep 0.01; done"
    async with backend.open(unit("a", *sh(bomb), stop_timeout_s=0.2)) as units:
        await units.start("a", {})
        async with asyncio.timeout(20):
            while len(await units.pids("a")) < 30:
                await asyncio.sleep(0.01)
        shim = shim_of(next(iter(await units.pids("a"))))
        assert await units.stop("a") is JobResult.DONE
        assert procfs.descendants(shim) == []


async def test_a_stopped_process_is_stopped_for_good(backend: ProcessBackend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units:
        await units.start("a", {})
        (pid,) = await units.pids("a")
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(4):
            assert await units.stop("a") is JobResult.DONE


# -- environment and output -----------------------------------------------------------------------------------------


async def test_what_is_the_daemons_alone_is_not_passed_on(backend: ProcessBackend) -> None:
    own = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "GPUMODD_X")
    mine = {"PATH": os.environ["PATH"], "HOME": "/", "KEEP": "me", **dict.fromkeys(own, "1")}
    async with backend.open(unit("a", "env"), environ=mine) as units, watching(units) as watch:
        await units.start("a", {"CUDA_VISIBLE_DEVICES": "0"})
        await watch.until_gone("a")
        assert sorted(line.split("=")[0] for line in await units.logs("a", lines=100)) == [
            "CUDA_VISIBLE_DEVICES", "HOME", "KEEP", "PATH",
        ]  # fmt: skip


async def test_bytes_that_are_no_utf8_are_passed_on(backend: ProcessBackend) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    script = python("import os, sys; print(os.environb[b'ODD'].hex(), os.fsencode(sys.argv[1]).hex())", odd)
    async with backend.open(unit("a", *script, env=(("ODD", odd),))) as units, watching(units) as watch:
        await units.start("a", {})
        await watch.until_gone("a")
        assert await units.logs("a", lines=1) == ["fffe fffe"]


async def test_a_very_large_environment(backend: ProcessBackend) -> None:
    env = tuple((f"V{i}", "x" * 100_000) for i in range(8))
    async with backend.open(unit("a", *sh("echo ${#V7}"), env=env)) as units, watching(units) as watch:
        assert await units.start("a", {}) is JobResult.DONE
        await watch.until_gone("a")
        assert await units.logs("a", lines=1) == ["100000"]
        await units.apply(files(unit("a", *sh("true"), env=(("TOO_LONG", "x" * (1 << 20)),))))
        assert await units.start("a", {}) is JobResult.FAILED
        assert "Argument list too long" in (await units.logs("a", lines=1))[0]


@pytest.mark.parametrize(("argv", "env"), [(("sh", "\0"), ()), (("sh",), (("A", "\0"),)), (("sh",), (("\0", "A"),))])
async def test_a_nul_byte_is_refused(backend: ProcessBackend, argv: tuple[str, ...], env: tuple) -> None:
    async with backend.open(unit("a", *argv, env=env)) as units:
        with pytest.raises(PortError, match=r"^cannot start 'a': .*NUL"):
            await units.start("a", {})
        await units.apply(files(unit("a", *FOREVER)))
        assert await units.start("a", {}) is JobResult.DONE


async def test_a_missing_working_directory(backend: ProcessBackend, tmp_path: Path) -> None:
    lost = replace(unit("a", *FOREVER), working_directory=str(tmp_path / "gone"))
    async with backend.open(lost) as units:
        assert await units.start("a", {}) is JobResult.FAILED
        assert "No such file" in (await units.logs("a", lines=1))[0]


async def test_a_missing_home_is_no_reason_not_to_run(backend: ProcessBackend, tmp_path: Path) -> None:
    """Nobody asked for that directory."""
    for home, expected in ((tmp_path, str(tmp_path)), (tmp_path / "gone", "/")):
        environ = {"HOME": str(home)}
        async with backend.open(unit("a", *sh("pwd")), environ=environ) as units, watching(units) as watch:
            await units.start("a", {})
            await watch.until_gone("a")
            assert await units.logs("a", lines=1) == [expected]


async def test_a_chatty_service_neither_blocks_nor_fills_the_disk(backend: ProcessBackend) -> None:
    script = "import sys\nfor i in range(400_000): sys.stdout.write('line %d ' % i + 'x' * 90 + '\\n')"
    async with backend.open(unit("a", *python(script)), log_kib=256) as units, watching(units) as watch:
        await units.start("a", {})
        fact = await watch.until_gone("a")
        assert fact.result == "success", "it was never blocked"
        used = sum(path.stat().st_size for path in backend.folder.iterdir())
        assert 128 << 10 <= used <= (256 << 10) + (128 << 10)
        lines = await units.logs("a", lines=500, this_run=True)
        assert [int(line.split()[1]) for line in lines] == list(range(399_500, 400_000))


async def test_a_log_that_cannot_be_written_loses_output_only(backend: ProcessBackend, tmp_path: Path) -> None:
    """As on a full disk: here the full half cannot be moved away."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    chatty = unit("a", *sh("read go <$GO; for i in $(seq 100000); do echo $i; done"), env=(("GO", str(fifo)),))
    async with backend.open(chatty, log_kib=16) as units, watching(units) as watch:
        await units.start("a", {})
        (backend.folder / "a.log.1").mkdir()
        await asyncio.to_thread(fifo.write_text, "go\n")
        assert (await watch.until_gone("a")).result == "success"


def test_a_mark_begins_a_run(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", 1000)
    assert log.tail(5, this_run=True) == []
    (tmp_path / "a.log.1").write_bytes(MARK + b"1\nold\n")
    (tmp_path / "a.log").write_bytes(b"older\n" + MARK + b"2\nnew\n\n\xffcut")
    assert log.tail(10, this_run=False) == ["old", "older", "new", "", "\ufffdcut"]
    assert log.tail(10, this_run=True) == ["new", "", "\ufffdcut"]
    assert log.tail(1, this_run=True) == ["\ufffdcut"]
    (tmp_path / "a.log").write_bytes(b"")
    assert log.tail(10, this_run=True) == ["old"]


# -- looked at by somebody else -------------------------------------------------------------------------------------


async def test_who_only_looks_sees_what_runs_and_can_do_nothing(backend: ProcessBackend) -> None:
    with daemon(backend.folder, stop_timeout_s=0.3) as (_, pids):
        records = {path: path.read_bytes() for path in backend.folder.iterdir()}
        async with SeenProcesses(SystemClock(), folder=backend.folder) as seen, seen.events() as changes:
            first = await anext(changes)
            assert isinstance(first, UnitsChanged)
            assert first.complete
            assert [(fact.service, fact.active) for fact in first.facts] == [("a", Active.ACTIVE)]
            assert set(pids) <= set(await seen.pids("a"))
            assert {seen.owner(pid) for pid in pids} == {"a"}
            assert seen.owner(os.getpid()) is None
            for command in (seen.start("a", {}), seen.stop("a"), seen.kill("a"), seen.apply({})):
                with pytest.raises(PortError, match="can only be looked at"):
                    await command
        assert not gone(pids)
        assert {path: path.read_bytes() for path in backend.folder.iterdir()} == records


async def test_without_records_nothing_runs(tmp_path: Path) -> None:
    async with SeenProcesses(SystemClock(), folder=tmp_path / "none") as seen, seen.events() as changes:
        first = await anext(changes)
        assert isinstance(first, UnitsChanged)
        assert (first.complete, first.facts) == (True, ())
    assert not (tmp_path / "none").exists()
