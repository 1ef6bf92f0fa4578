"""Export or erase everything that a shop stores about one user.

That is: events, impressions, recommendations, rejected rows, the stored profile with its interest
graph, and in runs the user's cases (profiles included) and sampled chains. A policy that was
trained on a user's cases cannot unlearn them: it is named instead, so that it can be trained again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from .environment.scenario_shop import delete_copies
from .errors import QAgentError
from .ingest.ingest import register_functions
from .memory.inspect import MemoryView
from .memory.store import MemoryStore
from .memory.summarizer import summary_files
from .models.fingerprint import fingerprint
from .policy.registry import by_age
from .policy.shop_memory import SUMMARIES, inspect_memory
from .runs.run import Run, run_lock, run_names
from .shop import journal
from .shop.policy_folders import parse_reference
from .shop.rewriting import rewrite_database
from .shop.shop import Shop
from .shop.traces import Traces, erase_from_files, files_with_traces, known_exports
from .utils.atomic_files import clear_leftovers, read_json
from .utils.database import fetch_dicts, open_duckdb
from .utils.text import clean_id, words

# A rejected row is stored as JSON, or as it was when it could not be read at all.
_IS_REJECT_OF_USER = """CASE WHEN json_valid(raw)
    THEN qa_clean(json_extract_string(raw, '$.user_id')) = $user
    ELSE regexp_matches(raw, '(^|\\W)' || regexp_escape($user) || '(\\W|$)') END"""
# Queries that only this user has typed, in each spelling.
_ONLY_THEIRS = """SELECT DISTINCT query FROM events WHERE user_id = $user AND query_key IN (
    SELECT query_key FROM events WHERE query_key IS NOT NULL
    GROUP BY query_key HAVING count(DISTINCT user_id) = 1)"""
_OTHERS = ("recommendations", "impressions")  # tables in which a user may be shown such a query


# Of a shop's folder: what is erased otherwise, and what holds no texts of users.
_OWN_PLACES = ("runs", "policies", "inventory", SUMMARIES, journal.FOLDER)
_WITHOUT_TEXT = ("inventory", journal.FOLDER)


class UnknownUser(QAgentError):
    """Nothing is stored about a user."""


@dataclass(frozen=True, slots=True)
class PolicyExposure:
    """A stage of a policy's training that a user's cases were part of."""

    policy: str
    stage: str
    run: str
    cases: int
    certain: bool  # False where the run is gone or kept no cases, so that it is only likely
    through: str  # the parent policy that saw the user; empty for the policy itself


@dataclass(frozen=True, slots=True)
class UserData:
    """Everything that a shop and its runs store about a user."""

    user: str
    events: list[dict[str, Any]]
    impressions: list[dict[str, Any]]
    recommendations: list[dict[str, Any]]  # queries that the user was shown
    rejects: list[dict[str, Any]]
    wishes: list[dict[str, Any]]  # what the user wants no more
    memory: MemoryView | None  # profile and graph; None without events
    stored: dict[str, Any] | None  # what profiles are made from
    cases: dict[str, list[dict[str, Any]]]  # by run
    rollouts: dict[str, list[dict[str, Any]]]  # by run
    summaries: list[dict[str, Any]]  # lines that a summarizer wrote
    policies: list[PolicyExposure]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(replace(self, memory=None)) | {
            "memory": self.memory.to_dict() if self.memory else None
        }


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """How much was erased, and the policies that saw the user before."""

    user: str
    events: int
    impressions: int
    recommendations: int
    rejects: int
    wishes: int
    cases: dict[str, int]  # by run
    rollouts: dict[str, int]  # by run
    summaries: int
    queries: int  # that nobody else had typed; they are gone from what others were shown, too
    files: dict[str, int]  # rows erased from other tables in the shop's folder, by file
    remains: list[str]  # files that still hold the id or such a query, or got what was exported
    policies: list[PolicyExposure]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def export_user(shop: Shop, user: str) -> UserData:
    """Collect everything about the user with this id; a shop that is read only is enough."""
    data = _collect(shop, clean_id(user))
    return replace(data, memory=inspect_memory(shop, data.user) if data.events else None)


def _collect(shop: Shop, user: str) -> UserData:
    """Read everything about a user but the profile, which is rendered from it."""
    register_functions(shop.connection)

    def rows(query: str) -> list[dict[str, Any]]:
        return fetch_dicts(shop.connection.execute(query, {"user": user}))

    def of_table(table: str, order: str) -> list[dict[str, Any]]:
        if not shop.has_table(table):  # of an older version
            return []
        return rows(f"SELECT * FROM {table} WHERE user_id = $user ORDER BY {order}")

    stored = None
    if MemoryStore(shop.connection, shop.config.memory).is_current():
        for row in rows("SELECT * FROM profiles WHERE user_id = $user"):
            stored = {
                name: json.loads(value) if isinstance(value, str) and name != "user_id" else value
                for name, value in row.items()
            }
    return UserData(
        user,
        rows("SELECT * FROM events WHERE user_id = $user ORDER BY ts, event_id"),
        of_table("impressions", "ts, position"),
        of_table("recommendations", "ts, recommendation_id, position"),
        rows(f"SELECT * FROM rejects WHERE {_IS_REJECT_OF_USER}"),
        of_table("wishes", "created, wish_id"),
        None,
        stored,
        {run.name: cases for run in _runs(shop) if (cases := _cases(run, user))},
        {run.name: rollouts for run in _runs(shop) if (rollouts := _rollouts(run, user))},
        [read_json(path, "a stored summary") for path in _summaries(shop, user)],
        exposed_policies(shop, user),
    )


def erase_user(shop: Shop, user: str) -> ErasureReport:
    """Delete everything about a user, also from the bytes of the database's file.

    A query that only this user has typed goes from wherever others were shown it, too: from the
    database, from runs, and from tables that somebody has put into the shop's folder. What cannot
    be erased is named: policies that learned from the user, words of a tokenizer, exports.

    Runs come first and the log last, so that it can be called again if it is interrupted. Copies
    for scenarios are deleted whole, and made anew when they are asked for.
    """
    user = clean_id(user)
    _clear_leftovers(shop)
    data = _collect(shop, user)
    traces = _traces(shop, user)
    report = ErasureReport(
        user,
        len(data.events),
        len(data.impressions),
        len(data.recommendations),
        len(data.rejects),
        len(data.wishes),
        {run: len(cases) for run, cases in data.cases.items()},
        {run: len(rollouts) for run, rollouts in data.rollouts.items()},
        len(data.summaries),
        len(traces.keys),
        {},
        [],
        data.policies,
    )
    of_log = (
        *(report.events, report.impressions, report.recommendations),
        *(report.rejects, report.wishes),
    )
    if not any((*of_log, report.cases, report.rollouts, report.summaries)):
        raise UnknownUser(f"nothing is held of {user}; ids are compared letter by letter")
    for run in _runs(shop):
        with run_lock(shop, run.name):
            erase_from_files(run.folder, traces)
    for path in _summaries(shop, user):
        path.unlink()
    erased = erase_from_files(shop.path, traces, _OWN_PLACES)
    delete_copies(shop)
    _delete_rows(shop, user, traces.keys, has_events=bool(report.events))
    rewrite_database(shop)
    left = files_with_traces(shop.path, traces, _WITHOUT_TEXT)
    return replace(
        report,
        files={str(Path(path).relative_to(shop.path)): rows for path, rows in erased.items()},
        remains=[str(path.relative_to(shop.path)) for path in left]
        + [str(path) for path in known_exports(shop.path)],
    )


def _delete_rows(shop: Shop, user: str, keys: Sequence[str], *, has_events: bool) -> None:
    """Delete the user's rows, and those in which others were shown queries of these keys."""
    store = MemoryStore(shop.connection, shop.config.memory)
    with shop.transaction() as connection:
        connection.execute(f"DELETE FROM rejects WHERE {_IS_REJECT_OF_USER}", {"user": user})
        for table in ("impressions", "recommendations", "wishes"):
            connection.execute(f"DELETE FROM {table} WHERE user_id = ?", [user])
        if has_events:
            connection.execute("DELETE FROM events WHERE user_id = ?", [user])
            store.update([user], None)
        if not store.is_current():
            store.drop()  # what no longer follows the log would keep the user
        for table in _OTHERS:
            connection.execute(f"DELETE FROM {table} WHERE query_key IN (SELECT unnest(?))", [keys])


def _traces(shop: Shop, user: str) -> Traces:
    """The user's id and the queries that only this user has typed."""
    rows = shop.connection.execute(_ONLY_THEIRS, {"user": user}).fetchall()
    titles = shop.connection.execute("SELECT title FROM products").fetchall() if rows else []
    common = {word for (title,) in titles for word in words(title)}
    return Traces(user, [query for (query,) in rows], common)


def exposed_policies(shop: Shop, user: str) -> list[PolicyExposure]:
    """The shop's policies whose training a user's cases were part of, oldest stage first.

    A policy that was trained on top of another one has seen what that one saw.
    """
    folders = by_age(shop)
    infos = {
        name: read_json(folder / "policy.json", f"the policy {name}")
        for name, folder in folders.items()
    }
    cases = {run.name: _cases(run, user) for run in _runs(shop)}
    has_events = shop.has_events(user)
    direct: dict[str, list[PolicyExposure]] = {name: [] for name in infos}
    for name, info in infos.items():
        for stage in info.get("trained", []):
            run = stage.get("run", "")
            trained_on = sum(case["split"] != "test" for case in cases.get(run, []))
            if trained_on or (run not in cases and has_events):
                exposure = PolicyExposure(name, stage["stage"], run, trained_on, run in cases, "")
                direct[name].append(exposure)
    exposures = []
    for name, info in infos.items():
        exposures += direct[name]
        parent, visited = _parent(folders, info), {name}
        while parent in infos and parent not in visited:
            exposures += [replace(e, policy=name, through=parent) for e in direct[parent]]
            visited.add(parent)
            parent = _parent(folders, infos[parent])
    distinct = {replace(e, through=""): e for e in reversed(exposures)}
    return list(distinct.values())[::-1]


def _parent(folders: dict[str, Path], info: dict[str, Any]) -> str:
    """The version that a policy stands on; of files that name none, the one with its weights."""
    base: str = info.get("base", "")
    if not base or base in folders:
        return base
    named = [name for name in folders if parse_reference(name)[0] == base]
    same = [n for n in named if fingerprint(folders[n]) == info.get("base_fingerprint")]
    return next(iter([*same, *named]), base)


def _clear_leftovers(shop: Shop) -> None:
    """Remove what killed processes left behind, which may tell of anybody."""
    runs = run_names(shop)
    for name in shop.names("runs"):
        with run_lock(shop, name):  # clears the folder
            if name not in runs:  # its start was killed
                shutil.rmtree(shop.folder("runs", name))
    clear_leftovers(shop.path / SUMMARIES)


def _runs(shop: Shop) -> Iterator[Run]:
    for name in run_names(shop):
        yield Run.open(shop, name)


def _summaries(shop: Shop, user: str) -> list[Path]:
    return summary_files(shop.path / SUMMARIES, user)


def _cases(run: Run, user: str) -> list[dict[str, Any]]:
    path = run.folder / "cases.parquet"
    if not path.exists():
        return []
    try:
        with open_duckdb() as connection:
            return fetch_dicts(
                connection.execute(
                    "SELECT * FROM read_parquet(?) WHERE user_id = ? ORDER BY case_id",
                    [str(path), user],
                )
            )
    except duckdb.Error as error:
        raise QAgentError(f"{path} is damaged; delete the run {run.name} and try again") from error


def _rollouts(run: Run, user: str) -> list[dict[str, Any]]:
    return [row for row in run.rows("rollouts") if row.get("user") == user]
