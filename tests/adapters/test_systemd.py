"""The systemd adapter beyond the contract: what others do to our units, and what happens to the bus."""

import asyncio
import gc
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.systemd import Pace, SystemdUnits
from gpumodd.adapters.systemd.bus import SYSTEMD_PATH, Connection
from gpumodd.config.render import Renderer
from gpumodd.core.facts import Active, Ended
from gpumodd.ports import JobResult, PortError, UnitsChanged, UnitsLost
from tests.support.sandbox import REPOSITORY, Sandbox
from tests.support.unit_backends import SystemdBackend, Watch, files, python, sh, unit, watching

pytestmark = pytest.mark.real
FOREVER = sh("exec sleep 1000")
LEAVES_LATE = python(
    "import signal, sys, time\nsignal.signal(15, lambda *_: (time.sleep(0.5), sys.exit(0)))\n"
    "print('ready', flush=True)\nwhile True: signal.pause()"
)


def point_to(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, box.env[name])


@pytest.fixture
def backend(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SystemdBackend:
    point_to(sandbox, monkeypatch)
    return SystemdBackend(sandbox, tmp_path / "environment")


async def running(units: SystemdUnits, watch: Watch, service: str = "a") -> int:
    assert await units.start(service, {}) is JobResult.DONE
    fact = await watch.until(service, lambda fact: fact.active is Active.ACTIVE)
    assert fact.main_pid
    return fact.main_pid


# -- what others do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "active", "ended"),
    [
        (("stop",), Active.INACTIVE, Ended.JOB),
        (("stop", "--no-block"), Active.INACTIVE, Ended.JOB),
        (("kill", "--signal=TERM"), Active.INACTIVE, Ended.EXIT),
        (("kill", "--signal=KILL"), Active.FAILED, Ended.EXIT),
    ],
)
async def test_who_ended_it(backend: SystemdBackend, command: tuple[str, ...], active: Active, ended: Ended) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        await running(units, watch)
        await asyncio.to_thread(backend.box.systemctl, *command, "gpumod-a.service")
        fact = await watch.until_gone("a")
        assert (fact.active, fact.ended) == (active, ended)


async def test_somebody_restarts_it(backend: SystemdBackend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        before = await running(units, watch)
        first = watch.facts("a")[-1]
        await asyncio.to_thread(backend.box.systemctl, "restart", "gpumod-a.service")
        ended = await watch.until_gone("a")
        assert (ended.invocation, ended.ended) == (first.invocation, Ended.JOB)
        again = await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        assert again.invocation != first.invocation and again.main_pid != before and again.ended is None
        assert not [fact for fact in watch.facts("a") if fact.invocation == again.invocation and fact.gone]


async def test_somebody_starts_it(backend: SystemdBackend) -> None:
    """With the devices it was last given."""
    script = python("import os, time\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)\ntime.sleep(1000)")
    async with backend.open(unit("a", *sh("exec sleep 1000"))) as units:
        await units.start("a", {"CUDA_VISIBLE_DEVICES": "GPU-7"})
        await units.stop("a")
    async with backend.open(unit("a", *script)) as units, watching(units) as watch:
        await asyncio.to_thread(backend.box.systemctl, "start", "gpumod-a.service")
        await watch.until("a", lambda fact: fact.active is Active.ACTIVE)
        async with asyncio.timeout(10):
            while await units.logs("a", lines=1, this_run=True) != ["GPU-7"]:
                await asyncio.sleep(0.02)


async def test_somebodys_stop_while_ours_is_under_way_is_one(backend: SystemdBackend) -> None:
    async with backend.open(unit("a", *LEAVES_LATE)) as units, watching(units) as watch:
        await running(units, watch)
        ours = asyncio.create_task(units.stop("a"))
        await watch.until("a", lambda fact: fact.active is Active.DEACTIVATING)
        await asyncio.to_thread(backend.box.systemctl, "stop", "gpumod-a.service")
        assert await ours is JobResult.DONE
        assert (await watch.until_gone("a")).ended is Ended.JOB


async def test_somebodys_start_cancels_our_stop(backend: SystemdBackend) -> None:
    async with backend.open(unit("a", *LEAVES_LATE)) as units, watching(units) as watch:
        await running(units, watch)
        async with asyncio.timeout(10):
            while await units.logs("a", lines=5, this_run=True) != ["ready"]:
                await asyncio.sleep(0.02)
        ours = asyncio.create_task(units.stop("a"))
        await watch.until("a", lambda fact: fact.active is Active.DEACTIVATING)
        await asyncio.to_thread(backend.box.systemctl, "start", "gpumod-a.service")
        assert await ours is JobResult.CANCELED


async def test_units_of_others_are_not_ours(backend: SystemdBackend) -> None:
    names = ("gpumodd.service", "other.service", "gpumod-UPPER.service", "gpumod-a.b.service")
    async with backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        for name in names:
            (backend.box.unit_dir / name).write_text("[Service]\nExecStart=/bin/sleep 1000\n")
        await asyncio.to_thread(backend.box.systemctl, "daemon-reload")
        await asyncio.to_thread(backend.box.systemctl, "start", *names)
        try:
            pid = int(await asyncio.to_thread(backend.box.systemctl, "show", "-P", "MainPID", "gpumodd.service"))
            assert units.owner(pid) is None
            await running(units, watch)
            assert {fact.service for event in watch.events for fact in event.facts} == {"a"}
            await units.apply({})
            assert {path.name for path in backend.box.unit_dir.iterdir()} == set(names)
        finally:
            await asyncio.to_thread(backend.box.systemctl, "kill", "--signal=KILL", *names)


async def test_a_reload_costs_nothing_when_nothing_differs(backend: SystemdBackend) -> None:
    def reloaded_at() -> str:
        return backend.box.systemctl("show", "-P", "UnitsLoadTimestampMonotonic")

    async with backend.open(unit("a", *FOREVER)) as units:
        before = reloaded_at()
        await units.apply(files(unit("a", *FOREVER)))
        await units.start("a", {"CUDA_VISIBLE_DEVICES": "1"})
        await units.stop("a")
        await units.start("a", {"CUDA_VISIBLE_DEVICES": "2"})
        await units.apply(files(unit("a", *FOREVER, env=(("NEW", "value"),))))
        assert reloaded_at() == before, "environment files need no reload"
        await units.apply(files(unit("a", *FOREVER), unit("b", *FOREVER), unit("c", *FOREVER)))
        assert reloaded_at() != before
        assert (
            await asyncio.to_thread(backend.box.systemctl, "show", "-P", "NeedDaemonReload", "gpumod-a.service") == "no"
        )


async def test_files_of_a_daemon_that_was_killed_before_its_reload(backend: SystemdBackend) -> None:
    async with backend.open(unit("a", *sh("echo old"))) as units:
        await units.start("a", {})
        path = backend.box.unit_dir / "gpumod-a.service"
        path.write_text(path.read_text().replace("echo old", "echo new"))
        async with backend.make() as next_daemon:
            assert (await next_daemon.apply(files(unit("a", *sh("echo new"))))).unchanged == ("a",)
            async with watching(next_daemon) as watch:
                await next_daemon.start("a", {})
                await watch.until_gone("a")
            assert await next_daemon.logs("a", lines=5, this_run=True) == ["new"]


async def test_a_broken_unit_says_so(backend: SystemdBackend) -> None:
    async with backend.open(unit("a", *FOREVER)) as units:
        path = backend.box.unit_dir / "gpumod-a.service"
        path.write_text(path.read_text().replace("ExecStart=", "ExecStarts="))
        await asyncio.to_thread(backend.box.systemctl, "daemon-reload")
        with pytest.raises(PortError, match=r"^cannot start a: .*gpumod-a\.service") as caught:
            await units.start("a", {})
        assert caught.value.code == "unit_invalid"


async def test_secrets_are_not_in_what_systemctl_shows(backend: SystemdBackend) -> None:
    async with backend.open(unit("a", *FOREVER, env=(("TOKEN", "s3cr3t"),))) as units:
        await units.start("a", {})
        shown = await asyncio.to_thread(backend.box.systemctl, "show", "gpumod-a.service")
        assert "gpumod-a.env" in shown
        assert "s3cr3t" not in shown


async def test_a_journal_that_cannot_be_read(backend: SystemdBackend, tmp_path: Path) -> None:
    liar = tmp_path / "journalctl"
    liar.write_text("#!/bin/sh\necho 'no journal today' >&2\nexit 1\n")
    liar.chmod(0o755)
    for command, why in (("/nonexistent/journalctl", "No such file"), (str(liar), "no journal today")):
        units = SystemdUnits(
            Renderer(), SystemClock(), unit_dir=tmp_path, environment_dir=tmp_path, journalctl=[command]
        )
        with pytest.raises(PortError, match=f"^cannot read the journal: .*{why}"):
            await units.logs("a", lines=5)


# -- the bus --------------------------------------------------------------------------------------------------------


async def test_no_bus_at_the_start(backend: SystemdBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/nobody")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    units = backend.make()
    assert "systemd/private does not exist" in units.needs()
    with pytest.raises(PortError, match=r"^cannot ") as caught:
        async with units:
            pass
    assert caught.value.code == "bus_lost"
    with pytest.raises(PortError, match="not connected"):
        await units.pids("a")


async def lose(watch: Watch, how: Callable[[], object]) -> UnitsLost:
    """Everything up to the loss, and the complete list that follows when the bus is back."""
    await asyncio.to_thread(how)
    while not isinstance(event := await watch.next(), UnitsLost):
        pass
    return event


async def back(watch: Watch) -> UnitsChanged:
    event = await watch.next()
    assert isinstance(event, UnitsChanged) and event.complete
    return event


@pytest.fixture
def own_backend(sandbox_possible: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sandbox of its own: these tests break it."""
    with Sandbox() as box:
        point_to(box, monkeypatch)
        yield SystemdBackend(box, tmp_path / "environment")


@pytest.mark.parametrize("how", ["restart", "kill -9", "reexec"])
async def test_a_lost_bus_ends_every_wait_and_is_found_again(own_backend: SystemdBackend, how: str) -> None:
    box = own_backend.box
    act = {
        "restart": lambda: box.systemctl("restart", "dbus.service"),
        "kill -9": lambda: box.systemctl("kill", "--signal=KILL", "dbus.service"),
        "reexec": lambda: box.systemctl("daemon-reexec"),
    }[how]
    late = unit("late", *LEAVES_LATE)
    async with own_backend.open(unit("a", *FOREVER), late) as units, watching(units) as watch:
        pid = await running(units, watch)
        await running(units, watch, "late")
        async with asyncio.timeout(10):
            while await units.logs("late", lines=5, this_run=True) != ["ready"]:
                await asyncio.sleep(0.02)
        stop = asyncio.create_task(units.stop("late"))
        await watch.until("late", lambda fact: fact.active is Active.DEACTIVATING)
        await lose(watch, act)
        assert await stop is JobResult.LOST
        facts = {fact.service: fact for fact in (await back(watch)).facts}
        assert (facts["a"].main_pid, facts["a"].active) == (pid, Active.ACTIVE)
        if facts["late"].active is Active.DEACTIVATING:
            await watch.until_gone("late")
        assert await units.stop("a") is JobResult.DONE, "signals arrive on the new connection"
        assert (await watch.until_gone("a")).ended is Ended.JOB


async def test_what_ended_while_the_bus_was_away(own_backend: SystemdBackend) -> None:
    async with own_backend.open(unit("a", *FOREVER)) as units, watching(units) as watch:
        pid = await running(units, watch)

        def cut() -> None:
            own_backend.box.systemctl("stop", "dbus.socket", "dbus.service")

        await lose(watch, cut)
        for command in (units.start("a", {}), units.stop("a")):
            assert await command is JobResult.LOST, "not refused: it is for the caller to look again"
        for call in (units.apply({}), units.pids("a"), units.refresh("a")):
            with pytest.raises(PortError) as caught:
                await call
            assert caught.value.code == "bus_lost"
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(own_backend.box.systemctl, "start", "dbus.socket", "dbus.service")
        (fact,) = (await back(watch)).facts
        assert (fact.active, fact.result, fact.exit_code) == (Active.FAILED, "signal", 9)
        assert fact.ended is None, "nobody has seen it"


async def test_a_bus_that_hangs(own_backend: SystemdBackend) -> None:
    pace = Pace(ping_every_s=0.1, answer_within_s=0.5)
    bus = int(own_backend.box.systemctl("show", "-P", "MainPID", "dbus.service"))
    async with own_backend.open(unit("a", *FOREVER), pace=pace) as units, watching(units) as watch:
        pid = await running(units, watch)
        lost = await lose(watch, lambda: os.kill(bus, signal.SIGSTOP))
        assert "has not answered" in lost.reason
        os.kill(bus, signal.SIGCONT)
        (fact,) = (await back(watch)).facts
        assert fact.main_pid == pid


async def test_a_connection_that_is_forgotten_late_does_not_harm_the_next(backend: SystemdBackend) -> None:
    """sdbus ties a connection to a descriptor's number, which the next one gets."""

    async def ask(connection: Connection) -> None:
        async with asyncio.timeout(10):
            await connection.call("ask", SYSTEMD_PATH, "org.freedesktop.systemd1.Manager.GetUnit", "s", "init.scope")

    kept = [Connection()]  # as a traceback would keep it
    await ask(kept[0])
    kept[0].close()
    following = Connection()
    try:
        await ask(following)
        kept.clear()
        gc.collect()
        await ask(following)
    finally:
        following.close()


async def test_a_number_that_is_another_files_by_now_stays_its_own(own_backend: SystemdBackend) -> None:
    """When the bus hangs up, libsystemd closes the descriptor; sdbus goes on to speak of its number."""
    connection = Connection()
    number = connection._bus.get_fd()
    await asyncio.to_thread(own_backend.box.systemctl, "kill", "--signal=KILL", "dbus.service")
    async with asyncio.timeout(10):
        await connection.wait_lost()
        while Path(f"/proc/self/fd/{number}").exists():
            await asyncio.sleep(0.001)
    near, far = socket.socketpair()
    if near.fileno() != number:
        os.dup2(near.fileno(), number)
        near.close()
        near = socket.socket(fileno=number)
    reader, writer = await asyncio.open_connection(sock=near)
    connection.close()
    del connection
    gc.collect()
    far.sendall(b"heard\n")
    async with asyncio.timeout(10):
        assert await reader.readline() == b"heard\n"
    writer.close()
    await writer.wait_closed()
    far.close()


async def test_an_unprivileged_user(sandbox_possible: None) -> None:
    """All of it as a user without rights: the manager, the bus, the daemon's side."""
    with Sandbox(random.SystemRandom().randrange(20_000, 59_000)) as box:
        copy = box.home / "script.py"
        copy.write_text(UNPRIVILEGED)
        copy.chmod(0o644)
        environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
        said = await asyncio.to_thread(box.run, [sys.executable, copy], env=environment)
        assert said.splitlines()[-1] == "all is well"


UNPRIVILEGED = """
import asyncio, os, socket, sys
from pathlib import Path
from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.systemd import SystemdUnits
from gpumodd.config.render import Renderer
from gpumodd.drivers.api import UnitFile

LISTEN = (
    "import socket, time; s = socket.create_server(('127.0.0.1', 0)); "
    "print(s.getsockname()[1], flush=True); time.sleep(99)"
)

async def main():
    config, state = Path(os.environ["XDG_CONFIG_HOME"]), Path(os.environ["XDG_STATE_HOME"])
    places = {"unit_dir": config / "systemd/user", "environment_dir": state / "gpumodd/env"}
    units = SystemdUnits(Renderer(), SystemClock(), **places)
    assert os.getuid() != 0 and units.needs() == "", units.needs()
    async with units:
        argv = (sys.executable, "-I", "-S", "-c", LISTEN)
        await units.apply({"a": UnitFile(service="a", description="a", argv=argv)})
        assert await units.start("a", {"X": "y"}) == "done"
        pids = await units.pids("a")
        assert len(pids) == 1 and units.owner(pids[0]) == "a" and units.owner(os.getpid()) is None
        while not (lines := await units.logs("a", lines=3, this_run=True)):
            await asyncio.sleep(0.02)
        port = int(lines[0])
        assert await units.owns_listener("a", "127.0.0.1", port) is True
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            assert await units.owns_listener("a", "127.0.0.1", stranger.getsockname()[1]) is False
        assert await units.stop("a") == "done"
    print("all is well")

asyncio.run(main())
"""
