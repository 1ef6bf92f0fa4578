"""Memory of a shop that is too big for one machine: users in partitions, one built by each.

    events/part=K/*.parquet   the log of the users whose hash falls on K, read in place
    products.parquet, product_history.parquet, manifest.json
    shared/part=K/            what partition K contributes to all: transitions of its users, hourly
                              counts of searches, first spellings, and when queries were searched
                              by how many people
    memory/part=K.duckdb      the profiles of partition K's users, ready to be served

A user's sessions and transitions depend on that user's events alone, and counts add up. So each
partition contributes its share (`Partitions.contribute`), reads those of the others
(`Partitions.build`), and knows of the whole shop what one machine would. ``events`` in the manifest
may be any pattern that DuckDB reads, with ``{part}`` for the number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from ..errors import QAgentError
from ..protocol.config import SECTIONS
from ..shop.config import MemoryConfig
from ..shop.shop import Shop
from ..shop.traces import note_export
from ..types import Profile
from ..utils.atomic_files import read_json, replacing, write_json
from ..utils.database import append_rows, literal, open_duckdb, write_parquet
from ..utils.settings import merge
from . import shop_tables
from .profile import Memory
from .ranker import MemoryRanker
from .sql import sql
from .store import MemoryStore, fingerprint
from .types import CountTokens, Moment

FORMAT = 1
CONTRIBUTED = (*shop_tables.TRANSITIONS, "hourly", "spellings", "voices")


@dataclass(frozen=True)
class SplitReport:
    """What `split` wrote: how many events are in each partition."""

    folder: str
    parts: int
    events: list[int]


@dataclass(frozen=True)
class BuildReport:
    """What one process of `build_all` built: partitions, and users with a profile in them."""

    rank: int
    size: int
    parts: list[int]
    users: int


def part_of(user: str, parts: int) -> int:
    """The partition that a user is in: the same on every machine and with every DuckDB."""
    return int(hashlib.md5(user.encode()).hexdigest()[:8], 16) % parts


def split(shop: Shop, folder: Path, parts: int) -> SplitReport:
    """Write a shop's log in partitions, with what else building needs, into an empty folder."""
    if parts < 1:
        raise QAgentError("choose at least one partition")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise QAgentError(f"{folder} is not empty; choose a new folder for the partitions")
    connection = shop.connection
    connection.execute("CREATE OR REPLACE TEMP TABLE placed (user_id VARCHAR, part INTEGER)")
    users = connection.execute("SELECT DISTINCT user_id FROM events").fetchall()
    append_rows(connection, "placed", ((user, part_of(user, parts)) for (user,) in users))
    counts = []
    for part in range(parts):
        events = f"""SELECT e.* FROM events e SEMI JOIN (FROM placed WHERE part = {part})
            USING (user_id) ORDER BY user_id, ts, event_id"""
        place = folder / "events" / f"part={part}" / "events.parquet"
        counts.append(write_parquet(connection, events, place))
    for name in ("products", "product_history"):
        write_parquet(connection, f"FROM {name}", folder / f"{name}.parquet")
    note_export(shop.path, folder)
    # The manifest comes last: a folder without it is no set of partitions yet.
    manifest = {
        "format": FORMAT,
        "parts": parts,
        "events": "events/part={part}/*.parquet",
        "config": asdict(shop.config.memory),
        "line_worth": MemoryRanker.of_shop(shop).to_json(),
    }
    write_json(folder / "manifest.json", manifest)
    return SplitReport(str(folder), parts, counts)


class Partitions:
    """Builds partitions, and serves those that are built. A context manager."""

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
        self.ranker = MemoryRanker.from_json(manifest["line_worth"])
        self._events: str = manifest["events"]
        self._memories: dict[int, Memory] = {}

    def contribute(self, part: int) -> None:
        """Write what one partition contributes to all; needs its own events only."""
        with open_duckdb() as connection:
            self._create_views(connection, part)
            for name in ("goods", "hourly", "spellings"):
                shop_tables.create(connection, name, self.config)
            shop_tables.create_transitions(connection)
            connection.execute(f"CREATE TABLE voices AS {sql('voices', which='true')}")
            for name in CONTRIBUTED:
                write_parquet(connection, f"FROM {name}", self._contribution(part, name))
            ((end,),) = connection.execute("SELECT max(ts) FROM events").fetchall()
        write_json(
            self._contribution(part, "end", "json"),
            {"end": end.isoformat() if end else "", "memory": fingerprint(self.config)},
        )

    def build(self, part: int) -> int:
        """Store the profiles of one partition's users; returns how many there are.

        A `QAgentError` if a partition has not contributed yet, or by another version.
        """
        end = self._log_end()
        self.close()
        with replacing(self._database(part)) as path:
            path.unlink()  # DuckDB creates its files itself
            with open_duckdb(path) as connection:
                connection.execute("CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR)")
                self._create_views(connection, part)
                shop_tables.create(connection, "goods", self.config)
                shop_tables.create_catalog_words(connection)
                for name in CONTRIBUTED:
                    # In order of the partitions, without a column for them.
                    paths = [literal(self._contribution(p, name)) for p in range(self.parts)]
                    rows = f"FROM read_parquet([{', '.join(paths)}], hive_partitioning = false)"
                    if name == "spellings":
                        rows = f"""SELECT query_key, arg_min(query, (ts, event_id)) AS query,
                            min(ts) AS ts, arg_min(event_id, (ts, event_id)) AS event_id
                            {rows} GROUP BY query_key"""
                    connection.execute(f"CREATE TABLE {name} AS {rows}")
                if self.config.swing:
                    shop_tables.create(connection, "swing", self.config)
                shop_tables.create_wordings(connection)
                return MemoryStore(connection, self.config).build_profiles(end)

    def _log_end(self) -> datetime | None:
        """The last event of all partitions, which must have contributed by this version."""
        paths = [self._contribution(part, "end", "json") for part in range(self.parts)]
        written = [read_json(path, "a partition") if path.exists() else {} for path in paths]
        current = fingerprint(self.config)
        missing = [str(part) for part, end in enumerate(written) if not end]
        older = [str(p) for p, end in enumerate(written) if end and end.get("memory") != current]
        if missing or older:
            why = "not contributed" if missing else "contributed by another version"
            raise QAgentError(
                f"partition {', '.join(missing or older)} of {self.folder} has {why}; "
                "run qagent memory build with the same version on every machine"
            )
        ends = [datetime.fromisoformat(end["end"]) for end in written if end["end"]]
        return max(ends, default=None)

    def _contribution(self, part: int, name: str, suffix: str = "parquet") -> Path:
        return self.folder / "shared" / f"part={part}" / f"{name}.{suffix}"

    def _database(self, part: int) -> Path:
        return self.folder / "memory" / f"part={part}.duckdb"

    def _create_views(self, connection: duckdb.DuckDBPyConnection, part: int) -> None:
        """Create ``events`` and the catalog as views of the files."""
        events = self._events.format(part=part)
        events = literal(events if "://" in events else self.folder / events)
        connection.execute(
            f"""CREATE OR REPLACE TEMP VIEW events AS
            SELECT event_id, user_id, ts, type, query, query_key, product_id, session_id, search_id
            FROM read_parquet({events});
            CREATE OR REPLACE TEMP VIEW products AS
            FROM read_parquet({literal(self.folder / "products.parquet")});
            CREATE OR REPLACE TEMP VIEW product_history AS
            FROM read_parquet({literal(self.folder / "product_history.parquet")})"""
        )

    def memory(self, part: int, count: CountTokens) -> Memory:
        """The memory of one partition's users, which must have been built."""
        if part not in self._memories:
            path = self._database(part)
            if not path.exists():
                raise QAgentError(
                    f"partition {part} of {self.folder} is not built; run: "
                    f"qagent memory build {self.folder}"
                )
            connection = open_duckdb(path, read_only=True)
            self._create_views(connection, part)
            self._memories[part] = Memory(connection, self.config, count, self.ranker)
        return self._memories[part]

    def profiles(
        self,
        moments: Sequence[Moment],
        count: CountTokens,
        sections: Sequence[str] = SECTIONS,
        budget: int | None = None,
    ) -> list[Profile]:
        """As `Memory.profiles`, each user's from the partition that has the user."""
        profiles: dict[int, Profile] = {}
        for part in range(self.parts):
            own = [i for i, m in enumerate(moments) if part_of(m.user_id, self.parts) == part]
            if own:
                memory = self.memory(part, count)
                written = memory.profiles([moments[i] for i in own], sections, budget)
                profiles.update(zip(own, written, strict=True))
        return [profiles[i] for i in range(len(moments))]

    def close(self) -> None:
        """Close the databases."""
        for memory in self._memories.values():
            memory.connection.close()
        self._memories.clear()

    def __enter__(self) -> Partitions:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def build_all(folder: Path) -> BuildReport:
    """Build every partition: alone, or as one rank of ``mlx.launch``, which builds its share."""
    import mlx.core as mx

    group = mx.distributed.init()
    rank, size = group.rank(), group.size()
    with Partitions(folder) as partitions:
        own = range(rank, partitions.parts, size)
        for part in own:
            partitions.contribute(part)
        # Nobody reads before all have written.
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))
        users = sum(partitions.build(part) for part in own)
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))
    return BuildReport(rank, size, list(own), users)
