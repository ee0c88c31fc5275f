"""What the soak tests share: a machine with two GPUs, a daemon that can die, a witness, and the final account.

The account is taken from outside: the kernel's cgroups, the user manager's own words, the text of the device table
and the rows of the state file, each read without the daemon's code, must tell the same story as the daemon does.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpumodd.demo.table import Device
from tests.support.daemon import TOTAL_MIB, Daemon, RpcFailure, until
from tests.support.sandbox import Sandbox

ROUNDS = int(os.environ.get("GPUMODD_SOAK_ROUNDS", "0"))  # 0: the bounded part, for the ordinary suite
SEED = int(os.environ.get("GPUMODD_SOAK_SEED") or random.SystemRandom().randrange(1 << 32))
RESERVE_MIB = 512
GPUS = ("GPU-11111111-0000-0000-0000-000000000001", "GPU-22222222-0000-0000-0000-000000000002")
PATIENCE_S = 60.0
ROWS = """
import json, sqlite3, sys
state = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
(record,) = state.execute("SELECT state FROM snapshot").fetchone()
print(json.dumps([record.decode(), state.execute("SELECT id, open FROM operation").fetchall()]))
"""


def rounds(bounded: int, long: int | None = None) -> int:
    """How many rounds: few in the ordinary suite; `make soak` says how many, `long` of every hundred."""
    return max(bounded, ROUNDS * (100 if long is None else long) // 100) if ROUNDS else bounded


def chance(name: str) -> random.Random:
    """A source of chance that the seed printed at the start repeats."""
    print(f"{name}: GPUMODD_SOAK_SEED={SEED}")
    return random.Random(f"{SEED} {name}")


def quiet_ports() -> Iterator[int]:
    """Ports that nobody listens on and that no outgoing connection takes by chance while a service is down."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(lowest // 2, lowest), 200):
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            yield port


def slice_of(box: Sandbox) -> str:
    """The cgroup of all services, as it is named inside."""
    number = box.cgroup.rpartition("-")[2].removesuffix(".slice")
    return f"/sys/fs/cgroup{box.cgroup}/user@{number}.service/gpumod.slice"


class Witness:
    """The sampler, as a process."""

    def __init__(self, d: Daemon) -> None:
        assert d.box is not None
        script = Path(__file__).with_name("sampler.py")
        argv = [sys.executable, "-I", "-S", str(script), str(d.table.path), slice_of(d.box), str(RESERVE_MIB)]
        self.process = d.box.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.gap_s = 0.0
        self.samples = 0

    def forget(self) -> dict[str, Any]:
        """What was seen since the last time, whatever it is."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seen: dict[str, Any] = json.loads(self.process.stdout.readline())
        return seen

    def told(self) -> dict[str, Any]:
        """The same; fails on what must never be seen."""
        seen = self.forget()
        self.gap_s, self.samples = max(self.gap_s, seen["gap_s"]), self.samples + seen["samples"]
        assert seen["overcommitted"] == [], f"more was promised or held than there is: {seen['overcommitted']}"
        assert seen["twice"] == [], f"a service ran twice at once: {seen['twice']}"
        return seen

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


class Stage:
    """A daemon in a sandbox, its witness, and what is always checked."""

    def __init__(self, root: Path, box: Sandbox) -> None:
        self.box = box
        self.root = root
        self.daemon = Daemon(root, box=box, nvml=True)
        self.daemon.table.create(*(Device(uuid, i, TOTAL_MIB, name=f"Stub {i}") for i, uuid in enumerate(GPUS)))
        self.daemon.program = [sys.executable, "-m", "tests.soak.mortal", str(root)]
        self.daemon.policy |= {"release_timeout_s": 20, "vram_reserve_mib": RESERVE_MIB}
        self.modes: dict[str, set[str]] = {"blank": set()}
        self.asked: list[str] = []  # operations that the daemon said yes to
        self.witness: Witness | None = None
        self.ports = quiet_ports()

    def service(self, id: str, vram_mib: int, *server: str, **keys: Any) -> None:
        keys = {"stop_timeout_s": 5, "port": next(self.ports)} | keys
        self.daemon.service(id, vram_mib, *server, **keys)

    def mode(self, id: str, *services: str) -> None:
        self.daemon.mode(id, *services)
        self.modes[id] = set(services)

    def impatient(self) -> None:
        """The daemon gives up on what survives SIGKILL after two seconds."""
        (self.root / "impatient").touch()

    # -- the daemon's deaths ----------------------------------------------------------------------------------

    def arm(self, moment: int) -> None:
        """The daemon kills itself that many moments from now."""
        (self.root / "moments").unlink(missing_ok=True)
        order = self.root / "die.new"
        order.write_text(f"{moment} {time.monotonic_ns()}")  # each order is another one, and never half of one
        order.replace(self.root / "die")

    def disarm(self) -> list[str]:
        """Takes the order back; the moments that were passed meanwhile."""
        (self.root / "die").unlink(missing_ok=True)
        try:
            return (self.root / "moments").read_text().splitlines()
        except FileNotFoundError:
            return []

    def died(self, within: float) -> bool:
        """Has the daemon died of its order?"""
        assert self.daemon.process is not None
        try:
            return self.daemon.process.wait(within) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        self.daemon.stop(signal.SIGKILL)

    # -- asking -----------------------------------------------------------------------------------------------

    def switch(self, mode: str, **params: Any) -> str | None:
        """Ask for it without waiting; its id, or None when the daemon died over the question."""
        try:
            id = str(self.daemon.rpc("mode.switch", id=mode, **params)["id"])
        except OSError:
            return None
        self.asked.append(id)
        return id

    def ended(self, id: str) -> dict[str, Any]:
        ended: dict[str, Any] = self.daemon.rpc("operation.wait", id=id)
        return ended

    def converged(self, mode: str | None = None) -> dict[str, Any]:
        """Wait until all is as desired, and not just for now; returns the status."""

        def look() -> dict[str, Any] | None:
            status: dict[str, Any] = self.daemon.status()
            return status if status["state"] == "converged" and mode in (None, status["mode"]) else None

        try:
            return dict(until(look, within=PATIENCE_S))
        except AssertionError:
            raise AssertionError(f"not converged: {self.story()}") from None

    def story(self) -> str:
        """What a person needs who looks at a failure."""
        status = self.daemon.status()
        lines = [f"{key}: {status[key]}" for key in ("mode", "desired_mode", "state", "problems")]
        lines += [" ".join(f"{s['id']}={s['phase']}" for s in status["services"])]
        for op in self.daemon.rpc("operation.list")[:4]:
            lines += [f"{op['id']}: {op['kind']} {op['target']} {op['state']} {op['error']}"]
            lines += [f"    {s['verb']} {s['service']} {s['state']} {s['error'] or ''}" for s in op["steps"]]
        return "\n".join([*lines, *self.daemon.log.splitlines()[-120:]])

    # -- the account ------------------------------------------------------------------------------------------

    def account(self, mode: str | None = None) -> dict[str, Any]:
        """Everyone must say the same about how things stand; returns what the witness saw since last time."""
        status = self.converged(mode)
        wanted = self.modes[status["mode"]]
        units = self.units()
        assert set(units) == wanted, (units, status)
        assert {s["id"]: s["pid"] for s in status["services"] if s["pid"]} == units
        assert self.cgroups().keys() == wanted
        assert all(units[s] in pids for s, pids in self.cgroups().items())
        self.check_table(status)
        self.check_history(status)
        assert "Traceback" not in self.daemon.log, self.daemon.log
        assert self.witness is not None
        return self.witness.told()

    def units(self) -> dict[str, int]:
        """Main pids by service, as the manager tells them; any state but running or gone fails."""
        words = ["--property=Id,ActiveState,SubState,MainPID", "--all", "show", "gpumod-*.service"]
        found: dict[str, int] = {}
        for block in self.box.systemctl(*words).split("\n\n"):
            told = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            if told.get("ActiveState") not in (None, "inactive", "failed"):
                assert (told["ActiveState"], told["SubState"]) == ("active", "running"), told
                found[told["Id"][7:-8]] = int(told["MainPID"])
        return found

    def cgroups(self) -> dict[str, set[int]]:
        """Processes by service, as the kernel tells them."""
        found: dict[str, set[int]] = {}
        slice_ = self.box.seen(slice_of(self.box))
        for name in os.listdir(slice_) if slice_.exists() else ():  # noqa: PTH208  # they come and go meanwhile
            with suppress(OSError):
                pids = {int(word) for word in (slice_ / name / "cgroup.procs").read_text().split()}
                if pids and name.endswith(".service"):
                    found[name[7:-8]] = pids
        return found

    def check_table(self, status: dict[str, Any]) -> None:
        """What the devices hold is what runs, all of it, and nobody was ever refused."""
        table = self.daemon.table.read()
        assert [r for r in table.refusals if r.mib <= TOTAL_MIB] == []  # more than a device has is the asker's mistake
        assert {hold.pid for hold in table.holds} <= set().union(*self.cgroups().values())
        for device in status["devices"]:
            assert device["used_mib"] == table.used_mib(device["uuid"]), (device, table.holds)

    def check_history(self, status: dict[str, Any]) -> None:
        """The operations: none is lost, all have ended in full; and the state file says so without the daemon."""
        told = self.daemon.rpc("operation.list", limit=1000)
        ids = [int(op["id"]) for op in reversed(told)]
        assert ids == list(range(1, len(ids) + 1))
        assert {int(id) for id in self.asked} <= set(ids)
        for op in told:
            assert op["state"] not in ("pending", "running"), op
            assert op["finished_at"] is not None
            assert not [s for s in op["steps"] if s["state"] in ("pending", "running")], op
        snapshot, rows = until(lambda: self.saved(status), why="the state file says how things stand")
        assert snapshot["reached_mode"] == status["mode"]
        assert sorted(snapshot.get("placements", {})) == sorted(self.modes[status["mode"]])
        assert sorted(map(int, rows)) == ids

    def saved(self, status: dict[str, Any]) -> tuple[dict[str, Any], list[str]] | None:
        """The state file once it has the end of everything: the newest writes may still be on their way."""
        path = str(self.daemon.state / "state.db")
        snapshot, rows = json.loads(self.box.run([sys.executable, "-I", "-S", "-c", ROWS, path]))
        snapshot = json.loads(snapshot)["snapshot"]
        over = not any(is_open for _, is_open in rows) and snapshot["reached_mode"] == status["mode"]
        return (snapshot, [id for id, _ in rows]) if over else None

    # -- beginning and end ------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator["Stage"]:
        """From here on the daemon runs and is watched; afterwards nothing of it is left."""
        try:
            self.daemon.start()
            self.witness = Witness(self.daemon)
            yield self
            self.clear()
        except BaseException:
            print("\n".join(self.daemon.log.splitlines()[-60:]))
            self.witness = self.witness and (self.witness.close() or None)
            self.daemon.__exit__(*sys.exc_info())
            raise

    def clear(self) -> None:
        """Blank, then the daemon's end; no unit, process, cgroup or socket may be left."""
        assert self.witness is not None
        id = self.switch("blank")
        assert id is not None
        assert self.ended(id)["state"] == "succeeded"
        self.account("blank")
        assert self.daemon.stop() == 0
        self.witness.told()
        self.witness.close()
        assert self.units() == {}
        until(lambda: not self.leftovers(), why="nothing is left")
        if not (self.root / "impatient").exists():  # which no replay knows of
            self.daemon.check_recordings()

    def leftovers(self) -> list[str]:
        """Whatever of the services and the daemon is still there."""
        slice_ = self.box.seen(slice_of(self.box))
        left = [name for name in (os.listdir(slice_) if slice_.exists() else ()) if name.endswith(".service")]  # noqa: PTH208
        left += [str(path) for path in (self.daemon.socket,) if path.exists()]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except OSError:
                continue
            if str(self.root).encode() in words:
                left.append(f"{path.parent.name}: {words.decode(errors='replace')}")
        return left


def pause(seconds: float) -> None:
    """The moment of a blow, not a wait for anything."""
    time.sleep(seconds)


__all__ = ["GPUS", "PATIENCE_S", "RpcFailure", "Stage", "chance", "pause", "rounds"]
