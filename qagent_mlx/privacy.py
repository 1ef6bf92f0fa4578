"""What a shop holds of one person: shown as JSON, or taken away.

Held are: events, rejected rows, the stored profile with its interest graph, and in runs the
person's cases (profiles included) and sampled chains. A policy that was trained on a
person's cases cannot unlearn them: it is named instead, so that it can be trained anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from .errors import QAgentError
from .memory.store import MemoryStore
from .memory.summarizer import summary_files
from .policy.registry import policy_names
from .policy.shop_memory import SUMMARIES, inspect_memory
from .runs.run import Run, run_lock, run_names
from .shop.shop import Shop
from .utils.atomic_files import clear_leftovers, read_json, replacing, sync_folder
from .utils.database import literal, open_duckdb


def export_user(shop: Shop, user: str) -> dict[str, Any]:
    """All that is held of a user.

    Args:
        shop: Read only is enough.
        user: An id.

    Returns:
        user, events, rejects, memory (profile and graph; None without events), stored (the
        rows that profiles are made of), cases and rollouts (run -> rows), summaries (lines that
        a summarizer wrote), policies (see `policies_that_saw`).
    """
    events = _dicts(shop, "SELECT * FROM events WHERE user_id = ? ORDER BY ts, event_id", [user])
    stored: list[dict[str, Any]] = []
    if MemoryStore(shop.connection, shop.config.memory).is_current():
        stored = _dicts(shop, "SELECT * FROM profiles WHERE user_id = ?", [user])
    for row in stored:
        for name, value in row.items():
            if isinstance(value, str) and name != "user_id":
                row[name] = json.loads(value)
    return {
        "user": user,
        "events": events,
        "rejects": _dicts(shop, f"SELECT * FROM rejects WHERE {_REJECTED}", [user, user]),
        "memory": inspect_memory(shop, user).to_dict() if events else None,
        "stored": stored[0] if stored else None,
        "cases": {run.name: rows for run in _runs(shop) if (rows := _cases(run.folder, user))},
        "rollouts": {
            run.name: rows
            for run in _runs(shop)
            if (rows := [r for r in run.rows("rollouts") if r.get("user") == user])
        },
        "summaries": [
            read_json(p, "a kept summary") for p in summary_files(shop.path / SUMMARIES, user)
        ],
        "policies": policies_that_saw(shop, user),
    }


def erase_user(shop: Shop, user: str) -> dict[str, Any]:
    """Take away all that is held of a user, also from the bytes of the database's file.

    Runs come first and the log last, so that it can be called again if it is interrupted.

    Args:
        shop: Open for writing.
        user: An id.

    Returns:
        user, events, rejects, summaries, cases and rollouts (run -> how many), policies (see
        `policies_that_saw`; as it was before).

    Raises:
        QAgentError: nothing is held of this user, a run is being trained, or a file cannot
            be written.
    """
    _clear(shop)
    held = _held(shop, user)
    policies = policies_that_saw(shop, user)
    if not any(held.values()):
        raise QAgentError(f"nothing is held of {user}; ids are compared exactly")
    for run in _runs(shop):
        with run_lock(shop, run.name):
            _forget_in_run(run, user)
    for path in summary_files(shop.path / SUMMARIES, user):
        path.unlink()
    store = MemoryStore(shop.connection, shop.config.memory)
    with shop.transaction() as connection:
        connection.execute(f"DELETE FROM rejects WHERE {_REJECTED}", [user, user])
        if held["events"]:
            connection.execute("DELETE FROM events WHERE user_id = ?", [user])
            store.update([user], None)
        if not store.is_current():
            store.drop()  # what no longer follows the log would keep the user
    _rewrite(shop)
    return {"user": user, **held, "policies": policies}


def _clear(shop: Shop) -> None:
    """Remove what killed processes left behind, which may tell of anybody."""
    runs = run_names(shop)
    for name in shop.names("runs"):
        with run_lock(shop, name):  # clears the folder
            if name not in runs:  # its start was killed
                shutil.rmtree(shop.folder("runs", name))
    clear_leftovers(shop.path / SUMMARIES)


def _held(shop: Shop, user: str) -> dict[str, Any]:
    """How much is held: events, rejects, summaries, cases and rollouts (run -> how many)."""
    ((events,),) = shop.connection.execute(
        "SELECT count(*) FROM events WHERE user_id = ?", [user]
    ).fetchall()
    ((rejects,),) = shop.connection.execute(
        f"SELECT count(*) FROM rejects WHERE {_REJECTED}", [user, user]
    ).fetchall()
    cases, rollouts = {}, {}
    for run in _runs(shop):
        if n := len(_cases(run.folder, user)):
            cases[run.name] = n
        if n := sum(1 for row in run.rows("rollouts") if row.get("user") == user):
            rollouts[run.name] = n
    summaries = len(summary_files(shop.path / SUMMARIES, user))
    return {
        "events": events,
        "rejects": rejects,
        "cases": cases,
        "rollouts": rollouts,
        "summaries": summaries,
    }


def policies_that_saw(shop: Shop, user: str) -> list[dict[str, Any]]:
    """The shop's policies whose training a user's cases were part of.

    Returns:
        policy, stage, run and cases for each stage, oldest first; ``certain`` is False where
        the run is gone or kept no cases, so that it can only be supposed. A policy on top of
        one that saw the user has seen them too: its stages name the parent in ``through``.
    """
    infos: dict[str, dict[str, Any]] = {}
    for name in policy_names(shop):
        folder = shop.folder("policies", name)
        infos[name] = read_json(folder / "policy.json", f"the policy {name}")
    kept = {run.name: _cases(run.folder, user) for run in _runs(shop)}
    ((logged,),) = shop.connection.execute(
        "SELECT count(*) FROM events WHERE user_id = ?", [user]
    ).fetchall()
    seen: dict[str, list[dict[str, Any]]] = {}
    for name, info in infos.items():
        found = seen.setdefault(name, [])
        for stage in info.get("trained", []):
            run = stage.get("run", "")
            trained_on = [c for c in kept.get(run, []) if c["split"] != "test"]
            known = run in kept
            if trained_on or (not known and logged):
                found.append(
                    {
                        "policy": name,
                        "stage": stage["stage"],
                        "run": run,
                        "cases": len(trained_on),
                        "certain": known,
                        "through": "",
                    }
                )
    made = []
    for name, info in infos.items():
        made += seen[name]
        parent, passed = info.get("base", ""), {name}
        while parent in infos and parent not in passed:
            made += [{**stage, "policy": name, "through": parent} for stage in seen[parent]]
            passed.add(parent)
            parent = infos[parent].get("base", "")
    unique = {json.dumps({**m, "through": ""}, sort_keys=True): m for m in reversed(made)}
    return list(unique.values())[::-1]


# ---------------------------------------------------------------- the parts

# A rejected row is kept as JSON, or as it was when it could not be read at all.
_REJECTED = """CASE WHEN json_valid(raw) THEN trim(json_extract_string(raw, '$.user_id')) = ?
    ELSE contains(raw, ?) END"""


def _dicts(shop: Shop, query: str, values: list[Any]) -> list[dict[str, Any]]:
    found = shop.connection.execute(query, values)
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _runs(shop: Shop) -> Iterator[Run]:
    for name in run_names(shop):
        yield Run.open(shop, name)


def _cases(folder: Path, user: str) -> list[dict[str, Any]]:
    path = folder / "cases.parquet"
    if not path.exists():
        return []
    try:
        with open_duckdb() as connection:
            found = connection.execute(
                "SELECT * FROM read_parquet(?) WHERE user_id = ? ORDER BY case_id",
                [str(path), user],
            )
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    except duckdb.Error as error:
        raise QAgentError(
            f"{path} is damaged; delete the run {folder.name} and try again"
        ) from error


def _forget_in_run(run: Run, user: str) -> None:
    path = run.folder / "cases.parquet"
    if _cases(run.folder, user):
        with replacing(path) as temporary, open_duckdb() as connection:
            connection.execute(
                f"""COPY (SELECT * FROM read_parquet({literal(path)}) WHERE user_id <> ?)
                TO {literal(temporary)} (FORMAT parquet)""",
                [user],
            )
    rows = list(run.rows("rollouts"))
    kept = [row for row in rows if row.get("user") != user]
    if len(kept) < len(rows):
        with replacing(run.folder / "rollouts.jsonl") as temporary:
            temporary.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept),
                encoding="utf-8",
            )


def _rewrite(shop: Shop) -> None:
    """Copy the database into a new file: deleted rows stay in the old one's blocks."""
    connection = shop.connection
    path = shop.path / "shop.duckdb"
    with replacing(path) as temporary:
        temporary.unlink()  # DuckDB makes its files itself
        ((current,),) = connection.execute("SELECT current_database()").fetchall()
        connection.execute(f"ATTACH {literal(temporary)} AS rewritten")
        connection.execute(f'COPY FROM DATABASE "{current}" TO rewritten')
        connection.execute("DETACH rewritten")
        shop.close()
    Path(f"{path}.wal").unlink(missing_ok=True)
    sync_folder(path.parent)
