"""A shop: one folder with the data, index, policies and runs of one store.

    shop.json             version and settings
    shop.duckdb           products, events, rejects, memory
    inventory/            the search index and its manifest
    policies/<name>/<n>/  version n of a policy, see `policy_folders`
    runs/<name>/          training runs

DuckDB lets one process write or many read, so a shop is opened for writing only while
something is written, and training works on copies in its run folder.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import duckdb

from ..errors import QAgentError
from ..utils.atomic_files import clear_leftovers, read_json, write_json
from ..utils.database import fetch_dicts, open_duckdb
from ..utils.settings import check, merge
from ..utils.text import clean
from .config import ShopConfig
from .policy_folders import adopt_loose
from .schema import ADDITIONS, SCHEMA

SHOP_VERSION = 1

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
        self._connection: duckdb.DuckDBPyConnection | None = None

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
        config = config or ShopConfig(name=path.resolve().name)
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
            raise QAgentError(f"there is no shop in {path}; make one there with: qagent init")
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
        _refuse_links(path)
        if not read_only:
            adopt_loose(path / "policies")
        return cls(path, merge(ShopConfig(), values, f"{path}/shop.json"), read_only=read_only)

    def save_config(self) -> None:
        """Write the settings to ``shop.json``."""
        write_json(self.path / "shop.json", {"version": SHOP_VERSION, **asdict(self.config)})

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The database, opened at the first use.

        Raises:
            QAgentError: another process writes to it, or the file is damaged.
        """
        if self._connection is None:
            connection = connect(self.path / "shop.duckdb", read_only=self.read_only)
            try:
                _refuse_views(self.path, connection)
                if not self.read_only:
                    _add_missing_tables(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            if not self.read_only:
                clear_leftovers(self.path)  # such as an unfinished copy of the database
        return self._connection

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Keep what the block does only if it ends without an error."""
        connection = self.connection
        connection.execute("BEGIN")
        try:
            yield connection
        except BaseException:
            self._roll_back(connection)
            raise
        try:
            connection.execute("COMMIT")
        except duckdb.Error as error:
            self._roll_back(connection)
            line = str(error).splitlines()[0]
            raise QAgentError(
                f"{self.path}: the change could not be saved: {line}; nothing of it was kept"
            ) from error

    def _roll_back(self, connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.execute("ROLLBACK")
        except duckdb.Error:
            # DuckDB ended it itself. After a fatal error, such as a full disk, the database has
            # to be opened again, which the next use does.
            self.close()

    def close(self) -> None:
        """Close the database, so that another process may write."""
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


def _refuse_links(path: Path) -> None:
    """Refuse links out of the folder: what is written into a stranger's shop stays in it.

    Raises:
        QAgentError: a part of the shop is a link out of its folder.
    """
    inside = path.resolve()
    parts = [path / name for name in ("shop.json", "shop.duckdb", "shop.duckdb.wal", "inventory")]
    for kind in ("policies", "runs"):
        parts += [path / kind, *((path / kind).iterdir() if (path / kind).is_dir() else ())]
    parts += (path / "policies").glob("*/*")
    for part in parts:
        if part.is_symlink() and not part.resolve().is_relative_to(inside):
            raise QAgentError(
                f"{part} is a link out of the shop's folder; put the files themselves there, or "
                "mount the place there"
            )


def connect(path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection in UTC, with errors that name the remedy."""
    try:
        connection = open_duckdb(path, read_only=read_only)
    except duckdb.IOException as error:
        holder = re.search(r"Conflicting lock is held in (.*?) \(PID (\d+)\)", str(error))
        if holder:
            program, process = Path(holder[1]).name, holder[2]
            # A reader is kept out by a writer only, a writer by readers too.
            doing = "being written to" if read_only else "in use"
            raise QAgentError(
                f"{path.parent} is {doing} by process {process} ({program}); "
                "wait until it ends, or stop it"
            ) from error
        raise _unreadable(path, error) from error
    except duckdb.Error as error:
        if "different configuration" in str(error):
            how = "writing" if read_only else "reading"
            raise QAgentError(
                f"{path.parent} is open for {how} in this process already; close that Shop first"
            ) from error
        raise _unreadable(path, error) from error
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _refuse_views(path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Refuse views and macros: those of a stranger's shop could read any file of ours.

    Raises:
        QAgentError: there is one.
    """
    try:
        names = connection.execute(
            """SELECT view_name FROM duckdb_views()
            WHERE NOT internal AND NOT temporary AND database_name = current_database()
            UNION ALL SELECT function_name FROM duckdb_functions()
            WHERE NOT internal AND database_name = current_database()"""
        ).fetchall()
    except duckdb.Error as error:
        raise _unreadable(path / "shop.duckdb", error) from error
    if names:
        raise QAgentError(
            f"{path}/shop.duckdb holds the view or macro {names[0][0]!r}, and a shop has none; "
            "drop it, or make the shop again with qagent init and ingest"
        )


def _add_missing_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a shop of an older version the tables that were added since."""
    tables = dict(
        connection.execute(
            """SELECT table_name, list(column_name) FROM duckdb_columns()
            WHERE table_name IN ('rejects', 'replaced_products') GROUP BY table_name"""
        ).fetchall()
    )
    is_old = "replaced_products" not in tables or "ingest_id" not in tables.get("rejects", [])
    if "rejects" in tables and is_old:
        connection.execute(f"BEGIN; {ADDITIONS} COMMIT;")


def _unreadable(path: Path, error: duckdb.Error) -> QAgentError:
    return QAgentError(
        f"cannot open {path}: {str(error).splitlines()[0]}; "
        "bring back a copy, or make the shop again with qagent init and ingest"
    )
