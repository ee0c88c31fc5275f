"""The state file: real files, real damage, real full disks, real kills."""

import asyncio
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, closing

import anyio
import pytest

from gpumodd.adapters import sqlite as module
from gpumodd.adapters.sqlite import HISTORY, MIGRATIONS, SqliteStore
from gpumodd.ports import PortError, StoredOperation
from tests.support.disk import with_its_own_mounts


def operation(number, *, is_open=False, record=b"record"):
    return StoredOperation(id=f"op-{number}", open=is_open, record=record)


@asynccontextmanager
async def opened(path):
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "state.db"


async def refused(path):
    """Opening fails, says which file, gives a way out, and changes no byte in the folder."""
    before = {file: file.read_bytes() for file in path.parent.glob("*") if file.is_file()}
    with pytest.raises(PortError) as caught:
        await SqliteStore.open(path)
    assert str(path) in caught.value.message
    assert caught.value.message.startswith("cannot ")
    assert caught.value.hint
    assert {file: file.read_bytes() for file in before} == before
    return caught.value


# --- what is kept -----------------------------------------------------------------------------------------------------


async def test_a_fresh_file_is_empty_and_private(path):
    async with opened(path) as store:
        assert await store.load() is None
        assert await store.operations(10) == []
        await store.save(b"state", [operation(1)])
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes["state.db"] == modes["state.db-wal"] == 0o600
    assert set(modes.values()) == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


async def test_an_open_file_becomes_private(path):
    async with opened(path):
        pass
    path.chmod(0o644)
    async with opened(path):
        assert path.stat().st_mode & 0o777 == 0o600


async def test_what_was_saved_is_there_after_a_restart(path):
    records = bytes(range(256))
    async with opened(path) as store:
        await store.save(b"first", [operation(1, is_open=True), operation(2)])
        await store.save(b"\0second\xff", [operation(1, record=records), operation(3, is_open=True)])
        assert await store.load() == b"\0second\xff"
    async with opened(path) as store:
        assert await store.load() == b"\0second\xff"
        assert await store.operations(10) == [
            operation(3, is_open=True),
            operation(2),
            operation(1, record=records),
        ]
        assert await store.operations(1) == [operation(3, is_open=True)]
        assert await store.operations(0) == await store.operations(-1) == []
        await store.save(b"", [])
        assert await store.load() == b""
        assert len(await store.operations(10)) == 3


async def test_history_is_bounded_but_open_operations_stay(path, monkeypatch):
    monkeypatch.setattr(module, "HISTORY", 5)
    async with opened(path) as store:
        await store.save(b"x", [operation(0, is_open=True), *(operation(number) for number in range(1, 20))])
        assert [each.id for each in await store.operations(99)] == ["op-19", "op-18", "op-17", "op-16", "op-15", "op-0"]
        await store.save(b"x", [operation(0)])  # it ended: old, so it goes
        assert [each.id for each in await store.operations(99)] == ["op-19", "op-18", "op-17", "op-16", "op-15"]


async def test_a_thousand_operations_are_kept(path):
    assert HISTORY == 1000
    async with opened(path) as store:
        await store.save(b"x", [operation(number) for number in range(1100)])
        kept = await store.operations(5000)
    assert (len(kept), kept[0].id, kept[-1].id) == (1000, "op-1099", "op-100")


async def test_it_is_durable(path):
    async with opened(path) as store:
        ask = store._run
        assert await ask(lambda: store._connection.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
        assert await ask(lambda: store._connection.execute("PRAGMA synchronous").fetchone()) == (2,)  # FULL


async def test_one_thread_of_its_own(path):
    async with opened(path) as store:
        names = {await store._run(lambda: threading.current_thread().name) for _ in range(20)}
        assert len(names) == 1
        assert names != {threading.current_thread().name}
        with pytest.raises(sqlite3.ProgrammingError):
            store._connection.execute("SELECT 1")


async def test_the_loop_is_not_blocked(path):
    """While another program holds the lock, a save waits on its thread and the loop goes on."""
    async with opened(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            saving = asyncio.ensure_future(store.save(b"late", []))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not saving.done()
            other.execute("ROLLBACK")
        await saving
        assert await store.load() == b"late"


async def test_a_cancelled_save_is_whole_and_the_next_one_works(path):
    async with opened(path) as store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.save, b"cancelled", [operation(1)])
            await asyncio.sleep(0)
            tasks.cancel_scope.cancel()
        assert (await store.load(), await store.operations(9)) == (b"cancelled", [operation(1)])
        saving = asyncio.ensure_future(store.save(b"harder", [operation(2)]))
        await asyncio.sleep(0)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        assert await store.load() == b"harder"
        assert len(await store.operations(9)) == 2


async def test_concurrent_saves_are_serial(path):
    async with opened(path) as store:
        await asyncio.gather(*(store.save(f"{number}".encode(), [operation(number)]) for number in range(50)))
        assert await store.load() == b"49"
        assert len(await store.operations(99)) == 50


async def test_after_close_everything_says_so(path):
    store = await SqliteStore.open(path)
    await asyncio.gather(store.save(b"last", []), store.close(), store.close())
    for call in (store.load(), store.save(b"", []), store.operations(1)):
        with pytest.raises(PortError, match="it is closed"):
            await call
    async with opened(path) as again:
        assert await again.load() == b"last"


# --- what is refused --------------------------------------------------------------------------------------------------


async def test_a_newer_schema_is_refused_and_kept(path):
    async with opened(path) as store:
        await store.save(b"from the future", [])
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    error = await refused(path)
    assert error.code == "state_newer"
    assert f"schema {len(MIGRATIONS) + 1}" in error.message
    assert "aside" in error.hint


@pytest.mark.parametrize(
    "content",
    [b"\0", b"hello world\n" * 100, b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 5000, b"SQLite format 2\0"],
)
async def test_what_is_not_a_database_is_refused_and_kept(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert (await refused(path)).code == "state_corrupt"


async def filled(path):
    async with opened(path) as store:
        await store.save(b"x" * 50_000, [operation(number, record=b"r" * 500) for number in range(200)])


async def test_damage_is_refused_and_kept(path):
    """A file with pages overwritten, wherever that is: refused, or read as it was saved; never an exception else."""
    await filled(path)
    whole = path.read_bytes()
    chance = random.Random(7)
    verdicts = []
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(3):
            page = chance.randrange(len(whole) // 4096) * 4096
            damaged[page : page + 4096] = chance.randbytes(4096)
        path.write_bytes(damaged)
        verdicts.append((await refused(path)).code)
    assert set(verdicts) == {"state_corrupt"}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
async def test_a_truncated_file_is_refused_and_kept(path, share):
    await filled(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert (await refused(path)).code == "state_corrupt"


async def test_an_empty_file_is_a_fresh_one(path):
    path.parent.mkdir()
    path.touch()
    async with opened(path) as store:
        assert await store.load() is None


@pytest.mark.parametrize("mark", ["", "PRAGMA user_version = 1", "PRAGMA application_id = 1"])
async def test_another_program_s_database_is_refused_and_kept(path, mark):
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
        other.execute(mark)
    error = await refused(path)
    assert error.code == "state_corrupt"
    assert "another program" in error.message


async def test_moved_aside_a_new_one_begins(path):
    path.parent.mkdir()
    path.write_bytes(b"not a database, much longer than a header")
    await refused(path)
    path.rename(path.with_name("state.db.old"))
    async with opened(path) as store:
        assert await store.load() is None


async def test_what_is_no_file_is_refused_at_once(path):
    path.mkdir(parents=True)
    assert (await refused(path)).code == "state_corrupt"
    path.rmdir()
    os.mkfifo(path)
    with anyio.fail_after(10):
        assert (await refused(path)).code == "state_corrupt"


async def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    error = await refused(tmp_path / "file" / "state.db")
    assert error.code == "state_unwritable"
    assert "GPUMODD_STATE_DIR" in error.hint


async def test_a_locked_file(path, monkeypatch):
    monkeypatch.setattr(module, "BUSY_S", 0.1)
    async with opened(path) as store:
        await store.save(b"before", [])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert "another program keeps it locked" in (await refused(path)).message
            with pytest.raises(PortError, match="another program keeps it locked") as caught:
                await store.save(b"lost", [])
            assert caught.value.code == "state_unwritable"
            assert await store.load() == b"before"
        await store.save(b"after", [])
        assert await store.load() == b"after"


async def test_a_huge_file_is_not_checked(path, monkeypatch):
    """The damaged page is not found at the start, which shows that there was no check."""
    async with opened(path) as store:
        await store.save(b"snapshot", [operation(number, is_open=True) for number in range(20_000)])
    damaged = bytearray(path.read_bytes())
    damaged[-4096:] = bytes(4096)
    path.write_bytes(damaged)
    assert (await refused(path)).code == "state_corrupt"
    monkeypatch.setattr(module, "CHECK_BYTES", path.stat().st_size - 1)
    async with opened(path) as store:
        assert await store.load() == b"snapshot"


async def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    async with opened(path) as store:
        await store.save(b"kept", [])
    broken = ("ALTER TABLE snapshot ADD COLUMN more", "CREATE TABLE snapshot (id)")
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(PortError):
        await SqliteStore.open(path)
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS)
    async with opened(path) as store:
        assert await store.load() == b"kept"


async def test_a_migration_keeps_what_is_there(path, monkeypatch):
    async with opened(path) as store:
        await store.save(b"kept", [operation(1)])
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE event (cursor INTEGER PRIMARY KEY)",)))
    async with opened(path) as store:
        assert (await store.load(), await store.operations(9)) == (b"kept", [operation(1)])
        assert (await store._run(lambda: store._connection.execute("PRAGMA user_version").fetchone()))[0] == 2
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS)
    assert (await refused(path)).code == "state_newer"


# --- disks ------------------------------------------------------------------------------------------------------------


async def test_a_file_that_may_not_grow(path):
    """What a full disk looks like to SQLite, in any sandbox: the write fails, nothing is lost, later it works again."""
    async with opened(path) as store:
        await store.save(b"before", [])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(PortError) as caught:
                await store.save(b"x" * 1_000_000, [operation(1)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.code == "state_unwritable"
        assert str(path) in caught.value.message
        assert (await store.load(), await store.operations(9)) == (b"before", [])
        await store.save(b"after", [operation(2)])
        assert (await store.load(), await store.operations(9)) == (b"after", [operation(2)])


# A tiny file system that fills up, is emptied again, and then becomes read-only.
DISK = """
import anyio, subprocess, sys
from pathlib import Path
from gpumodd.adapters.sqlite import SqliteStore
from gpumodd.ports import PortError
place = Path(sys.argv[1])
def mount(*words):
    subprocess.run(["mount", *words, str(place)], check=True)
async def attempt(what, call):
    try:
        print(what, "ok", await call)
    except PortError as error:
        print(what, error.code, "|", error.message.replace(str(place), "PLACE"))
async def main():
    store = await SqliteStore.open(place / "state.db")
    await attempt("small", store.save(b"small", []))
    ballast = place / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)): pass
        except OSError: pass
    await attempt("full", store.save(b"x" * 100_000, []))
    await attempt("still", store.load())
    ballast.unlink()
    await attempt("again", store.save(b"again", []))
    await store.close()
    mount("-o", "remount,ro")
    await attempt("readonly", SqliteStore.open(place / "state.db"))
    await attempt("readonly-new", SqliteStore.open(place / "other.db"))
mount("-t", "tmpfs", "-o", "size=256k", "tmpfs")
anyio.run(main)
"""


@pytest.mark.real
def test_a_full_and_a_read_only_disk(tmp_path):
    run = with_its_own_mounts(DISK, tmp_path)
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "small ok None",
        "full state_unwritable | cannot write PLACE/state.db: database or disk is full",
        "still ok b'small'",
        "again ok None",
        "readonly state_unwritable | cannot write PLACE/state.db: read-only file system",
        "readonly-new state_unwritable | cannot write PLACE/other.db: read-only file system",
    ]


# --- kill -9 ----------------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, os, sys
from pathlib import Path
from gpumodd.adapters.sqlite import SqliteStore
from gpumodd.ports import StoredOperation
async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    number = int(await store.load() or b"0".ljust(3000))
    while True:
        number += 1
        record = b"%d" % number
        operations = [StoredOperation(id=f"op-{number % 7}", open=True, record=record)]
        await store.save(record.ljust(3000), operations)
        os.write(1, record + b"\\n")
asyncio.run(main())
"""


async def test_a_kill_at_any_moment_loses_nothing_that_was_saved(path):
    chance = random.Random(11)
    number = 0
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            said = writer.stdout.readline()
            time.sleep(chance.random() * 0.05)  # the moment of the kill, not a wait for anything
            writer.send_signal(signal.SIGKILL)
            said += writer.stdout.read()
        reported = int(said.split()[-1])
        assert reported > number
        async with opened(path) as store:
            number = int(await store.load())
            newest = max(int(each.record) for each in await store.operations(99))
        assert number in (reported, reported + 1)  # the last one may have been saved and not yet reported
        assert newest == number  # snapshot and operations are one transaction


# --- a copy for who only looks ----------------------------------------------------------------------------------------


async def test_a_copy_knows_what_is_not_folded_in_yet_and_touches_nothing(path):
    async with opened(path) as store:
        await store.save(b"newest", [operation(1, is_open=True)])
        assert path.with_name("state.db-wal").stat().st_size, "nothing is left to be folded in"
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()}
        async with SqliteStore.copy(path) as copied:
            assert await copied.load() == b"newest"
            assert [op.id for op in await copied.operations(10)] == ["op-1"]
            await copied.save(b"elsewhere", [])
        assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()} == before
        assert await store.load() == b"newest"


async def test_there_is_no_copy_of_what_is_not_there(path):
    async with SqliteStore.copy(path) as copied:
        assert copied is None
    assert not path.parent.exists()


async def test_a_copy_of_what_is_no_state_file_is_refused_by_its_own_name(path):
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(PortError) as caught:
        async with SqliteStore.copy(path):
            pass
    assert (caught.value.code, str(path) in caught.value.message) == ("state_corrupt", True)
    assert path.read_bytes() == b"something else"


async def test_a_copy_of_a_folder_is_refused(path):
    path.mkdir(parents=True)
    with pytest.raises(PortError, match="is a directory"):
        async with SqliteStore.copy(path):
            pass
