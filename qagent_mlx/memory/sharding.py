"""Memory of a shop that is too big for one machine: users in partitions, one built by each.

    events/part=K/*.parquet   the log of the users whose hash falls on K, read in place
    products.parquet, product_history.parquet, manifest.json
    shared/part=K/            what partition K tells the others: its searches that led to
                              something, its steps, hourly counts and first spellings
    memory/part=K.duckdb      the profiles of partition K's users, ready to be served

A user's sessions and steps come from that user's events alone, and counts add up. So each
partition makes its share (`contribute`), reads what the others made (`build`), and knows of
the whole shop what one machine would: the union of the partitions is the one big shop.
`events` in the manifest may be any pattern that DuckDB reads, with ``{part}`` for the number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from ..shop.config import MemoryConfig
from ..shop.shop import Shop
from ..types import Profile
from ..utils.atomic_files import read_json, replacing, write_json
from ..utils.database import literal, open_duckdb
from ..utils.settings import merge
from . import shop_statistics, store
from .profile import SECTIONS, Memory
from .ranker import MemoryRanker
from .types import CountTokens, Moment

FORMAT = 1
_SHARED = (*shop_statistics.TRACES, "hourly", "spellings")


def part_of(user: str, parts: int) -> int:
    """Which partition a user is in: the same on every machine and with every DuckDB."""
    return int(hashlib.md5(user.encode()).hexdigest()[:8], 16) % parts


def split(shop: Shop, folder: Path, parts: int) -> dict[str, Any]:
    """Write a shop's log in partitions, with what else building needs.

    Args:
        shop: Read only is enough.
        folder: A new or empty folder.
        parts: How many partitions.

    Returns:
        folder, parts, and events (how many in each partition).

    Raises:
        QAgentError: the folder holds something or cannot be written; there are no parts.
    """
    if parts < 1:
        raise QAgentError("choose at least one partition")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise QAgentError(f"{folder} is not empty; choose a new folder for the partitions")
    connection = shop.connection
    counts = []
    connection.execute("CREATE OR REPLACE TEMP TABLE placed (user_id VARCHAR, part INTEGER)")
    users = connection.execute("SELECT DISTINCT user_id FROM events").fetchall()
    with connection.appender("placed") as appender:
        for (user,) in users:
            appender.append_row(user, part_of(user, parts))
    for part in range(parts):
        with replacing(folder / "events" / f"part={part}" / "events.parquet") as path:
            connection.execute(
                f"""COPY (
                    SELECT e.* FROM events e SEMI JOIN (FROM placed WHERE part = {part})
                    USING (user_id) ORDER BY user_id, ts, event_id)
                TO {literal(path)} (FORMAT parquet)"""
            )
        counts.append(
            connection.execute(f"SELECT count(*) FROM {_events(folder, part)}").fetchall()[0][0]
        )
    for name in ("products", "product_history"):
        with replacing(folder / f"{name}.parquet") as path:
            connection.execute(f"COPY (FROM {name}) TO {literal(path)} (FORMAT parquet)")
    # The manifest comes last: a folder without it is no set of partitions yet.
    write_json(
        folder / "manifest.json",
        {
            "format": FORMAT,
            "parts": parts,
            "events": "events/part={part}/*.parquet",
            "config": asdict(shop.config.memory),
            "line_worth": shop.meta("line_worth", ""),
        },
    )
    return {"folder": str(folder), "parts": parts, "events": counts}


def _events(folder: Path, part: int, pattern: str = "events/part={part}/*.parquet") -> str:
    place = pattern.format(part=part)
    return f"read_parquet({literal(place if '://' in place else folder / place)})"


class Partitions:
    """Builds partitions, and serves those that are built. A context manager.

    Raises:
        QAgentError: the folder holds no partitions, or those of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").exists():
            raise QAgentError(
                f"there are no partitions in {folder}; make them with: "
                f"qagent memory split {folder} --parts N"
            )
        manifest = read_json(self.folder / "manifest.json", f"the partitions {folder}")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise QAgentError(f"the partitions {folder} are of another version; split again")
        self.parts: int = manifest["parts"]
        self.config = merge(MemoryConfig(), manifest["config"], "manifest")
        self.worth = MemoryRanker.of_text(manifest["line_worth"])
        self._pattern: str = manifest["events"]
        self._open: dict[int, duckdb.DuckDBPyConnection] = {}
        self._memories: dict[int, Memory] = {}

    # ------------------------------------------------------------ building

    def contribute(self, part: int) -> None:
        """Make what one partition tells the others; needs its own events only."""
        with open_duckdb() as connection:
            self._view(connection, part)
            self._catalog(connection)
            shop_statistics.make_traces(connection, "TABLE")
            for name in ("hourly", "spellings"):
                connection.execute(f"CREATE TABLE {name} AS {shop_statistics.select(name)}")
            for name in _SHARED:
                with replacing(self._shared(part, name)) as path:
                    connection.execute(f"COPY {name} TO {literal(path)} (FORMAT parquet)")
            ((end,),) = connection.execute("SELECT max(ts) FROM events").fetchall()
        write_json(
            self._shared(part, "end", "json"),
            {"end": end.isoformat() if end else "", "memory": store.fingerprint(self.config)},
        )

    def build(self, part: int) -> int:
        """Store the profiles of one partition's users; every partition has contributed.

        Returns:
            How many users have a profile.

        Raises:
            QAgentError: a partition has not contributed yet, or by another version.
        """
        paths = [self._shared(p, "end", "json") for p in range(self.parts)]
        said = [read_json(path, "a partition") if path.exists() else {} for path in paths]
        now = store.fingerprint(self.config)
        missing = [str(p) for p, one in enumerate(said) if not one]
        older = [str(p) for p, one in enumerate(said) if one and one.get("memory") != now]
        if missing or older:
            why = "not contributed" if missing else "contributed by another version"
            raise QAgentError(
                f"partition {', '.join(missing or older)} of {self.folder} has {why}; "
                "run qagent memory build with the same version on every machine"
            )
        end = max((datetime.fromisoformat(one["end"]) for one in said if one["end"]), default=None)
        target = self._database(part)
        self.close()
        with replacing(target) as path:
            path.unlink()  # DuckDB makes its files itself
            with open_duckdb(path) as connection:
                connection.execute("CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR)")
                self._view(connection, part)
                self._catalog(connection)
                for name in (*shop_statistics.TRACES, "hourly"):
                    connection.execute(f"CREATE TABLE {name} AS FROM {self._all(name)}")
                connection.execute(
                    f"""CREATE TABLE spellings AS
                    SELECT query_key, arg_min(query, (ts, event_id)) AS query, min(ts) AS ts,
                           arg_min(event_id, (ts, event_id)) AS event_id
                    FROM {self._all("spellings")} GROUP BY query_key"""
                )
                if self.config.swing:
                    connection.execute(f"CREATE TABLE swing AS {shop_statistics.select('swing')}")
                shop_statistics.make_wordings(connection, "TABLE")
                return store.build_profiles(connection, self.config, end)

    def _shared(self, part: int, name: str, suffix: str = "parquet") -> Path:
        return self.folder / "shared" / f"part={part}" / f"{name}.{suffix}"

    def _all(self, name: str) -> str:
        # In order of the partitions, without a column for them.
        paths = ", ".join(literal(self._shared(p, name)) for p in range(self.parts))
        return f"read_parquet([{paths}], hive_partitioning = false)"

    def _database(self, part: int) -> Path:
        return self.folder / "memory" / f"part={part}.duckdb"

    def _view(self, connection: duckdb.DuckDBPyConnection, part: int) -> None:
        """``events`` and the catalog, read in place."""
        connection.execute(
            f"""CREATE OR REPLACE TEMP VIEW events AS
            SELECT event_id, user_id, ts, type, query, query_key, product_id, session_id, search_id
            FROM {_events(self.folder, part, self._pattern)};
            CREATE OR REPLACE TEMP VIEW products AS
            FROM read_parquet({literal(self.folder / "products.parquet")});
            CREATE OR REPLACE TEMP VIEW product_history AS
            FROM read_parquet({literal(self.folder / "product_history.parquet")})"""
        )

    def _catalog(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"CREATE TABLE goods AS {shop_statistics.select('goods')}")

    # ------------------------------------------------------------ serving

    def memory(self, part: int, count: CountTokens) -> Memory:
        """The memory of one partition's users.

        Raises:
            QAgentError: it has not been built.
        """
        if part not in self._memories:
            path = self._database(part)
            if not path.exists():
                raise QAgentError(
                    f"partition {part} of {self.folder} is not built; run: "
                    f"qagent memory build {self.folder}"
                )
            connection = open_duckdb(path, read_only=True)
            self._view(connection, part)
            self._open[part] = connection
            self._memories[part] = Memory(connection, self.config, count, self.worth)
        return self._memories[part]

    def profiles(
        self,
        moments: Sequence[Moment],
        count: CountTokens,
        sections: Sequence[str] = SECTIONS,
        budget: int | None = None,
    ) -> list[Profile]:
        """As `Memory.profiles`, each user's from the partition that has the user."""
        made: dict[int, Profile] = {}
        for part in range(self.parts):
            mine = [i for i, m in enumerate(moments) if part_of(m.user_id, self.parts) == part]
            if mine:
                memory = self.memory(part, count)
                found = memory.profiles([moments[i] for i in mine], sections, budget)
                made.update(zip(mine, found, strict=True))
        return [made[i] for i in range(len(moments))]

    def close(self) -> None:
        """Let go of the databases."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()
        self._memories.clear()

    def __enter__(self) -> Partitions:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def build_all(folder: Path) -> dict[str, Any]:
    """Build every partition: alone, or as one rank of ``mlx.launch``, which builds its share.

    Returns:
        rank, size, parts (those built here), users (with a profile here).
    """
    import mlx.core as mx

    group = mx.distributed.init()
    rank, size = group.rank(), group.size()
    users = 0
    with Partitions(folder) as partitions:
        mine = range(rank, partitions.parts, size)
        for part in mine:
            partitions.contribute(part)
        # Nobody reads before all have written.
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))
        for part in mine:
            users += partitions.build(part)
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))
    return {"rank": rank, "size": size, "parts": list(mine), "users": users}
