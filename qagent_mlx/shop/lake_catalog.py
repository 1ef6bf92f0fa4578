"""A DuckLake: opened by its address, with a lock that lets one machine write at a time."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import duckdb
from filelock import FileLock, Timeout

from ..errors import QAgentError
from ..utils.database import literal, more_memory, open_duckdb
from ..utils.duckdb_extensions import load_extension
from ..utils.text import clean
from ..utils.trust import require_address
from .lake_address import PASSWORD, parse_address
from .lake_files import confine
from .postgres_patience import patient, session_settings

T = TypeVar("T")

NAME = "lake"  # of the attached database
INLINED_ROWS = 500  # that a small change keeps in the catalog instead of files of their own
LOCK = 7_209_341  # of PostgreSQL's advisory locks
INDEX = -1  # as a bucket: the search index, which one machine builds at a time
POLL_SECONDS = 0.05
STORES = ("s3://", "gs://", "r2://")  # of objects, which DuckDB's extension httpfs reads

_BUSY = re.compile(r"database( table)? is locked|conflict|could not serialize", re.IGNORECASE)
EXTENSIONS = {"sqlite": "sqlite_scanner", "postgres": "postgres_scanner"}


class _Attached(NamedTuple):
    connection: duckdb.DuckDBPyConnection
    data: str  # where the lake's files are


_attached: dict[str, _Attached] = {}  # by address; attaching takes long
_attaching = threading.RLock()


class LakeUnreachable(QAgentError):
    """The lake does not answer, or its catalog is gone."""


class LakeInUse(QAgentError):
    """Others kept the lake, or a bucket, for as long as it may be waited for."""


class LakeCatalog:
    """A lake by its address.

    Args:
        address: As `parse_address` reads it.
        owner: Names in errors who uses it.
        data: Where its files must be: whoever writes to the catalog can name another place. None
            takes what it names.

    Raises:
        QAgentError: the user has not named the address, see `utils.trust`.
    """

    def __init__(self, address: str, owner: str, data: str | None = None) -> None:
        self.kind, self.place = parse_address(address)
        self._required = data
        self.address = address
        sent = [PASSWORD] if self.kind == "postgres" and PASSWORD in os.environ else []
        remedy = "make a shop of your own with qagent init"
        require_address(address, sent, owner, remedy)

    def exists(self) -> bool:
        """Whether there is a lake at the address."""
        if self.kind == "sqlite" and not Path(self.place).exists():
            return False
        try:
            self.cursor().close()
        except LakeUnreachable as error:
            if "does not exist" in str(error.__cause__) and "DuckLake" in str(error.__cause__):
                return False
            raise
        return True

    def create(self, data: str) -> None:
        """Make an empty lake whose files lie below ``data``, a folder or a store of objects.

        Raises:
            QAgentError: the catalog or the folder cannot be written.
        """
        if "://" in data and not data.startswith(STORES):
            raise QAgentError(
                f"{data} is no folder; name one that all machines see, or a store of objects "
                f"({', '.join(STORES)})"
            )
        self._open().close()  # before anything is made
        try:
            if self.kind == "sqlite":
                Path(self.place).parent.mkdir(parents=True, exist_ok=True)
                with closing(sqlite3.connect(self.place)) as database:
                    database.execute("PRAGMA journal_mode = WAL")  # readers keep no writer out
            if "://" not in data:
                data = _normal_data(data)
                Path(data).mkdir(parents=True, exist_ok=True)
        except (OSError, sqlite3.Error) as error:
            raise QAgentError(f"cannot make the lake {self.address}: {error}") from error
        attached = self._attach(f"DATA_PATH {literal(data)}")
        attached.connection.execute(
            f"CALL {NAME}.set_option('data_inlining_row_limit', {INLINED_ROWS})"
        )

    @property
    def data(self) -> str:
        """Where the lake's files are.

        Raises:
            LakeUnreachable: there is no lake, or it does not answer.
            QAgentError: they are elsewhere than they must be.
        """
        return self._find().data

    def data_folder(self) -> Path | None:
        """The folder of the lake's files; None where they are in a store of objects."""
        return None if "://" in self.data else Path(self.data)

    def require_data(self, data: str) -> None:
        """Refuse a lake whose files are elsewhere than in the folder ``data``.

        Raises:
            QAgentError: they are.
        """
        if _normal_data(data) != self.data.rstrip("/"):
            raise QAgentError(
                f"the lake {self.address} keeps its files in {clean(self.data)}, not in {data}; "
                "name that folder, or none if you know the place"
            )

    def compact(self, wait: float) -> None:
        """Write a catalog of SQLite anew, without the rows that were deleted from it.

        PostgreSQL does that itself in time, or at once by its VACUUM FULL.

        Raises:
            QAgentError: others use it.
        """
        if self.kind != "sqlite":
            return
        try:
            with closing(sqlite3.connect(self.place, timeout=wait)) as database:
                database.execute("VACUUM")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise QAgentError(
                f"{self.place} could not be written anew: {error}; deleted rows may still be read "
                "in it, so do it again while nobody else uses the lake"
            ) from error

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the lake, which is the database `NAME` there.

        Raises:
            LakeUnreachable: there is none, or it does not answer.
            QAgentError: its files are elsewhere than they must be.
        """
        return self._find().connection.cursor()

    def _find(self) -> _Attached:
        with _attaching:
            attached = _attached.get(self.address)
            attached = attached or self._attach("CREATE_IF_NOT_EXISTS false")
        if self._required not in (None, attached.data):
            raise QAgentError(
                f"the lake {self.address} names {clean(attached.data)} as the place of its files, "
                f"and named {self._required} when this shop joined it; if its files were moved "
                f"there on purpose, run: qagent move --store {shlex.quote(self.address)} "
                f"--data {shlex.quote(clean(attached.data))}"
            )
        return attached

    def _attach(self, options: str) -> _Attached:
        with _attaching:
            connection = self._open()
            try:
                place = patient(self.place) if self.kind == "postgres" else self.place
                address = literal(f"ducklake:{self.kind}:{place}")
                data = _attach_lake(connection, f"ATTACH {address} AS {NAME} ({options})")
                confine(connection, data)
            except duckdb.Error as error:
                connection.close()
                raise self.unreachable(error) from error
            attached = _attached[self.address] = _Attached(connection, data)
            return attached

    def _open(self) -> duckdb.DuckDBPyConnection:
        """A connection that can attach the lake.

        Raises:
            QAgentError: DuckDB lacks an extension, and cannot fetch it.
        """
        connection = open_duckdb()
        try:
            connection.execute("SET TimeZone = 'UTC'")
            for extension in ("ducklake", EXTENSIONS[self.kind]):
                load_extension(connection, extension, "a lake")
        except BaseException:
            connection.close()
            raise
        return connection

    def unreachable(self, error: duckdb.Error) -> LakeUnreachable:
        """What to say of an error of the lake; the next use attaches it anew."""
        with _attaching:
            _attached.pop(self.address, None)
        if isinstance(error, duckdb.OutOfMemoryException):
            return LakeUnreachable(
                f"the lake {self.address}: its transaction needs more memory; {more_memory()}"
            )
        line = str(error).strip().splitlines()[0]
        keys = ""
        if isinstance(error, duckdb.HTTPException) or "s3://" in line:
            keys = " (DuckDB takes a store's keys from: CREATE PERSISTENT SECRET)"
        return LakeUnreachable(
            f"the lake {self.address} cannot be used: {line}; see that its catalog and its files "
            f"can be reached{keys}, then do it again"
        )

    def call(self, run: Callable[[duckdb.DuckDBPyConnection], T], wait: float) -> T:
        """Run a transaction of the lake, again for up to ``wait`` seconds while it is in use.

        Raises:
            LakeUnreachable: it failed, and nothing of it is kept.
        """
        until = time.monotonic() + wait
        while True:
            cursor = self.cursor()
            try:
                cursor.execute("BEGIN")
                result = run(cursor)
                cursor.execute("COMMIT")
                return result
            except duckdb.Error as error:
                if not _BUSY.search(str(error)) or time.monotonic() > until:
                    raise self.unreachable(error) from error
                time.sleep(POLL_SECONDS)
            finally:
                with suppress(duckdb.Error):
                    cursor.execute("ROLLBACK")
                cursor.close()

    @contextmanager
    def lock(self, wait: float, bucket: int | None = None) -> Iterator[None]:
        """Keep all others that write to the lake out; a process that dies lets go of it.

        Args:
            wait: Seconds.
            bucket: Keep out only those who build this bucket of memory, or `INDEX`.

        Raises:
            LakeInUse: somebody else kept it for all the time.
        """
        lock = self._file_lock if self.kind == "sqlite" else self._postgres_lock
        with lock(wait, bucket):
            yield

    @contextmanager
    def _file_lock(self, wait: float, bucket: int | None) -> Iterator[None]:
        path = Path(f"{self.place}.lock" if bucket is None else f"{self.place}.buckets/{bucket}")
        try:
            path.parent.mkdir(exist_ok=True)
            lock = FileLock(path, timeout=wait)
            lock.acquire()
        except Timeout as error:
            raise self._in_use(wait) from error
        except OSError as error:
            raise QAgentError(f"cannot write {path}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _postgres_lock(self, wait: float, bucket: int | None) -> Iterator[None]:
        cursor = self.cursor()
        try:
            try:
                cursor.execute("BEGIN")  # PostgreSQL's transaction holds the lock
                until = time.monotonic() + wait
                while not _try_lock(cursor, bucket):
                    if time.monotonic() > until:
                        raise self._in_use(wait)
                    time.sleep(POLL_SECONDS)
            except duckdb.Error as error:
                raise self.unreachable(error) from error
            yield
        finally:
            with suppress(duckdb.Error):
                cursor.execute("ROLLBACK")
            cursor.close()

    def _in_use(self, wait: float) -> LakeInUse:
        return LakeInUse(
            f"the lake {self.address} was written to by others for {wait:.0f} seconds; "
            "wait until they end"
        )


def _normal_data(data: str) -> str:
    """Where files are, as a lake keeps it but for a slash at the end."""
    return data.rstrip("/") if "://" in data else str(Path(data).expanduser().resolve())


def _attach_lake(connection: duckdb.DuckDBPyConnection, statement: str) -> str:
    """Attach a lake, with what a store of objects needs; returns where its files are.

    DuckDB knows the keys of a store from its secrets.
    """
    try:
        connection.execute(statement)
    except duckdb.Error as error:
        if "httpfs" not in str(error):
            raise
        load_extension(connection, "httpfs", "a lake")
        connection.execute(statement)
    data = _data_path(connection)
    if "://" in data:
        load_extension(connection, "httpfs", "a lake")
    return data


def _data_path(lake: duckdb.DuckDBPyConnection) -> str:
    """Where the lake's files are."""
    ((path,),) = lake.execute(
        f"SELECT value FROM ducklake_options('{NAME}') WHERE option_name = 'data_path'"
    ).fetchall()
    return str(path)


def _try_lock(cursor: duckdb.DuckDBPyConnection, bucket: int | None) -> bool:
    key = LOCK if bucket is None else f"{LOCK}, {bucket}"
    settings = "".join(
        f", set_config('{name}', '{value}', true) AS {name}"
        for name, value in session_settings().items()
    )
    query = literal(f"SELECT pg_try_advisory_xact_lock({key}) AS is_mine{settings}")
    metadata = literal(f"__ducklake_metadata_{NAME}")
    ((is_mine, *_),) = cursor.execute(f"FROM postgres_query({metadata}, {query})").fetchall()
    return bool(is_mine)
