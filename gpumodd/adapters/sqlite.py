"""The state file: snapshot and operations in SQLite. The port `Store`.

Owns the schema, its migrations and durability (WAL, synchronous=FULL), and the one thread that touches the
connection. Knows nothing of what the snapshot and the records mean. A file that is newer, damaged or somebody
else's is refused as it is, never written to.
"""

import asyncio
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from gpumodd.ports import PortError, StoredOperation

T = TypeVar("T")

HISTORY = 1000  # operations kept; those still open are kept beyond that
BUSY_S = 2.0
CHECK_BYTES = 64 << 20  # far more than the history needs; what is damaged in a larger file shows when it is read
MAGIC = b"SQLite format 3\0"
APPLICATION_ID = 0x67706D64  # "gpmd": says in the file's header whose it is

# Each brings the schema from its index to the next; what was released once is never edited.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        "CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), state BLOB NOT NULL)",
        """
        CREATE TABLE operation (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            open INTEGER NOT NULL,
            record BLOB NOT NULL
        )
        """,
    ),
)

KEEP_SNAPSHOT = "INSERT INTO snapshot VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state"
KEEP_OPERATION = """
    INSERT INTO operation (id, open, record) VALUES (?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET open = excluded.open, record = excluded.record
"""
FORGET_OPERATIONS = """
    DELETE FROM operation
    WHERE NOT open AND seq < (SELECT seq FROM operation ORDER BY seq DESC LIMIT 1 OFFSET ?)
"""


class SqliteStore:
    """An open state file; made by `open`, ended by `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> "SqliteStore":
        """Open or create the file; PortError `state_newer`, `state_corrupt` or `state_unwritable` says why not."""
        store = cls(path)
        try:
            await store._run(store._open)
        except BaseException:
            await store.close()
            raise
        return store

    @classmethod
    @asynccontextmanager
    async def copy(cls, path: Path) -> AsyncIterator["SqliteStore | None"]:
        """A private copy of a state file that another daemon may be writing to; None when there is no such file.
        Nothing is done to the file itself, nor put beside it."""
        with tempfile.TemporaryDirectory(prefix="gpumodd-") as folder:
            copied = Path(folder) / path.name
            try:
                await anyio.to_thread.run_sync(_copy, path, copied)
            except FileNotFoundError:
                yield None
                return
            except OSError as error:
                reason = os.strerror(error.errno or 0).lower()
                raise PortError("state_unreadable", f"cannot read {path}: {reason}") from error
            try:
                store = await cls.open(copied)
            except PortError as error:
                raise PortError(error.code, error.message.replace(str(copied), str(path))) from None
            try:
                yield store
            finally:
                await store.close()

    async def load(self) -> bytes | None:
        return await self._run(self._load)

    async def save(self, snapshot: bytes, operations: Collection[StoredOperation]) -> None:
        await self._run(lambda: self._save(snapshot, operations))

    async def operations(self, limit: int) -> list[StoredOperation]:
        return await self._run(lambda: self._operations(limit))

    async def close(self) -> None:
        """Fold the log into the file and let go of it, after what was begun; doing it twice is fine."""
        if not self._closed:
            self._closed = True
            await self._submit(self._close)
            self._worker.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise _unwritable(self._path, "it is closed")
        return await self._submit(work)

    async def _submit(self, work: Callable[[], T]) -> T:
        """On the worker, to its end: who is cancelled meanwhile still leaves a whole write behind."""
        done = asyncio.get_running_loop().run_in_executor(self._worker, work)
        with anyio.CancelScope(shield=True):
            await asyncio.wait([done])
        try:
            return done.result()
        except sqlite3.Error as error:
            raise _translate(self._path, error) from error

    # --- on the worker ------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _has_content(self._path):
                _refuse_what_is_not_ours(self._path)
            # SQLite gives its side files the permissions of this one.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if stat.S_IMODE(self._path.stat().st_mode) & 0o077:
                self._path.chmod(0o600)
        except OSError as error:
            raise _unwritable(self._path, os.strerror(error.errno or 0).lower()) from error
        self._connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._migrate()

    def _migrate(self) -> None:
        """All missing steps and their number in one transaction; also without a step it shows whether we may write."""
        connection = self._opened()
        with _Transaction(connection):
            version = _number(connection, "PRAGMA user_version")
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _load(self) -> bytes | None:
        row = self._opened().execute("SELECT CAST(state AS BLOB) FROM snapshot").fetchone()
        return row[0] if row else None

    def _save(self, snapshot: bytes, operations: Collection[StoredOperation]) -> None:
        connection = self._opened()
        with _Transaction(connection):
            connection.execute(KEEP_SNAPSHOT, (snapshot,))
            if operations:
                connection.executemany(KEEP_OPERATION, ((each.id, each.open, each.record) for each in operations))
                connection.execute(FORGET_OPERATIONS, (HISTORY - 1,))

    def _operations(self, limit: int) -> list[StoredOperation]:
        newest = "SELECT id, open, CAST(record AS BLOB) FROM operation ORDER BY seq DESC LIMIT ?"
        rows = self._opened().execute(newest, (max(0, limit),))
        return [StoredOperation(id=name, open=bool(is_open), record=record) for name, is_open, record in rows]

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise _unwritable(self._path, "it is closed")
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Transaction:
    """All or nothing, with the write lock from the start."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # a full disk ends the transaction by itself
                self._connection.execute("ROLLBACK")


def _copy(source: Path, target: Path) -> None:
    """The file and what is not folded into it yet; the log last, so that it is the newer one."""
    shutil.copyfile(source, target)
    with suppress(FileNotFoundError):
        shutil.copyfile(f"{source}-wal", f"{target}-wal")


def _has_content(path: Path) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise _corrupt(path, "it is not a regular file")
    # Changes nothing, and says "permission denied" or "read-only file system" where SQLite says "unable to open".
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    return status.st_size > 0


def _refuse_what_is_not_ours(path: Path) -> None:
    """Look, through a connection that cannot write, before anything is done to the file."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise _corrupt(path, "it is not a database")
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        version, owner = (_number(connection, f"PRAGMA {name}") for name in ("user_version", "application_id"))
        if (version or owner) and owner != APPLICATION_ID:
            raise _corrupt(path, "it is another program's database")
        if not version and _number(connection, "SELECT count(*) FROM sqlite_schema"):
            raise _corrupt(path, "it is another program's database")
        if version > len(MIGRATIONS):
            raise PortError(
                "state_newer",
                f"cannot use {path}: a newer gpumodd wrote it (schema {version}, this one knows {len(MIGRATIONS)})",
                hint=f"install that version again, or {_move_aside(path)}",
            )
        if damage := _damage(path, connection):
            raise _corrupt(path, damage)
    finally:
        connection.close()


def _damage(path: Path, connection: sqlite3.Connection) -> str:
    """What quick_check finds first. It reads every page, so it is left out when it would hold up the start."""
    if path.stat().st_size > CHECK_BYTES:
        return ""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    return "" if verdict == "ok" else " ".join(str(verdict).split())


def _number(connection: sqlite3.Connection, question: str) -> int:
    return int(connection.execute(question).fetchone()[0])


def _translate(path: Path, error: sqlite3.Error) -> PortError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code; the rest says which system call
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _corrupt(path, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return _unwritable(path, "another program keeps it locked")
    return _unwritable(path, str(error))


def _corrupt(path: Path, reason: str) -> PortError:
    return PortError(
        "state_corrupt",
        f"cannot use {path}: {reason}",
        hint=_move_aside(path),
    )


def _move_aside(path: Path) -> str:
    return f"move {path}* aside: the daemon then adopts what runs and has forgotten what was asked"


def _unwritable(path: Path, reason: str) -> PortError:
    return PortError(
        "state_unwritable",
        f"cannot write {path}: {reason}",
        hint="its directory must be writable and have space; GPUMODD_STATE_DIR names another one",
    )
