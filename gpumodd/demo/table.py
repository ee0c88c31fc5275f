"""The device table: devices that exist only as lines of a text file, and who holds how much of them.

Model servers of the demo and of the tests write it, the `simulated` adapter reads it, and so does the tests'
NVML stub, in C. It must stay stdlib only and cheap to import: every model server start pays for it.

One record a line, fields separated by single spaces, UTF-8, at most `MAX_BYTES` in all::

    gpumodd-device-table 1                                  the first line
    device UUID INDEX TOTAL_MIB FOREIGN_MIB LOST NAME…      LOST: 0, or the NVML return code it fails with;
                                                            FOREIGN_MIB: used by nobody who is listed
    hold UUID PID STARTED MIB LINGER_MS UNTIL_MS            STARTED: the process's start, in ticks since boot
    refusal AT_MS UUID PID MIB FREE_MIB                     somebody asked for more than there was
    fault UUID|* NAME VALUE                                 the names in HEALTH: what the driver says of the device's
                                                            health; all others are read by the NVML stub only

Like a driver, the table gives memory back when its holder is gone, however it went. A hold counts while
UNTIL_MS is 0 and the process lives (pid *and* start: a reused pid is somebody else). A dead process's hold is
void, unless LINGER_MS says that the release is late: then whoever looks first, reader or writer, puts
now + LINGER_MS into UNTIL_MS, and until then (CLOCK_BOOTTIME) the memory is used and listed under nobody. All
readers share that stamp, so a restarted one does not start the delay again.

Writers hold a flock on `PATH.lock` and replace the file by rename: a reader needs no lock and never sees half
a table, and a writer killed at any moment leaves the old one. The refusals are the witness of the tests:
memory is never handed out twice, so over-commitment by anybody shows up here.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

HEADER = "gpumodd-device-table 1"
MAX_BYTES = 1 << 17  # a table of the largest test has a tenth of this; each hold costs a look into /proc
LOST = 15  # NVML_ERROR_GPU_IS_LOST
KEPT_REFUSALS = 200
# Degrees, NVML's bits of clock event reasons, uncorrected errors, yes or no. What is not there is not said.
HEALTH = frozenset({"temperature", "slowdown", "shutdown", "throttle", "ecc-volatile", "ecc-aggregate"})
HEALTH |= {"retired-pending", "remap-pending", "remap-failed"}


class TableError(Exception):
    """The table cannot be read or does not have that device; the message says where."""


class OutOfMemory(Exception):
    """A hold was refused: the device does not have that much."""

    def __init__(self, device: "Device", asked_mib: int, free_mib: int) -> None:
        super().__init__(f"cannot allocate {asked_mib} MiB on {device.uuid}: {free_mib} MiB are free")
        self.device = device
        self.asked_mib = asked_mib
        self.free_mib = free_mib


class Device(NamedTuple):
    """One simulated GPU."""

    uuid: str
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody needs here
    total_mib: int
    foreign_mib: int = 0
    lost: int = 0
    name: str = "Simulated GPU"


class Hold(NamedTuple):
    """Memory of one device held by one process, or still held after it (`until_ms`)."""

    uuid: str
    pid: int
    started: int
    mib: int
    linger_ms: int = 0
    until_ms: int = 0


class Refusal(NamedTuple):
    """A request that the device could not meet."""

    at_ms: int
    uuid: str
    pid: int
    mib: int
    free_mib: int


class Fault(NamedTuple):
    """What the NVML stub does wrong; see tests/support/nvml_stub.c."""

    uuid: str
    name: str
    value: str


class Table:
    """The content of the file, holds resolved: what is in `holds` counts."""

    __slots__ = ("devices", "faults", "holds", "refusals")

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        self.holds: list[Hold] = []
        self.refusals: list[Refusal] = []
        self.faults: list[Fault] = []

    def device(self, uuid: str) -> Device:
        try:
            return self.devices[uuid]
        except KeyError:
            known = ", ".join(self.devices) or "none"
            raise TableError(f"cannot find device {uuid!r} in the table: it has {known}") from None

    def used_mib(self, uuid: str) -> int:
        return self.device(uuid).foreign_mib + sum(h.mib for h in self.holds if h.uuid == uuid)

    def free_mib(self, uuid: str) -> int:
        return max(0, self.device(uuid).total_mib - self.used_mib(uuid))

    def processes(self, uuid: str) -> dict[int, int]:
        """MiB by pid, as the driver lists them; what only lingers has no process any more."""
        listed: dict[int, int] = {}
        for hold in self.holds:
            if hold.uuid == uuid and not hold.until_ms:
                listed[hold.pid] = listed.get(hold.pid, 0) + hold.mib
        return listed

    def health(self, uuid: str) -> dict[str, str]:
        """What is said of the device's health, by the names in HEALTH."""
        return {f.name: f.value for f in reversed(self.faults) if f.name in HEALTH and f.uuid in ("*", uuid)}

    def visible(self, selection: str | None) -> list[Device]:
        """The devices that CUDA_VISIBLE_DEVICES selects: the first if it is unset, else UUIDs or indexes up
        to the first that does not exist, as CUDA does."""
        by_index = sorted(self.devices.values(), key=lambda d: d.index)
        if selection is None:
            return by_index[:1]
        chosen: list[Device] = []
        for entry in selection.split(","):
            word = entry.strip()
            found = [d for d in by_index if (word and d.uuid.startswith(word)) or str(d.index) == word]
            if len(found) != 1:
                break
            chosen.append(found[0])
        return chosen


class DeviceTable:
    """The file. Every method reads or edits it as a whole; none keeps it open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def create(self, *devices: Device) -> None:
        """Start a new table with these devices, whatever was there before."""
        table = Table()
        for device in devices:
            if not device.uuid or device.uuid.split() != [device.uuid] or "\n" in device.name:
                raise TableError(f"cannot make a device with uuid {device.uuid!r} and name {device.name!r}")
            table.devices[device.uuid] = device
        with self._locked():
            self._write(table)

    def read(self) -> Table:
        """What holds now. Stamps late releases that nobody has noticed before."""
        table, unnoticed = self._resolve(self._parsed())
        if unnoticed:
            # A writer that was stopped in the middle must not stop a reader: then the next look stamps.
            try:
                with self._locked(wait=False):
                    table, _ = self._resolve(self._parsed())
                    self._write(table)
            except BlockingIOError:
                pass
        return table

    @contextmanager
    def edit(self) -> Iterator[Table]:
        """Change the table under its lock; written when the block ends without an exception."""
        with self._locked():
            table, _ = self._resolve(self._parsed())
            yield table
            self._write(table)

    def hold(self, uuid: str, mib: int, *, pid: int | None = None, linger_ms: int = 0) -> None:
        """From now on the process (by default this one) holds exactly `mib` there; raises OutOfMemory."""
        if mib < 0:
            raise TableError(f"cannot hold {mib} MiB")
        pid = os.getpid() if pid is None else pid
        started = process_started(pid)
        if started is None:
            raise TableError(f"cannot hold memory for pid {pid}: no such process")
        with self.edit() as table:
            device = table.device(uuid)
            others = [h for h in table.holds if (h.uuid, h.pid, h.until_ms) != (uuid, pid, 0)]
            held = sum(h.mib for h in table.holds) - sum(h.mib for h in others)
            free = table.free_mib(uuid)
            refused = mib - held > free
            if refused:
                table.refusals.append(Refusal(now_ms(), uuid, pid, mib - held, free))
            else:
                table.holds = [*others, Hold(uuid, pid, started, mib, linger_ms)] if mib else others
        if refused:
            raise OutOfMemory(device, mib - held, free)

    def free(self, uuid: str, *, pid: int | None = None, linger_ms: int = 0) -> None:
        """The process lets go; with `linger_ms` the memory stays used for that long and is listed nowhere."""
        pid = os.getpid() if pid is None else pid
        until = now_ms() + linger_ms if linger_ms else 0
        with self.edit() as table:
            mine = [h for h in table.holds if (h.uuid, h.pid, h.until_ms) == (uuid, pid, 0)]
            table.holds = [h for h in table.holds if h not in mine]
            if linger_ms:
                table.holds += [h._replace(until_ms=until) for h in mine]

    def settle(self) -> None:
        """End every late release at once."""
        with self.edit() as table:
            table.holds = [h for h in table.holds if not h.until_ms and process_started(h.pid) == h.started]

    def set_foreign(self, uuid: str, mib: int) -> None:
        """Let `mib` be used by nobody who is listed; raises OutOfMemory beyond the device."""
        with self.edit() as table:
            device = table.device(uuid)
            free = table.free_mib(uuid) + device.foreign_mib
            if mib > free:
                raise OutOfMemory(device, mib, free)
            table.devices[uuid] = device._replace(foreign_mib=mib)

    def set_lost(self, uuid: str, code: int = LOST) -> None:
        """Let the device fail with this NVML return code; 0 brings it back."""
        with self.edit() as table:
            table.devices[uuid] = table.device(uuid)._replace(lost=code)

    def set_faults(self, *faults: tuple[str, str, str | int]) -> None:
        """Replace what the NVML stub does wrong: (uuid or "*", name, value)."""
        with self.edit() as table:
            table.faults = [Fault(uuid, name, str(value)) for uuid, name, value in faults]

    @contextmanager
    def _locked(self, *, wait: bool = True) -> Iterator[None]:
        fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(fd)

    def _parsed(self) -> Table:
        try:
            return _parse(self._text())
        except ValueError as error:
            raise TableError(f"cannot read device table {self.path}: {error}") from None

    def _text(self) -> str:
        try:
            # Non-blocking and regular only: a FIFO in its place must not hang the reader.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise TableError(f"cannot read device table {self.path}: not a regular file")
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise TableError(f"cannot read device table {self.path}: {error.strerror}") from error
        if len(data) > MAX_BYTES:
            raise TableError(f"cannot read device table {self.path}: larger than {MAX_BYTES} bytes")
        return data.decode()

    def _write(self, table: Table) -> None:
        lines = [HEADER]
        for kind, records in (
            ("device", list(table.devices.values())),
            ("hold", table.holds),
            ("refusal", table.refusals[-KEPT_REFUSALS:]),
            ("fault", table.faults),
        ):
            lines += [" ".join((kind, *map(str, record))) for record in records]
        new = self.path.with_name(self.path.name + ".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.path)

    @staticmethod
    def _resolve(table: Table) -> tuple[Table, bool]:
        """Drop what no longer counts and stamp late releases; says whether it stamped any."""
        now = now_ms()
        counting: list[Hold] = []
        unnoticed = False
        for hold in table.holds:
            if hold.until_ms:
                if hold.until_ms > now:
                    counting.append(hold)
            elif process_started(hold.pid) == hold.started:
                counting.append(hold)
            elif hold.linger_ms:
                counting.append(hold._replace(until_ms=now + hold.linger_ms))
                unnoticed = True
        table.holds = counting
        return table, unnoticed


def now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def process_started(pid: int) -> int | None:
    """When it started, in ticks since boot; None when it is gone, or a zombie, which holds no memory."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def _parse(text: str) -> Table:
    table = Table()
    lines = text.split("\n")
    if lines[0] != HEADER or lines[-1] != "":
        raise ValueError(f"it does not start with {HEADER!r}, or its end is missing")
    for number, line in enumerate(lines[1:-1], start=2):
        try:
            _parse_line(table, line)
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"line {number}: {error}") from None
    for hold in table.holds:
        if hold.uuid not in table.devices:
            raise ValueError(f"a hold on unknown device {hold.uuid!r}")
    return table


def _parse_line(table: Table, line: str) -> None:
    kind, *fields = line.split(" ")
    if kind == "device":
        uuid, *rest = fields[:5]
        index, total, foreign, lost = map(_number, rest)
        if uuid in table.devices:
            raise ValueError(f"device {uuid!r} stands there twice")
        table.devices[uuid] = Device(uuid, index, total, foreign, lost, " ".join(fields[5:]))
    elif kind == "hold":
        table.holds.append(Hold(fields[0], *map(_number, fields[1:])))
    elif kind == "refusal":
        at, uuid, *rest = fields
        table.refusals.append(Refusal(_number(at), uuid, *map(_number, rest)))
    elif kind == "fault":
        table.faults.append(Fault(*fields))
    else:
        raise ValueError(f"unknown record {kind[:40]!r}")


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 16):
        raise ValueError(f"not a number: {word[:40]!r}")
    return int(word)
