"""Recommendations for many users into one Parquet file, in parts that survive a stop.

The parts lie in a folder beside the file, each written whole or not at all, until the last
one is there. A run that starts again with the same question goes on behind its parts: the
moment is the first run's, and a user's chains do not depend on who else is in the batch, so
the file is the same as that of a run that was never stopped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from ..agent.recommend import Recommender, RecommendRequest, UserRecommendations
from ..errors import QAgentError
from ..models.fingerprint import fingerprint
from ..shop.shop import Shop
from ..utils.atomic_files import read_json, replacing, write_json
from ..utils.database import literal, open_duckdb
from ..utils.text import clean
from .worker_processes import Pool

PART = 128  # users a part: what a stop can cost
AT_ONCE = 32  # users whose chains decode together; larger batches copy more than they save
FEW = 300  # users that are done about as soon as another process has started

_SCHEMA = """CREATE TABLE part (user_id VARCHAR, as_of TIMESTAMP, rank INTEGER, query VARCHAR,
score DOUBLE, votes INTEGER, products VARCHAR[], reason VARCHAR)"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come. ``seconds`` and ``fresh`` count this run only."""

    done: int
    users: int
    fresh: int
    seconds: float

    @property
    def left(self) -> float:
        """Seconds that the rest will take at this pace."""
        return (self.users - self.done) * self.seconds / self.fresh if self.fresh else 0.0


def read_users(path: Path) -> list[str]:
    """User ids from a file: the column ``user_id`` of a Parquet file, else a line each.

    Raises:
        QAgentError: the file cannot be read, or names nobody.
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
        found = [user for (user,) in rows if user]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise QAgentError(f"{path} is no UTF-8 text; write one user id a line") from error
        found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise QAgentError(f"{path} names no user; write one user id a line")
    return list(dict.fromkeys(found))


def all_users(shop: Shop, as_of: datetime | None = None) -> list[str]:
    """Everybody who did something before a moment, in order of id."""
    before = as_of or shop.end_of_log()
    return [
        user
        for (user,) in shop.connection.execute(
            "SELECT DISTINCT user_id FROM events WHERE ts < ? ORDER BY user_id", [before]
        ).fetchall()
    ]


def shard_of(users: Sequence[str], number: int, shards: int) -> list[str]:
    """The users of one of several processes, numbered from 1; together they have all."""
    return list(users[number - 1 :: shards])


def default_workers() -> int:
    """Processes for this machine: one a core that this process may use, at most 4; 1 on a GPU."""
    from ..utils.runtime import device_name

    if device_name() != "cpu":
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
    k: int = 5,
    as_of: datetime | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    part: int = PART,
    workers: int = 1,
    dtype: str = "",
) -> dict[str, Any]:
    """Recommend to many users and write a row for each recommendation.

    Args:
        recommender: Its group is the number of chains a user.
        users: Ids, each once.
        out: The Parquet file: user_id, as_of, rank (from 1), query, score, votes, products
            (ids), reason; in the order of ``users`` and rank.
        k: Queries a user.
        as_of: As in `Recommender.recommend`.
        seed: Of the sampling.
        on_progress: Called as users are done.
        part: Users a part.
        workers: Processes, this one included; the file does not depend on them.
        dtype: Of the policy's weights in the other processes, as in this one.

    Returns:
        out, users, recommendations, empty (users without any), resumed (users done by an
        earlier run), seconds and users_per_s (of this run), as_of.

    Raises:
        QAgentError: the file cannot be written.
    """
    if not users:
        raise QAgentError("there is nobody to recommend to")
    folder = out.parent / f".{out.name}.parts"
    question = _question(recommender, users, k, as_of, seed, part)
    moment = _begin(folder, question, as_of or recommender.shop.end_of_log())
    parts = [list(users[i : i + part]) for i in range(0, len(users), part)]
    paths = [folder / f"{number:06}.parquet" for number in range(len(parts))]
    done = resumed = sum(
        len(mine) for mine, path in zip(parts, paths, strict=True) if path.exists()
    )
    began = time.perf_counter()

    def tell(more: int) -> None:
        if on_progress is not None:
            fresh = done + more - resumed
            spent = time.perf_counter() - began
            on_progress(Progress(done + more, len(users), fresh, spent))

    tell(0)
    missing = [(mine, path) for mine, path in zip(parts, paths, strict=True) if not path.exists()]

    def units() -> Iterator[list[RecommendRequest]]:
        for mine, _ in missing:
            for at in range(0, len(mine), AT_ONCE):
                profiles = recommender.profiles(mine[at : at + AT_ONCE], moment)
                yield [
                    RecommendRequest(profile, moment, k, recommender.group) for profile in profiles
                ]

    with _pool(recommender, workers, dtype) as pool:
        answers = pool.answer_units(recommender, units(), seed)
        for mine, path in missing:
            rows: list[UserRecommendations] = []
            while len(rows) < len(mine):
                rows += next(answers)
                tell(len(rows))
            _write(path, rows)
            done += len(mine)
    seconds = time.perf_counter() - began
    counted, with_some = _join(folder, paths, out)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "out": str(out),
        "users": len(users),
        "recommendations": counted,
        "empty": len(users) - with_some,
        "resumed": resumed,
        "seconds": round(seconds, 2),
        "users_per_s": round((len(users) - resumed) / max(seconds, 1e-9), 2),
        "as_of": moment.isoformat(),
    }


def _pool(recommender: Recommender, workers: int, dtype: str) -> Pool:
    """The other processes of a run."""
    folder = recommender.policy.folder
    if workers > 1 and folder is None:
        raise QAgentError("several workers need a policy that is saved; go on with one worker")
    return Pool(recommender.shop.path, folder or Path(), workers - 1, dtype)


def _question(
    recommender: Recommender,
    users: Sequence[str],
    k: int,
    as_of: datetime | None,
    seed: int,
    part: int,
) -> dict[str, Any]:
    """What the parts depend on."""
    digest = hashlib.sha256("\n".join(users).encode("utf-8", "surrogatepass")).hexdigest()
    folder = recommender.policy.folder
    return {
        "policy": recommender.policy.info.name,
        "weights": fingerprint(folder) if folder is not None else "",
        "group": recommender.group,
        "k": k,
        "seed": seed,
        "part": part,
        "users": digest,
        "as_of": as_of.isoformat() if as_of else None,
    }


def _begin(folder: Path, question: dict[str, Any], moment: datetime) -> datetime:
    """Make the folder of parts, or go on with it; returns the moment that all parts are of."""
    path = folder / "question.json"
    if path.exists():
        stored = read_json(path, f"the folder {folder}")
        if isinstance(stored, dict) and stored.get("question") == question:
            return datetime.fromisoformat(stored["moment"])
        # Parts of another question: other users, another policy or other settings.
        shutil.rmtree(folder)
    write_json(path, {"question": question, "moment": moment.isoformat()})
    return moment


def _write(path: Path, found: Sequence[UserRecommendations]) -> None:
    with replacing(path) as temporary, open_duckdb() as connection:
        connection.execute(_SCHEMA)
        with connection.appender("part") as appender:
            for one in found:
                for rank, r in enumerate(one.recommendations, 1):
                    appender.append_row(
                        one.user_id,
                        one.as_of,
                        rank,
                        r.query,
                        r.score,
                        r.votes,
                        list(r.products),
                        clean(r.reason),
                    )
        _copy(connection, "part", temporary)


def _join(folder: Path, paths: Sequence[Path], out: Path) -> tuple[int, int]:
    """Write the parts as one file; returns its rows and users."""
    files = "[" + ", ".join(literal(p) for p in paths) + "]"
    with replacing(out) as temporary, open_duckdb() as connection:
        try:
            connection.execute(f"CREATE VIEW joined AS SELECT * FROM read_parquet({files})")
            _copy(connection, "joined", temporary)
            row = connection.execute(
                "SELECT count(*), count(DISTINCT user_id) FROM joined"
            ).fetchone()
        except duckdb.Error as error:
            line = str(error).splitlines()[0]
            raise QAgentError(f"{line}; remove {folder} and run the command again") from error
    assert row is not None
    return row[0], row[1]


def _copy(connection: duckdb.DuckDBPyConnection, table: str, path: Path) -> None:
    connection.execute(f"COPY (FROM {table}) TO {literal(path)} (FORMAT parquet)")
