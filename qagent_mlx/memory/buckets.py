"""Builds a shop's memory: alone, or in a lake together with all machines that build it.

In a lake users fall into buckets by a hash. Who builds takes a bucket that nobody else builds at
the moment, and publishes it (`published`): the states and transitions of its users, as of the
snapshot of the lake that this machine's file holds. Of a bucket that is published already only
those users are computed again whom something since has concerned. In the end every machine's file
holds all buckets, most of them built by others. What counts over all events (searches by the hour,
how queries were first typed) each machine computes in SQL.

Who dies lets go of the bucket, which another one then builds.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from ..shop.copied import copied_snapshot
from ..shop.lake import LakeStore
from ..shop.lake_catalog import NAME, LakeCatalog, LakeInUse
from ..shop.lake_data import LakeData, open_lake_data
from ..shop.lake_files import scratch
from ..shop.lake_state import known_snapshots
from ..shop.shop import Shop
from ..utils.database import append_rows
from .published import FOLDER, PUBLISHED, TABLES, Manifest, PublishedMemory, relation
from .store import MemoryStore
from .title_kinds import TitleKinds, told_title_kinds

PATIENCE_SECONDS = 600.0  # for a bucket that another machine builds


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """How a shop's memory was built.

    Attributes:
        users: With a stored state.
        computed: Those of them whose state was computed here.
        buckets: Of a lake; 0 for a shop that is a file alone.
        published: Buckets that were published by this machine, now.
        snapshot: Of the lake; None for a file alone.
        title_kinds: How products without a category are named; None where no kinds are.
    """

    users: int
    computed: int
    buckets: int = 0
    published: int = 0
    snapshot: int | None = None
    title_kinds: TitleKinds | None = None


def build_memory(shop: Shop, anew: bool = False) -> MemoryReport:
    """Store the memory of a whole shop, which is open for writing.

    Args:
        anew: Use nothing that was published before.

    Raises:
        QAgentError: the lake does not answer, or its folder cannot be written.
    """
    data = None
    if isinstance(shop.store, LakeStore):
        data = open_lake_data(shop.store.catalog, FOLDER)
    with shop.transaction(is_shared=False) as connection:
        store = MemoryStore(connection, shop.config.memory)
        if data is None:
            users = store.build()
            report = MemoryReport(users, users)
        else:
            assert isinstance(shop.store, LakeStore)
            report = _Builder(shop, shop.store.catalog, data, connection, store).build(anew)
        return replace(report, title_kinds=told_title_kinds(connection, shop.config.memory))


class _Builder:
    """Builds and publishes buckets until this machine's file holds all of them."""

    def __init__(
        self,
        shop: Shop,
        catalog: LakeCatalog,
        data: LakeData,
        connection: duckdb.DuckDBPyConnection,
        store: MemoryStore,
    ) -> None:
        self._catalog, self._wait = catalog, shop.wait_seconds
        self._connection, self._store = connection, store
        self._snapshot = copied_snapshot(connection).snapshot
        ((users,),) = connection.execute("SELECT count(DISTINCT user_id) FROM events").fetchall()
        self._published = PublishedMemory(data, users)
        self._changed: dict[int, set[str] | None] = {}  # by snapshot
        self._refused: set[str] = set()  # published before, where all is to be anew
        self._computed = self._count = 0

    def build(self, anew: bool) -> MemoryReport:
        """Fill the tables of stored memory."""
        self._store.begin()
        ((self._goods,),) = self._connection.execute(
            "SELECT count(*) || '-' || coalesce(sum(hash(g)), 0) FROM goods g"
        ).fetchall()
        self._connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE placed AS
            SELECT user_id, {self._published.bucket_sql("user_id")} AS bucket
            FROM (SELECT DISTINCT user_id FROM events)"""
        )
        number = self._published.buckets
        first = secrets.randbelow(number)  # so that machines seldom meet
        left = [(first + step) % number for step in range(number)]
        if anew:
            self._refused = self._published.folders()
        for wait in (0.0, PATIENCE_SECONDS):
            left = [b for b in left if not self._take(b, wait)]
        for bucket in left:
            self._fill(bucket, None, Path())
        self._published.drop_smaller()
        self._connection.execute("DROP TABLE temp.placed")
        users = self._store.end()
        return MemoryReport(users, self._computed, number, self._count, self._snapshot)

    def _take(self, bucket: int, wait: float) -> bool:
        """Fill a bucket and publish it, unless another machine is at it for all the time."""
        try:
            with self._catalog.lock(wait, bucket), scratch() as folder:
                manifest = self._usable(bucket, folder)
                stale = self._fill(bucket, manifest, folder)
                if manifest is None or (stale and manifest.snapshot < self._snapshot):
                    self._publish(bucket)
        except LakeInUse:
            return False
        return True

    def _usable(self, bucket: int, folder: Path) -> Manifest | None:
        """What is published of a bucket, if it can be brought to this machine's snapshot.

        Its files are in the folder then.
        """
        manifest = self._published.find(bucket)
        if manifest is None or manifest.folder in self._refused:
            return None
        if self._changed_since(manifest.snapshot) is None:
            return None
        ours = (self._store.fingerprint, self._goods)
        is_ours = (manifest.memory, manifest.catalog) == ours
        return manifest if is_ours and self._published.take(bucket, manifest, folder) else None

    def _fill(self, bucket: int, manifest: Manifest | None, folder: Path) -> int:
        """Store a bucket's users, the published ones if nothing has concerned them since.

        The files that the manifest is of are in the folder.

        Returns how many were computed.
        """
        users = self._users(f"SELECT user_id FROM placed WHERE bucket = {bucket}")
        stale = users
        if manifest is not None:
            changed = self._changed_since(manifest.snapshot)
            assert changed is not None
            stale = users & (changed | self._reworded(bucket, folder))
            self._connection.execute("CREATE OR REPLACE TEMP TABLE kept (user_id VARCHAR)")
            append_rows(self._connection, "kept", ((user,) for user in users - stale))
            for name in TABLES:
                self._connection.execute(
                    f"INSERT INTO {name} FROM {relation(folder, name)} "
                    "SEMI JOIN kept USING (user_id)"
                )
            held = self._users("FROM (SELECT user_id FROM profiles SEMI JOIN kept USING (user_id))")
            stale |= users - stale - held  # who came in by a snapshot of between
        self._store.add_users(sorted(stale))
        self._computed += len(stale)
        return len(stale)

    def _users(self, query: str) -> set[str]:
        return {user for (user,) in self._connection.execute(query).fetchall()}

    def _changed_since(self, snapshot: int) -> set[str] | None:
        """Whom changes between a snapshot and this machine's concern; None if nobody can tell."""
        if snapshot not in self._changed:
            self._changed[snapshot] = self._read_changed(snapshot)
        return self._changed[snapshot]

    def _read_changed(self, snapshot: int) -> set[str] | None:
        low, high = sorted((snapshot, self._snapshot))
        if low == high:
            return set()

        def read(lake: duckdb.DuckDBPyConnection) -> tuple[set[str], list[tuple[str, str]]] | None:
            if known_snapshots(lake, [low, high]) < len((low, high)):
                return None
            changes = f"{NAME}.table_changes('{{}}', {low + 1}, {high})"
            rows = lake.execute(f"SELECT DISTINCT user_id FROM {changes.format('events')}")
            users = {user for (user,) in rows.fetchall()}
            states = f"SELECT DISTINCT product_id, ts::VARCHAR FROM {changes}"
            return users, lake.execute(states.format("product_history")).fetchall()

        found = self._catalog.call(read, self._wait)
        if found is None:
            return None
        users, states = found
        if states:
            self._connection.execute(
                "CREATE OR REPLACE TEMP TABLE restated (product_id VARCHAR, ts TIMESTAMP)"
            )
            append_rows(self._connection, "restated", states)
            users |= self._users(
                """SELECT DISTINCT e.user_id FROM events e JOIN restated r
                ON e.product_id = r.product_id AND e.ts >= r.ts"""
            )
        return users

    def _reworded(self, bucket: int, folder: Path) -> set[str]:
        """A bucket's users who searched a query that was typed otherwise at first, as known now."""
        return self._users(
            f"""SELECT DISTINCT e.user_id FROM events e
            SEMI JOIN (FROM placed WHERE bucket = {bucket}) USING (user_id)
            WHERE query_key IN (
                SELECT w.query_key FROM {relation(folder, "wordings")} w
                LEFT JOIN spellings s USING (query_key) WHERE s.query IS DISTINCT FROM w.query)"""
        )

    def _publish(self, bucket: int) -> None:
        own = f"SEMI JOIN (FROM placed WHERE bucket = {bucket}) USING (user_id)"
        rows = {name: f"FROM {name} {own} ORDER BY user_id" for name in TABLES}
        rows["wordings"] = f"""FROM (SELECT query_key, query FROM spellings
            WHERE query_key IN (SELECT query_key FROM events {own})) ORDER BY query_key"""
        assert set(rows) == set(PUBLISHED)
        manifest = Manifest(self._snapshot, self._store.fingerprint, self._goods, "", {})
        self._published.publish(self._connection, bucket, rows, manifest)
        self._count += 1
        if not self._is_known():
            self._published.withdraw(bucket)  # somebody was forgotten meanwhile

    def _is_known(self) -> bool:
        """Whether the lake still has this machine's snapshot: forgetting drops those of before."""
        return self._catalog.call(
            lambda lake: known_snapshots(lake, [self._snapshot]) == 1, self._wait
        )
