"""The independent witness: who runs and who holds how much, by the kernel's word and the table's, many times a second.

A process of its own that shares no line with the daemon or the device table's reader. What a service was promised
is on its command line (`--vram-mib`) and in its environment (`CUDA_VISIBLE_DEVICES`); that it lives, its cgroup says;
what is held, the table's text says. For each device it adds up, service by service, the larger of the two, puts
what lingers, what is foreign and the reserve on top, and records every sum that is more than the device has.

`python sampler.py TABLE SLICE RESERVE_MIB`: each line on standard input asks for what was seen since the last one, as
one line of JSON: `samples`, `gap_s`, `overcommitted`, `twice` and `runs` ([service, pid] in order of appearance).
"""

import json
import os
import select
import sys
import time

PERIOD_S = 0.004
KEPT = 50


def boottime_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def read(path: str) -> bytes:
    """The content; empty when the process or cgroup behind it is gone."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # thousands of times a second
            return file.read()
    except OSError:
        return b""


def stat(pid: int) -> tuple[int, int]:
    """Parent and start time in ticks; (0, 0) when it is gone or a zombie."""
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[1]), int(fields[19])) if len(fields) > 19 and fields[0] not in (b"Z", b"X") else (0, 0)


class Sampler:
    def __init__(self, table: str, slice_: str, reserve_mib: int) -> None:
        self.table = table
        self.slice = slice_
        self.reserve_mib = reserve_mib
        self.promises: dict[tuple[int, int], tuple[int, list[str]]] = {}
        self.running: dict[str, tuple[int, int]] = {}
        self.mains: dict[tuple[int, int], bool] = {}
        self.clear()

    def clear(self) -> None:
        self.seen = {"samples": 0, "gap_s": 0.0, "overcommitted": [], "twice": [], "runs": []}

    def services(self) -> dict[str, frozenset[tuple[int, int]]]:
        """The processes, each with its start, that live in each service's cgroup."""
        found = {}
        try:
            units = os.listdir(self.slice)  # noqa: PTH208  # as above
        except OSError:
            return {}
        for unit in units:
            if unit.startswith("gpumod-") and unit.endswith(".service"):
                pids = [int(word) for word in read(f"{self.slice}/{unit}/cgroup.procs").split()]
                live = frozenset((pid, started) for pid in pids if (started := stat(pid)[1]))
                if live:
                    found[unit[7:-8]] = live
        return found

    def promise(self, process: tuple[int, int]) -> tuple[int, list[str]] | None:
        """MiB in all, and the devices; None while it is not yet the program it is to become."""
        if process not in self.promises:
            pid = process[0]
            words = read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")
            environment = read(f"/proc/{pid}/environ").decode(errors="replace").split("\0")
            chosen = next((e.partition("=")[2] for e in environment if e.startswith("CUDA_VISIBLE_DEVICES=")), None)
            if "--vram-mib" not in words or chosen is None:
                return None
            self.promises[process] = int(words[words.index("--vram-mib") + 1]), chosen.split(",")
        return self.promises[process]

    def look(self) -> None:
        """One sample. Who was there before and after the table was read was there while it was."""
        before = self.services()
        text = read(self.table).decode()
        after = self.services()
        lived = {s: before[s] & after[s] for s in before.keys() & after.keys() if before[s] & after[s]}
        self.note_runs(lived)
        self.add_up(text, lived)
        self.seen["samples"] += 1

    def note_runs(self, lived: dict[str, frozenset[tuple[int, int]]]) -> None:
        """A main process is born as the service manager's own child; two of them at once are one too many."""
        for service, processes in lived.items():
            mains = [p for p in sorted(processes, key=lambda p: p[1]) if self.is_main(p)]
            if len(mains) > 1 and len(self.seen["twice"]) < KEPT:
                self.seen["twice"].append([service, [pid for pid, _ in mains]])
            for main in mains:
                if self.running.get(service) != main and [service, main[0]] not in self.seen["runs"]:
                    self.seen["runs"].append([service, main[0]])
            if mains:
                self.running[service] = mains[-1]

    def is_main(self, process: tuple[int, int]) -> bool:
        """Decided when it is first seen: an orphan is given to the manager later."""
        if process not in self.mains:
            parent = stat(process[0])[0]
            self.mains[process] = bool(parent) and read(f"/proc/{parent}/comm").strip() == b"systemd"
        return self.mains[process]

    def add_up(self, text: str, lived: dict[str, frozenset[tuple[int, int]]]) -> None:
        devices: dict[str, tuple[int, int]] = {}
        holds: dict[tuple[str, int, int], int] = {}
        unowned: dict[str, int] = {}
        now = boottime_ms()
        known = frozenset[tuple[int, int]]().union(*lived.values())  # alive then, whatever has become of them since
        for line in text.split("\n"):
            match line.split(" "):
                case ["device", uuid, _, total, foreign, *_]:
                    devices[uuid] = int(total), int(foreign)
                case ["hold", uuid, pid, started, mib, linger, until]:
                    # What a dead process has left counts until its time is over, or while nobody has set one.
                    process = int(pid), int(started)
                    if until == "0" and (process in known or stat(process[0])[1] == process[1]):
                        holds[(uuid, *process)] = int(mib)
                    elif int(until) > now or (until == "0" and linger != "0"):
                        unowned[uuid] = unowned.get(uuid, 0) + int(mib)
        for uuid, (total, foreign) in devices.items():
            taken: dict[str, int] = {}
            for service, processes in lived.items():
                held = sum(holds.pop((uuid, *process), 0) for process in processes)
                promised = [p for process in processes if (p := self.promise(process)) is not None and uuid in p[1]]
                taken[service] = max(held, *(-(-mib // len(chosen)) for mib, chosen in promised), 0)
            rest = sum(mib for (on, *_), mib in holds.items() if on == uuid) + unowned.get(uuid, 0)
            over = sum(taken.values()) + rest + foreign + self.reserve_mib > total
            if over and len(self.seen["overcommitted"]) < KEPT:
                record = {"at_ms": now, "device": uuid, "total_mib": total, "foreign_mib": foreign, "rest_mib": rest}
                self.seen["overcommitted"].append(record | {"services": taken})

    def run(self) -> None:
        last = time.monotonic()
        while True:
            self.look()
            now = time.monotonic()
            self.seen["gap_s"] = max(self.seen["gap_s"], now - last)
            last = now
            if select.select([sys.stdin], [], [], PERIOD_S)[0]:
                if not sys.stdin.readline():
                    return
                print(json.dumps(self.seen), flush=True)
                self.clear()


if __name__ == "__main__":
    Sampler(sys.argv[1], sys.argv[2], int(sys.argv[3])).run()
