"""Reading runs: overviews, curves, chosen chains, two runs side by side, and SQL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import duckdb

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import open_duckdb
from .run import LINES, Run, numeric, run_names

Rows = list[dict[str, Any]]
ORDER = ("step", "reward", "advantage", "tokens")


def all_runs(shop: Shop) -> list[Run]:
    """The shop's runs, in the order in which they were started."""
    found = [Run.open(shop, name) for name in run_names(shop)]
    return sorted(found, key=lambda run: str(run.config.get("created", "")))


def open_run(shop: Shop, name: str | None, kind: str | None = None) -> Run:
    """A run by name; without one the latest (of a kind).

    Raises:
        QAgentError: there is none.
    """
    if name:
        return Run.open(shop, name)
    for run in reversed(all_runs(shop)):
        if kind is None or run.config.get("kind") == kind:
            return run
    raise QAgentError(f"{shop.path} has no {kind or 'training'} run; train with: qagent train")


def rows_of(run: Run, what: str) -> Rows:
    """All rows of one of `runs.LINES`.

    Raises:
        QAgentError: the file is damaged.
    """
    try:
        rows = list(run.rows(what))
        for number, row in enumerate(rows, 1):
            _check_row(what, row, number)
        return rows
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or not such a row
        raise QAgentError(
            f"the run {run.name} is damaged: {run.folder / what}.jsonl: {error}; go on with "
            "qagent train grpo --resume, or delete its folder"
        ) from error


_TOLD = (
    "loss",
    "kl",
    "entropy",
    "clipped",
    "grad_norm",
    "searches",
    "recommended",
    "dropped_groups",
)
# Fields that are read without looking; those of rollouts and alarms are always there.
_TEXTS = {
    "rollouts": ("user", "chain", "finish", "wanted", "recommended"),
    "alarms": ("name", "action", "reason"),
}
_NUMBERS = {"rollouts": ("reward", "advantage")}
_WHOLE = {"rollouts": ("case_id", "member", "tokens", "sampled_tokens")}


def _drawn(row: dict[str, Any]) -> list[str]:
    """The metrics of a row that are shown as numbers."""
    names = ("reward", "seconds", *_TOLD)
    return [n for n in row if n in names or n.startswith(("reward_", "weight_", "eval_"))]


def _whole(value: Any) -> bool:
    """Whether a value is an integer that a float holds exactly, so that it can be drawn."""
    return isinstance(value, int) and abs(value) < 1 << 53


def _check_row(what: str, row: Any, number: int) -> None:
    """Refuse a row that whoever made the run by hand, or damaged it, has changed."""
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no object")

    wrong = [name for name in ("step", *_WHOLE.get(what, ())) if not _whole(row.get(name))]
    wrong += [name for name in _NUMBERS.get(what, ()) if not numeric(row.get(name))]
    wrong += [name for name in _TEXTS.get(what, ()) if not isinstance(row.get(name), str)]
    if what == "metrics":
        wrong += [n for n in _drawn(row) if not (row[n] is None or numeric(row[n]))]
    if what == "rollouts":
        rewards = row.get("rewards")
        if not isinstance(rewards, dict) or not all(map(numeric, rewards.values())):
            wrong.append("rewards")
    if wrong:
        raise ValueError(f"line {number} has no fitting {', '.join(wrong[:3])[:100]}")


def overview(run: Run) -> dict[str, Any]:
    """A run in one line."""
    summary = run.summary
    rows = rows_of(run, "metrics")
    rewards = [row["reward"] for row in rows if "reward" in row]
    tenth = max(1, len(rewards) // 10)
    values = summary or {}
    alarms = [alarm for alarm in rows_of(run, "alarms") if alarm["action"] == "stop"]
    return {
        "run": run.name,
        "kind": run.config.get("kind", ""),
        "policy": run.config.get("policy", ""),
        "base": run.config.get("base", ""),
        "created": run.config.get("created", ""),
        "steps": len(rows),
        "planned": len(rows) if summary else run.config.get("train", {}).get("steps", len(rows)),
        "reward_first": values.get("reward_first", mean(rewards[:tenth]) if rewards else None),
        "reward_last": values.get("reward_last", mean(rewards[-tenth:]) if rewards else None),
        "seconds": values.get("seconds") or sum(row.get("seconds") or 0.0 for row in rows),
        "state": "finished"
        if summary
        else f"alarm {alarms[-1]['name']}"
        if alarms and alarms[-1]["step"] == len(rows)
        else "unfinished",
    }


def curves(rows: Rows) -> dict[str, list[tuple[int, float]]]:
    """Which metrics to draw, as (step, value): the reward and its components, evaluations, then
    what tells of trouble. A step without signal lacks some.
    """
    present = {key for row in rows for key in row}
    parts = sorted(key for key in present if key.startswith(("reward_", "weight_")))
    evaluated = sorted(key for key in present if key.startswith("eval_"))
    names = ["reward", *parts, *evaluated, *_TOLD]
    if "reward" in present:
        names.remove("loss")  # of a policy gradient it says nothing
    return {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name) is not None]
        for name in names
        if name in present
    }


def first_and_last_mean(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and the last tenth."""
    tenth = max(1, len(values) // 10)
    return mean(values[:tenth]), mean(values[-tenth:])


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def filter_chains(
    rows: Rows,
    *,
    step: int | None = None,
    case: int | None = None,
    user: str | None = None,
    least: float | None = None,
    most: float | None = None,
    finish: str | None = None,
) -> Rows:
    """The chains that fit: of a step, case or user, with a reward in a range, that ended so."""
    return [
        row
        for row in rows
        if (step is None or row["step"] == step)
        and (case is None or row["case_id"] == case)
        and (user is None or row["user"] == user)
        and (least is None or row["reward"] >= least)
        and (most is None or row["reward"] <= most)
        and (finish is None or row["finish"] == finish)
    ]


def flatten_settings(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings as ``train.lora.rank`` → value."""
    made: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            made.update(flatten_settings(value, f"{before}{name}."))
        else:
            made[before + name] = value
    return made


def compare_runs(a: Run, b: Run) -> dict[str, Any]:
    """Two runs side by side.

    Returns:
        ``settings``: name → values, where they differ; ``metrics``: name → first and last tenth
        of either; ``steps``; ``same_until``: how many first steps have the very same numbers.
    """
    skipped = ("name", "created", "format")
    left, right = (
        {k: v for k, v in flatten_settings(r.config).items() if k not in skipped} for r in (a, b)
    )
    rows = [rows_of(a, "metrics"), rows_of(b, "metrics")]
    drawn = [curves(r) for r in rows]
    names = [*drawn[0], *(n for n in drawn[1] if n not in drawn[0])]
    same = 0
    for one, other in zip(*rows, strict=False):
        if _timeless(one) != _timeless(other):
            break
        same += 1
    return {
        "runs": [a.name, b.name],
        "steps": [len(r) for r in rows],
        "same_until": same,
        "settings": {
            name: [left.get(name), right.get(name)]
            for name in sorted({*left, *right})
            if left.get(name) != right.get(name)
        },
        "metrics": {
            name: [
                list(first_and_last_mean([v for _, v in d[name]])) if d.get(name) else None
                for d in drawn
            ]
            for name in names
        },
    }


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if "seconds" not in k and not k.endswith("_per_s")}


def query(run: Run, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """A run's files as tables: metrics, rollouts, alarms, cases, clicks.

    Returns:
        Column names and rows.

    Raises:
        QAgentError: the SQL is wrong or a file is damaged; says what DuckDB said.
    """
    with open_duckdb() as connection:
        try:
            for name in LINES:
                path = run.folder / f"{name}.jsonl"
                if path.exists() and path.stat().st_size:
                    # The whole file decides the columns: a step without signal lacks some.
                    connection.execute(
                        f"CREATE TABLE {name} AS SELECT * FROM read_json(?, "
                        "format = 'newline_delimited', sample_size = -1)",
                        [str(path)],
                    )
            for name in ("cases", "clicks"):
                path = run.folder / f"{name}.parquet"
                if path.exists():
                    connection.execute(
                        f"CREATE VIEW {name} AS SELECT * FROM "
                        f"read_parquet('{str(path).replace(chr(39), chr(39) * 2)}')"
                    )
            answer = connection.execute(sql)
            columns = [column[0] for column in answer.description or []]
            return columns, answer.fetchall()
        except duckdb.Error as error:
            raise QAgentError(f"--sql: {str(error).splitlines()[0]}") from error
