"""Recommendations for many users into one file, in parts that survive a stop.

The parts lie in a folder beside the file, each written whole or not at all, until the last
one is there. A run that starts again with the same task goes on behind its parts: the
moment is the first run's, and a user's chains do not depend on who else is in the batch, so
the file is the same as that of a run that was never stopped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from ..agent.recommend import Recommender, RecommendRequest, UserRecommendations, agent_answer
from ..errors import QAgentError
from ..live.shown import new_recommendation_id, record_shown
from ..models.fingerprint import fingerprint
from ..shop.shop import Shop
from ..shop.traces import note_export
from ..utils.atomic_files import read_json, replacing, write_json
from ..utils.database import append_rows, literal, open_duckdb
from ..utils.table_files import check_table_name, write_table
from ..utils.text import clean, clean_id
from .config import BulkConfig
from .worker_processes import WorkerPool

DECODE_USERS = 32  # users whose chains decode together; larger batches copy more than they save
MANY_USERS = 300  # fewer are done about as soon as another process has started

_SCHEMA = """CREATE TABLE part (user_id VARCHAR, as_of TIMESTAMP, rank INTEGER, query VARCHAR,
score DOUBLE, chance DOUBLE, votes INTEGER, products VARCHAR[], reason VARCHAR,
recommendation_id VARCHAR)"""


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far a run has come. ``seconds`` and ``fresh`` count this run only."""

    done: int
    users: int
    fresh: int
    seconds: float

    @property
    def left(self) -> float:
        """Seconds that the rest will take at this pace."""
        return (self.users - self.done) * self.seconds / self.fresh if self.fresh else 0.0


@dataclass(frozen=True, slots=True)
class BulkReport:
    """What a run wrote.

    ``empty`` counts users without any recommendation, ``resumed`` users done by an earlier
    run; ``seconds`` and ``users_per_s`` are of this run.
    """

    out: str
    users: int
    recommendations: int
    empty: int
    resumed: int
    seconds: float
    users_per_s: float
    as_of: str
    snapshot: int | None = None  # of a lake; None also where a resumed run saw several

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Part:
    users: list[str]
    path: Path


def read_users(path: Path) -> list[str]:
    """User ids from a file: the column ``user_id`` of a Parquet file, else one a line.

    Raises:
        QAgentError: the file cannot be read, or holds no user.
    """
    if path.suffix == ".parquet":
        with open_duckdb() as connection:
            try:
                rows = connection.execute(
                    f"SELECT user_id::VARCHAR FROM read_parquet({literal(path)})"
                ).fetchall()
            except duckdb.Error as error:
                line = str(error).splitlines()[0]
                raise QAgentError(f"{path}: {line}; it needs a column user_id") from error
        users = [clean_id(user) for (user,) in rows if user]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise QAgentError(f"{path} is no UTF-8 text; write one user id a line") from error
        users = [clean_id(line) for line in lines]
    users = [user for user in users if user]
    if not users:
        raise QAgentError(f"{path} names no user; write one user id a line")
    return list(dict.fromkeys(users))


def all_users(shop: Shop, as_of: datetime | None = None) -> list[str]:
    """Every user with an event before a moment, in order of id."""
    rows = shop.connection.execute(
        "SELECT DISTINCT user_id FROM events WHERE ts < ? ORDER BY user_id",
        [as_of or shop.end_of_log()],
    ).fetchall()
    return [user for (user,) in rows]


def shard_of(users: Sequence[str], number: int, shards: int) -> list[str]:
    """The users of one of several processes, numbered from 1; together they have all."""
    return list(users[number - 1 :: shards])


def default_workers() -> int:
    """Processes for this machine: one a core that this process may use, at most 4; 1 on a GPU."""
    from ..models import backend

    if not backend.on_cpu():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(4, cores or 1))


def launched_shard() -> tuple[int, int] | None:
    """Which of how many processes this is, where ``mlx.launch`` or ``mpirun`` started it."""
    from ..distributed import world as distributed

    if not distributed.started_by_launcher():
        return None
    world = distributed.current_world()
    return (world.rank + 1, world.size) if world.size > 1 else None


def shard_path(path: Path, number: int, shards: int) -> Path:
    """The file of one of several processes that were given the same name."""
    return path.with_name(f"{path.stem}-{number}-of-{shards}{path.suffix}")


def bulk_recommend(
    recommender: Recommender,
    users: Sequence[str],
    out: Path,
    config: BulkConfig | None = None,
    on_progress: Callable[[BulkProgress], None] | None = None,
) -> BulkReport:
    """Recommend to many users and write one row for each recommendation, by the file's ending.

    Args:
        recommender: Its group is the number of chains a user.
        users: Ids, each once.
        out: The .parquet, .jsonl or .csv file: user_id, as_of, rank (from 1), query, score, chance,
            votes, products (ids), reason, and recommendation_id where it is recorded what is shown;
            in the order of ``users`` and rank.
        config: Number of queries, moment, seed and processes, and whether users are shown this.
        on_progress: Called as users are done.

    Raises:
        QAgentError: there is no user, or the file has another ending or cannot be written.
    """
    check_table_name(out)
    if not users:
        raise QAgentError("there is nobody to recommend to; ingest events first, or name users")
    config = config or BulkConfig()
    folder = out.parent / f".{out.name}.parts"
    moment, snapshot = _begin(folder, _task(recommender, users, config), config, recommender.shop)
    parts = [
        _Part(list(users[at : at + config.part]), folder / f"{number:06}.parquet")
        for number, at in enumerate(range(0, len(users), config.part))
    ]
    missing = [part for part in parts if not part.path.exists()]
    resumed = len(users) - sum(len(part.users) for part in missing)
    start = time.perf_counter()

    def report_progress(fresh: int) -> None:
        if on_progress is not None:
            seconds = time.perf_counter() - start
            on_progress(BulkProgress(resumed + fresh, len(users), fresh, seconds))

    report_progress(0)
    _write_parts(recommender, missing, moment, config, report_progress)
    seconds = time.perf_counter() - start
    rows, users_with_rows = _join_parts(folder, parts, out, config.record)
    if config.record:
        _record(recommender, parts)
    shutil.rmtree(folder, ignore_errors=True)
    note_export(recommender.shop.path, out)
    return BulkReport(
        out=str(out),
        users=len(users),
        recommendations=rows,
        empty=len(users) - users_with_rows,
        resumed=resumed,
        seconds=round(seconds, 2),
        users_per_s=round((len(users) - resumed) / max(seconds, 1e-9), 2),
        as_of=moment.isoformat(),
        snapshot=snapshot,
    )


def _units(
    recommender: Recommender, parts: Sequence[_Part], moment: datetime, config: BulkConfig
) -> Iterator[list[RecommendRequest]]:
    """The requests of the parts' users, in batches that decode together."""
    for part in parts:
        for at in range(0, len(part.users), DECODE_USERS):
            profiles = recommender.profiles(part.users[at : at + DECODE_USERS], moment)
            yield recommender.requests(profiles, moment, config.k, config.as_of)


def _write_parts(
    recommender: Recommender,
    parts: Sequence[_Part],
    moment: datetime,
    config: BulkConfig,
    report_progress: Callable[[int], None],
) -> None:
    """Recommend to the users of parts; ``report_progress`` gets the number of users done."""
    done = 0
    users = sum(len(part.users) for part in parts)
    with _open_pool(recommender, config, users) as pool:
        units = _units(recommender, parts, moment, config)
        results = pool.answer_units(recommender, units, config.seed)
        for part in parts:
            recommendations: list[UserRecommendations] = []
            while len(recommendations) < len(part.users):
                recommendations += next(results)
                report_progress(done + len(recommendations))
            ids = [new_recommendation_id() if config.record else None for _ in recommendations]
            _write_part(part.path, recommendations, ids)
            done += len(part.users)


def _open_pool(recommender: Recommender, config: BulkConfig, users: int) -> WorkerPool:
    """The processes beside this one."""
    folder = recommender.policy.folder
    workers = config.workers
    if workers is None:
        workers = default_workers() if users >= MANY_USERS and folder is not None else 1
    if workers > 1 and folder is None:
        raise QAgentError("several workers need a policy that is saved; go on with one worker")
    shop = recommender.shop.path
    # This process begins meanwhile: they take a second to start.
    return WorkerPool(shop, folder or Path(), workers - 1, config.dtype, wait=False)


def _task(recommender: Recommender, users: Sequence[str], config: BulkConfig) -> dict[str, Any]:
    """Everything that the parts depend on."""
    digest = hashlib.sha256("\n".join(users).encode("utf-8", "surrogatepass")).hexdigest()
    folder = recommender.policy.folder
    return {
        "policy": recommender.policy.info.name,
        "weights": fingerprint(folder) if folder is not None else "",
        "group": recommender.group,
        "k": config.k,
        "seed": config.seed,
        "part": config.part,
        "users": digest,
        "as_of": config.as_of.isoformat() if config.as_of else None,
        "record": config.record,
    }


def _begin(
    folder: Path, task: dict[str, Any], config: BulkConfig, shop: Shop
) -> tuple[datetime, int | None]:
    """Create the folder of parts, or go on with it.

    Returns the moment of all parts, and the snapshot of the lake, if all are of the same.
    """
    moment, snapshot = config.as_of or shop.end_of_log(), shop.lake_snapshot
    path = folder / "question.json"
    if path.exists():
        stored = read_json(path, f"the folder {folder}")
        if isinstance(stored, dict) and stored.get("question") == task:
            same = stored.get("snapshot") == snapshot
            return datetime.fromisoformat(stored["moment"]), snapshot if same else None
        # Parts of another task: other users, another policy or other settings.
        shutil.rmtree(folder)
    stored = {"question": task, "moment": moment.isoformat(), "snapshot": snapshot}
    write_json(path, stored)
    return moment, snapshot


def _write_part(
    path: Path, recommendations: Sequence[UserRecommendations], ids: Sequence[str | None]
) -> None:
    with replacing(path) as temporary, open_duckdb() as connection:
        connection.execute(_SCHEMA)
        rows = (
            (
                *(user.user_id, user.as_of, rank, r.query, r.score, r.chance, r.votes),
                *(list(r.products), clean(r.reason), recommendation_id),
            )
            for user, recommendation_id in zip(recommendations, ids, strict=True)
            for rank, r in enumerate(user.recommendations, 1)
        )
        append_rows(connection, "part", rows)
        connection.execute(f"COPY part TO {literal(temporary)} (FORMAT parquet)")


def _record(recommender: Recommender, parts: Sequence[_Part]) -> None:
    """Record that users are shown what parts hold; who has nothing in them is shown nothing."""
    for part in parts:
        with open_duckdb() as connection:
            rows = connection.execute(
                f"""SELECT recommendation_id, user_id, any_value(as_of), list(query ORDER BY rank)
                FROM read_parquet({literal(part.path)}) GROUP BY ALL ORDER BY user_id"""
            ).fetchall()
        answers = [
            agent_answer(recommender.policy, recommendation_id, user, as_of, queries)
            for recommendation_id, user, as_of, queries in rows
        ]
        record_shown(recommender.shop, answers)


def _join_parts(folder: Path, parts: Sequence[_Part], out: Path, record: bool) -> tuple[int, int]:
    """Write the parts as one file; returns its numbers of rows and of users."""
    files = "[" + ", ".join(literal(part.path) for part in parts) + "]"
    with open_duckdb() as connection:
        try:
            connection.execute(f"CREATE VIEW joined AS SELECT * FROM read_parquet({files})")
            columns = "*" if record else "* EXCLUDE (recommendation_id)"
            write_table(connection, f"SELECT {columns} FROM joined", out)
            counts = connection.execute(
                "SELECT count(*), count(DISTINCT user_id) FROM joined"
            ).fetchone()
        except duckdb.Error as error:
            line = str(error).splitlines()[0]
            raise QAgentError(f"{line}; remove {folder} and run the command again") from error
    assert counts is not None
    return counts[0], counts[1]
