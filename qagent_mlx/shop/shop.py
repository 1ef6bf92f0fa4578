"""A shop: one folder with the data, index, policies and runs of one store.

    shop.json             version and settings
    shop.duckdb           products, events, rejects, memory
    journal/              what a server has acknowledged and the database does not hold yet
    inventory/            the search index and its manifest
    policies/<name>/<n>/  version n of a policy, see `policy_folders`
    runs/<name>/          training runs
    scenarios/<name>/     the shop as scenarios leave it, see `environment.scenarios`

DuckDB lets one process write or many read, so nobody holds the database for long: it is opened
for writing only while something is written, whoever finds it in use waits for a while, training
works on copies in its run folder, and what runs long (a server, an evaluation) on a snapshot.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import duckdb

from ..errors import QAgentError
from ..utils.atomic_files import clear_leftovers, read_json, write_json
from ..utils.database import fetch_dicts
from ..utils.settings import check, merge
from ..utils.text import clean
from . import journal
from .config import PLACES, ShopConfig, outside_lakes
from .copied import named_snapshot
from .database_file import add_missing_tables, connect, refuse_views
from .handed_over import refuse_foreign_parts, refuse_times
from .hooks import hooks
from .policy_folders import migrate_unversioned
from .schema import ADDITIONS, SCHEMA
from .snapshot import take_snapshot
from .store import Store

log = logging.getLogger("qagent.shop")

SHOP_VERSION = 1
WAIT_SECONDS = 30.0  # for another process to let go of the database
CATCH_UP_SECONDS = 2.0  # the same, to store a journal's entries before reading

_APPLYING = threading.Lock()  # threads of a process may write to the database at the same time
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, kind: str) -> str:
    """Return ``name`` if it can be a folder's name inside the shop; raises QAgentError."""
    if not _NAME.fullmatch(name):
        raise QAgentError(
            f"{name!r} cannot name a {kind}; use letters, digits, dot, dash and underscore"
        )
    return name


class Shop:
    """A shop's folder and its database. Use as a context manager, or call `close`."""

    def __init__(self, path: Path, config: ShopConfig, *, read_only: bool) -> None:
        self.path = path
        self.config = config
        self.read_only = read_only
        self.wait_seconds = WAIT_SECONDS
        self.is_snapshot = False
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._store: Store | None = None

    @classmethod
    def create(cls, path: str | Path, config: ShopConfig | None = None) -> Shop:
        """Create an empty shop in a new or empty folder.

        Raises:
            QAgentError: the folder already holds something, or cannot be written.
            SettingError: a setting has a value that it cannot have.
        """
        path = Path(path)
        if (path / "shop.json").exists():
            raise QAgentError(f"{path} already holds a shop; choose another folder")
        if path.exists() and not path.is_dir():
            raise QAgentError(f"{path} is a file; choose a new folder for the shop")
        if path.exists() and any(path.iterdir()):
            raise QAgentError(f"{path} is not empty; choose a new folder for the shop")
        # A lake is entered on purpose (see `moving`), not with another shop's settings.
        config = outside_lakes(config or ShopConfig(name=path.resolve().name))
        check(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QAgentError(f"cannot make {path}: {error.strerror}") from error
        shop = cls(path, config, read_only=False)
        with shop.transaction() as connection:
            connection.execute(SCHEMA.format(version=SHOP_VERSION) + ADDITIONS)
        # The settings are written last: a folder without them is no shop yet.
        shop.save_config()
        return shop

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = True) -> Shop:
        """Open an existing shop.

        Raises:
            QAgentError: there is no shop, it was made by another version, or it is damaged.
        """
        path = Path(path)
        if not (path / "shop.json").exists():
            raise QAgentError(
                f"there is no shop in {path}; name the folder of yours (`shop_path` or "
                "QAGENT_SHOP), or make one there with: qagent init"
            )
        values = read_json(path / "shop.json", f"the shop {path}")
        if not isinstance(values, dict):
            raise QAgentError(f"the shop {path} is damaged: {path}/shop.json holds no object")
        version = values.pop("version", None)
        if isinstance(version, int) and version > SHOP_VERSION:
            raise QAgentError(
                f"{path} was made by shop version {version}, this program reads version "
                f"{SHOP_VERSION}; run: pip install --upgrade qagent-mlx"
            )
        if version != SHOP_VERSION or isinstance(version, bool):
            raise QAgentError(
                f"{path} was made by shop version {clean(str(version))[:20]}, this program reads "
                f"version {SHOP_VERSION}; make the shop again with qagent init and ingest, or "
                "install the qagent-mlx that made it"
            )
        if not (path / "shop.duckdb").exists():
            raise QAgentError(
                f"the shop {path} has lost its shop.duckdb; make it again with qagent init"
            )
        refuse_foreign_parts(path)
        if not read_only:
            migrate_unversioned(path / "policies")
        return cls(path, merge(ShopConfig(), values, f"{path}/shop.json"), read_only=read_only)

    @classmethod
    def open_copy(cls, path: str | Path) -> Shop:
        """Open copied files of a shop for writing; what is changed in them stays in them.

        Raises:
            QAgentError: as `open`.
        """
        shop = cls.open(path, read_only=False)
        if shop.config.store is not None:
            shop.config = outside_lakes(shop.config)
            shop.write_config()
        return shop

    @property
    def store(self) -> Store:
        """Where the rows are kept.

        Raises:
            QAgentError: the settings name a place that the user has not named.
        """
        if self._store is None:
            self._store = Store() if self.is_snapshot else _open_store(self)
        return self._store

    def save_config(self) -> None:
        """Keep the settings, for all machines that share the shop."""
        self.write_config()
        self.store.settings_saved(self)

    def forget_store(self) -> None:
        """Use the store that the settings name now."""
        self._store = None

    def write_config(self) -> None:
        """Write the settings to ``shop.json``."""
        values = {"version": SHOP_VERSION, **asdict(self.config)}
        for name in PLACES if self.config.store is None else ():
            del values[name]  # which programs of before do not know
        write_json(self.path / "shop.json", values)

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The database, opened at the first use.

        Raises:
            QAgentError: another process writes to it, or the file is damaged.
        """
        if self._connection is None:
            if self.read_only:
                self._catch_up()
            connection = connect(
                self.path / "shop.duckdb",
                read_only=self.read_only or self.is_snapshot,
                wait=self.wait_seconds,
            )
            try:
                refuse_views(self.path, connection)
                refuse_times(self.path, connection)
                if self.is_snapshot:
                    connection = take_snapshot(connection, self.path / "shop.duckdb")
                if not self.read_only:
                    add_missing_tables(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            if not (self.read_only or self.is_snapshot):
                clear_leftovers(self.path)  # such as an unfinished copy of the database
                self.store.pull(self)
                self._apply_journal()
        return self._connection

    def _apply_journal(self) -> None:
        """Store what servers have acknowledged; every writer does it first."""
        if journal.has_files(self.path):
            with _APPLYING:
                hooks().apply_journal(self)

    def _catch_up(self) -> None:
        """Let a reader see what servers have acknowledged and other machines have written.

        Where nobody may write to the file, it sees what the file holds.
        """
        if not (journal.has_entries(self.path) or self.store.is_behind(self)):
            return
        writer = Shop(self.path, self.config, read_only=False)
        writer.wait_seconds = CATCH_UP_SECONDS
        try:
            with writer:
                writer.connection  # noqa: B018  (opening it applies the journal)
                self.config = writer.config  # which others may have changed
        except QAgentError:
            pass  # readers are at work or the folder is read only: a server will store it

    @classmethod
    def snapshot(cls, path: str | Path) -> Shop:
        """Open a copy of a shop as it is now: changes stay there, and nobody has to wait for it.

        Raises:
            QAgentError: as `open`; another process writes to the database for long.
        """
        shop = cls.open(path, read_only=True)
        shop._catch_up()
        shop.forget_store()
        shop.read_only, shop.is_snapshot = False, True
        shop.connection  # noqa: B018  (the moment is now)
        return shop

    @contextmanager
    def transaction(
        self, *, is_counted: bool = True, is_shared: bool = True
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Keep what the block does only if it ends without an error.

        Args:
            is_counted: Whether a server has to notice it (`journal.changes`).
            is_shared: Whether other machines do, see `store`; not where the block changes only
                what each machine derives from the rows. They may go on meanwhile.
        """
        connection = self.connection
        store = self.store if is_shared else Store()
        with store.alone(self):
            store.watch(connection)
            connection.execute("BEGIN")
            try:
                yield connection
                is_elsewhere = store.push(self)
            except BaseException:
                self.roll_back(connection)
                raise
            self._commit(connection, is_elsewhere)
        if is_counted and not self.is_snapshot:
            journal.note_change(self.path)

    def _commit(self, connection: duckdb.DuckDBPyConnection, is_elsewhere: bool) -> None:
        """Commit to the file what may be kept elsewhere already."""
        try:
            connection.execute("COMMIT")
        except duckdb.Error as error:
            self.roll_back(connection)
            line = str(error).splitlines()[0]
            if is_elsewhere:
                log.warning("%s: %s; it follows its store when it is opened again", self.path, line)
                self.close()
                return
            raise QAgentError(
                f"{self.path}: the change could not be saved: {line}; nothing of it was kept"
            ) from error

    @contextmanager
    def reading_file(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The file as it is, for a moment, without what others have written elsewhere."""
        connection = connect(self.path / "shop.duckdb", read_only=True, wait=self.wait_seconds)
        try:
            yield connection
        finally:
            connection.close()

    def roll_back(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Undo what the transaction has changed in the file."""
        try:
            connection.execute("ROLLBACK")
        except duckdb.Error:
            # DuckDB ended it itself. After a fatal error, such as a full disk, the database has
            # to be opened again, which the next use does.
            self.close()

    def close(self) -> None:
        """Close the database, so that another process may write.

        A snapshot is gone then; its next use takes another one.
        """
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def meta(self, key: str, default: str = "") -> str:
        """A value from the ``meta`` table."""
        row = self.connection.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()
        return row[0] if row else default

    def set_meta(self, key: str, value: str) -> None:
        """Set a value in the ``meta`` table."""
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])

    def has_table(self, name: str) -> bool:
        """Whether the database has a table, which a shop of an older version may lack."""
        found = self.connection.execute(
            "SELECT 1 FROM duckdb_tables() WHERE table_name = ? AND NOT temporary", [name]
        )
        return found.fetchone() is not None

    @property
    def lake_snapshot(self) -> int | None:
        """The snapshot of a lake that the rows are of; None of a shop with rows of its own."""
        return named_snapshot(self.connection, self.config.store is not None)

    @property
    def catalog_version(self) -> int:
        """Grows with every change of a product."""
        return int(self.meta("catalog_version", "0"))

    def counts(self) -> dict[str, int]:
        """Numbers of products, events, users, sessions and rejected rows."""
        (counts,) = fetch_dicts(
            self.connection.execute(
                """SELECT (SELECT count(*) FROM products) AS products, count(*) AS events,
                    count(DISTINCT user_id) AS users, count(DISTINCT session_id) AS sessions,
                    (SELECT count(*) FROM rejects) AS rejects FROM events"""
            )
        )
        return counts

    def has_events(self, user: str) -> bool:
        """Whether the log has an event of this user."""
        events = self.connection.execute("SELECT 1 FROM events WHERE user_id = ? LIMIT 1", [user])
        return events.fetchone() is not None

    def end_of_log(self) -> datetime:
        """The moment after the last event, as of which the next recommendation is made.

        Raises:
            QAgentError: the log is empty.
        """
        moment: datetime | None
        ((moment,),) = self.connection.execute(
            "SELECT max(ts) + INTERVAL 1 SECOND FROM events"
        ).fetchall()
        if moment is None:
            raise QAgentError(f"{self.path} has no events; run: qagent ingest events FILE")
        return moment

    def titles(self, products: Sequence[str]) -> list[str]:
        """Titles of products, in order; empty where there is no such product."""
        titles: dict[str, str] = dict(
            self.connection.execute(
                "SELECT product_id, title FROM products WHERE list_contains($ids, product_id)",
                {"ids": list(products)},
            ).fetchall()
        )
        return [titles.get(product, "") for product in products]

    def folder(self, kind: str, name: str) -> Path:
        """``policies/<name>`` or ``runs/<name>``; raises QAgentError for other than plain names."""
        return self.path / kind / check_name(name, {"policies": "policy", "runs": "run"}[kind])

    def names(self, kind: str) -> list[str]:
        """The policies or runs that the shop has, oldest first."""
        folder = self.path / kind
        if not folder.exists():
            return []
        folders = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
        return [p.name for p in sorted(folders, key=lambda p: (p.stat().st_mtime, p.name))]

    def delete(self) -> None:
        """Delete the whole folder."""
        self.close()
        shutil.rmtree(self.path)


def _open_store(shop: Shop) -> Store:
    """The store that a shop's settings name; raises QAgentError as `LakeStore`."""
    if shop.config.store is None:
        return Store()
    from .lake import LakeStore  # most shops are a file alone, and need nothing of it

    return LakeStore(shop)
