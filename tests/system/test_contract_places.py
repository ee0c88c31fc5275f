"""The contract's section Places, sentence by sentence, against `gpumodd run` started by hand."""

import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.support.daemon import RpcFailure, until
from tests.support.sandbox import missing
from tests.system.by_hand import ByHand

needs_mounts = pytest.mark.skipif(bool(missing()), reason=f"no mount namespace: {missing()}")


@pytest.fixture
def machine(tmp_path: Path) -> ByHand:
    return ByHand(tmp_path)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def held(machine: ByHand) -> str:
    return machine.rpc("status.get")["mode"]


# -- where things are -----------------------------------------------------------------------------------------


def test_everything_is_at_its_place_with_its_mode(machine: ByHand):
    with machine.run() as d:
        assert (mode_of(d.socket.parent), mode_of(d.socket)) == (0o700, 0o600)
        assert d.socket.is_socket()
        assert (d.state / "state.db").exists()
        assert (d.state / "lock").read_text().strip() == str(d.process.pid)
        assert d.took_s <= 5
    assert not d.socket.exists()


@pytest.mark.parametrize("variable", ["GPUMODD_SOCKET", "GPUMODD_CONFIG_DIR", "GPUMODD_STATE_DIR"])
def test_each_place_has_its_variable(machine: ByHand, variable: str, tmp_path: Path):
    other = tmp_path / "other"
    match variable:
        case "GPUMODD_SOCKET":
            machine.socket = other / "a.sock"
            env = {variable: str(machine.socket)}
        case "GPUMODD_CONFIG_DIR":
            shutil.copytree(machine.config, other)
            shutil.rmtree(machine.config)
            env = {variable: str(other)}
        case _:
            env = {variable: str(other)}
    with machine.run(env=env):
        assert other.is_dir()
        assert (other / "state.db").exists() == (variable == "GPUMODD_STATE_DIR")


def test_without_a_runtime_directory_it_names_the_variable_that_helps(machine: ByHand):
    del machine.env["XDG_RUNTIME_DIR"]
    if Path(f"/run/user/{os.getuid()}").exists():
        pytest.skip("this user has a runtime directory")
    code, said = machine.refused()
    assert code == 1
    assert "GPUMODD_SOCKET" in said
    assert "Traceback" not in said


@needs_mounts
def test_without_the_variable_the_users_runtime_directory_is_used(machine: ByHand, tmp_path: Path):
    own = Path(f"/run/user/{os.getuid()}")
    inside = 'mount -t tmpfs none /run && mkdir -p $0 && mount --bind $1 $0 && shift && exec "$@"'
    del machine.env["XDG_RUNTIME_DIR"]
    with machine.run("unshare", "-m", "sh", "-c", inside, str(own), str(machine.runtime)) as d:
        assert d.rpc("daemon.hello")["protocol"] == 1


def test_without_a_configuration_it_names_init(tmp_path: Path):
    machine = ByHand(tmp_path, configured=False)
    code, said = machine.refused()
    assert code == 1
    assert "gpumodd init" in said
    assert "Traceback" not in said


def test_every_mistake_in_the_configuration_is_told_at_once_with_its_place(machine: ByHand):
    machine.write("gpumodd.yaml", "policy:\n  vram_reserv_mib: 3\n")
    machine.write("services/a.yaml", "id: a\ndriver: exce\n")
    code, said = machine.refused()
    assert code == 1
    assert "gpumodd.yaml:2:3: policy.vram_reserv_mib:" in said
    assert "services/a.yaml:2:" in said
    assert not machine.socket.exists()


def test_the_environment_overrides_the_file(machine: ByHand):
    machine.write("services/a.yaml", {"id": "a", "driver": "exec", "vram_mib": 8000, "options": {"command": ["true"]}})
    env = {"GPUMODD_POLICY__VRAM_RESERVE_MIB": "20000", "GPUMODD_DEVICES__BACKEND": "simulated"}
    machine.write("gpumodd.yaml", {"units": {"backend": "process"}, "devices": {"backend": "none"}})
    with machine.run(env=env) as d:
        with pytest.raises(RpcFailure) as refused:
            d.rpc("service.start", id="a")
        assert refused.value.data["details"]["reasons"][0]["details"]["reserve_mib"] == 20000


@pytest.mark.parametrize("value", ["minus", "[1, 2]"])
def test_an_override_that_makes_no_sense_is_named(machine: ByHand, value: str):
    code, said = machine.refused(env={"GPUMODD_POLICY__RAM_RESERVE_MIB": value})
    assert code == 1
    assert "GPUMODD_POLICY__RAM_RESERVE_MIB" in said
    assert "Traceback" not in said


# -- devices and units ----------------------------------------------------------------------------------------


def test_auto_without_a_driver_is_no_devices_and_a_problem(machine: ByHand):
    machine.write("gpumodd.yaml", {"units": {"backend": "process"}, "policy": {"ram_reserve_mib": 0}})
    machine.write("services/a.yaml", {"id": "a", "driver": "exec", "options": {"command": ["sleep", "60"]}})
    machine.write(
        "services/b.yaml", {"id": "b", "driver": "exec", "vram_mib": 5, "options": {"command": ["sleep", "60"]}}
    )
    with machine.run() as d:
        status = d.rpc("status.get")
        assert (status["devices"], [p["code"] for p in status["problems"]]) == ([], ["no_devices"])
        assert status["state"] == "converged"
        assert d.rpc("service.start", id="b", wait=True)["state"] == "succeeded"
        with pytest.raises(RpcFailure) as refused:
            d.rpc("service.start", id="a")
        assert refused.value.data["details"]["reasons"][0]["code"] == "vram_unknown"


def test_no_devices_on_purpose_are_no_problem(machine: ByHand):
    machine.write("gpumodd.yaml", {"units": {"backend": "process"}, "devices": {"backend": "none"}})
    with machine.run() as d:
        status = d.rpc("status.get")
        assert (status["devices"], status["problems"]) == ([], [])


def test_simulated_devices_need_no_table(machine: ByHand):
    with machine.run() as d:
        assert len(d.rpc("device.list")) == 1


def test_a_problem_keeps_the_time_it_began(machine: ByHand):
    machine.write("gpumodd.yaml", {"units": {"backend": "process"}})
    with machine.run() as d:
        since = d.rpc("status.get")["problems"][0]["since"]
        sampled = time.monotonic() + 1.2
        until(lambda: time.monotonic() > sampled)
        assert d.rpc("status.get")["problems"][0]["since"] == since


def test_units_auto_is_decided_once(machine: ByHand):
    """The backend of the first start stays, though a user manager has appeared meanwhile."""
    machine.write("gpumodd.yaml", {"devices": {"backend": "none"}})
    with machine.run() as d:
        assert "units=process" in d.log
    (machine.runtime / "systemd").mkdir()
    for path in (machine.runtime / "systemd/private", machine.runtime / "bus"):
        with socket.socket(socket.AF_UNIX) as manager:
            manager.bind(str(path))
    with machine.run() as d:
        assert d.log.count("units=process") == 2


def test_systemd_without_a_manager_is_an_error_that_says_so(machine: ByHand):
    machine.write("gpumodd.yaml", {"units": {"backend": "systemd"}})
    code, said = machine.refused()
    assert code == 1
    assert "cannot use systemd" in said
    assert "Traceback" not in said


# -- one daemon, one socket -----------------------------------------------------------------------------------


def test_a_second_daemon_is_refused_and_takes_nothing(machine: ByHand):
    with machine.run() as d:
        code, said = d.refused()
        assert (code, str(d.process.pid) in said) == (1, True)
        code, said = d.refused(env={"GPUMODD_STATE_DIR": str(d.root / "other")})
        assert (code, "another process listens there" in said) == (1, True)
        assert d.rpc("daemon.hello")["pid"] == d.process.pid


def test_a_socket_that_a_killed_daemon_left_is_replaced(machine: ByHand):
    with machine.run() as d:
        assert d.end(signal.SIGKILL) == -signal.SIGKILL
        assert d.socket.exists()
        d.run()


def test_something_else_in_the_sockets_place_stays(machine: ByHand):
    machine.socket.parent.mkdir()
    machine.socket.write_text("precious")
    code, said = machine.refused()
    assert (code, "Traceback" in said) == (1, False)
    assert machine.socket.read_text() == "precious"


def test_an_inherited_socket_is_used_and_never_unlinked(machine: ByHand):
    place = machine.root / "activated.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        machine.socket = place
        script = (
            f"import os, sys; os.dup2({listener.fileno()}, 3);"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[1], sys.argv[1:])"
        )
        with machine.run(sys.executable, "-c", script, pass_fds=[listener.fileno()]) as d:
            assert d.rpc("daemon.hello")["protocol"] == 1
            assert not (d.runtime / "gpumodd/gpumodd.sock").exists()
    assert place.exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(machine: ByHand, how: signal.Signals):
    with machine.run() as d:
        assert d.end(how) == 0
        assert "Traceback" not in d.log
        assert not d.socket.exists()


def test_shutdown_ends_it_well_and_its_services_with_it(machine: ByHand):
    machine.write(
        "services/a.yaml", {"id": "a", "driver": "exec", "vram_mib": 0, "options": {"command": ["sleep", "60"]}}
    )
    with machine.run() as d:
        d.rpc("service.start", id="a", wait=True, force=True)
        pid = d.rpc("service.get", id="a")["pid"]
        assert d.rpc("daemon.shutdown") == {"services_end": True}
        assert d.process.wait(10) == 0
        assert not Path(f"/proc/{pid}").exists()


def test_sighup_reloads_and_a_bad_file_is_survived(machine: ByHand):
    with machine.run() as d:
        d.write("modes/new.yaml", {"id": "new", "services": []})
        d.process.send_signal(signal.SIGHUP)
        until(lambda: "new" in {m["id"] for m in d.rpc("mode.list")})
        d.write("modes/new.yaml", "{")
        d.process.send_signal(signal.SIGHUP)
        until(lambda: "reload_refused" in d.log)
        assert "new" in {m["id"] for m in d.rpc("mode.list")}


def test_type_notify_is_served(machine: ByHand):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(machine.root / "notify"))
        manager.settimeout(20)
        with machine.run(env={"NOTIFY_SOCKET": str(machine.root / "notify"), "WATCHDOG_USEC": "300000"}):
            told = b""
            while not (b"READY=1" in told and told.count(b"WATCHDOG=1") > 2):
                told += manager.recv(4096) + b"\n"
        while b"STOPPING=1" not in told:
            told += manager.recv(4096) + b"\n"


# -- the state file -------------------------------------------------------------------------------------------


def test_a_state_file_of_a_newer_version_is_refused_and_left_alone(machine: ByHand):
    with machine.run():
        pass
    with closing(sqlite3.connect(machine.state / "state.db")) as database, database:
        database.execute("PRAGMA user_version = 99")
    before = (machine.state / "state.db").read_bytes()
    code, said = machine.refused()
    assert (code, "newer" in said) == (1, True)
    assert (machine.state / "state.db").read_bytes() == before


def test_a_damaged_state_file_is_refused_and_left_alone(machine: ByHand):
    with machine.run():
        pass
    path = machine.state / "state.db"
    text = b"not a database, but long enough to be taken for one " * 100
    for damaged in (text, path.read_bytes()[:5000]):
        path.write_bytes(damaged)
        code, said = machine.refused()
        assert (code, "Traceback" in said, "aside" in said) == (1, False, True)
        assert path.read_bytes() == damaged


def test_a_snapshot_that_makes_no_sense_is_refused_and_kept(machine: ByHand):
    with machine.run():
        pass
    nonsense = b'{"format": 1, "boot_id": 3}'
    with closing(sqlite3.connect(machine.state / "state.db")) as database, database:
        database.execute("UPDATE snapshot SET state = ?", (nonsense,))
    code, said = machine.refused()
    assert (code, "Traceback" in said, "aside" in said) == (1, False, True)
    with closing(sqlite3.connect(machine.state / "state.db")) as database:
        assert database.execute("SELECT state FROM snapshot").fetchone() == (nonsense,)


def test_a_state_directory_that_cannot_be_written_is_refused(machine: ByHand):
    machine.state.parent.mkdir()
    machine.state.write_text("a file")
    code, said = machine.refused()
    assert (code, "Traceback" in said) == (1, False)
    assert "GPUMODD_STATE_DIR" in said


def _unwritable(d: ByHand) -> bool:
    with suppress(RpcFailure):
        d.rpc("service.start", id="b", wait=True, force=True)
        d.rpc("service.stop", id="b", wait=True)
    return "state_unwritable" in {p["code"] for p in d.rpc("status.get")["problems"]}


@needs_mounts
def test_a_full_state_directory_refuses_and_recovers(machine: ByHand):
    """Nothing new is begun that a crash would forget; what is asked afterwards works again."""
    for name in ("a", "b"):
        spec = {"id": name, "driver": "exec", "vram_mib": 0, "options": {"command": ["sleep", "60"]}}
        machine.write(f"services/{name}.yaml", spec)
    machine.state.mkdir(parents=True)
    inside = 'mount -t tmpfs -o size=1M none "$0" && exec "$@"'
    with machine.run("unshare", "-m", "sh", "-c", inside, str(machine.state)) as d:
        assert d.rpc("service.start", id="a", wait=True, force=True)["state"] == "succeeded"
        # Through /proc: the small file system is the daemon's alone.
        filler = Path(f"/proc/{d.process.pid}/root{d.state}/filler")
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 4096)
        until(lambda: _unwritable(d), why="what is asked needs more room than the last page has")
        with pytest.raises(RpcFailure) as refused:
            d.rpc("service.start", id="b", force=True)
        assert refused.value.data["details"]["reasons"][0]["code"] == "state_unwritable"
        assert d.rpc("service.get", id="a")["phase"] == "ready"
        filler.unlink()
        until(lambda: not d.rpc("status.get")["problems"])
        assert d.rpc("service.start", id="b", wait=True, force=True)["state"] == "succeeded"
        assert "Traceback" not in d.log


# -- the first answer -----------------------------------------------------------------------------------------


def test_converged_is_never_taken_from_the_database(machine: ByHand):
    """The service of the mode last reached is down at the start: the first answer must not say otherwise."""
    spec = {"id": "a", "driver": "exec", "vram_mib": 0, "options": {"command": ["sleep", "60"]}}
    machine.write("services/a.yaml", spec)
    machine.write("modes/m.yaml", {"id": "m", "services": ["a"]})
    with machine.run() as d:
        assert d.rpc("mode.switch", id="m", wait=True, force=True)["state"] == "succeeded"
        d.end(signal.SIGKILL)
        machine.write("gpumodd.yaml", "policy: {restore_mode_at_start: false}\nunits: {backend: process}\n")
        d.run()
        first = d.rpc("status.get")
        assert first["services"][0]["phase"] == "stopped"
        assert first["state"] != "converged"


def test_no_traceback_whatever_is_asked(machine: ByHand):
    with machine.run() as d:
        for name in d.rpc("daemon.hello")["capabilities"]:
            if name == "daemon.shutdown":
                continue
            for params in ({}, {"id": "nope"}, {"id": 3}, {"id": "a" * 300}, {"id": "\ud800"}, {"nope": 1}):
                with suppress(RpcFailure):
                    d.rpc(name, **params)
        assert "Traceback" not in d.log


def test_the_log_goes_to_stderr_and_to_no_file(machine: ByHand):
    with (machine.root / "stderr").open("wb") as stderr:
        daemon = subprocess.Popen(machine.argv(), env=machine.env, cwd="/", stdout=subprocess.PIPE, stderr=stderr)
    until(lambda: "ready" in (machine.root / "stderr").read_text())
    daemon.terminate()
    assert daemon.communicate(timeout=20) == (b"", None)
    assert {p.name for p in machine.state.iterdir() if "log" in p.name} == set()


def test_check_reports_every_problem_with_its_place_and_exits_with_the_verdict(machine: ByHand):
    machine.write("services/a.yaml", "id: b\ndriver: exec\nvram: 3\n")
    check = [sys.executable, "-m", "gpumodd", "check", str(machine.config)]
    done = subprocess.run(check, check=False, env=machine.env, cwd="/", capture_output=True, text=True)
    assert done.returncode == 1
    places = [line.split(": ")[0].rpartition("/")[2] for line in done.stdout.splitlines() if ".yaml:" in line]
    assert any(place.startswith("a.yaml:3:") for place in places), done.stdout
    (machine.config / "services/a.yaml").unlink()
    assert subprocess.run(check, check=False, env=machine.env, cwd="/", capture_output=True).returncode == 0
