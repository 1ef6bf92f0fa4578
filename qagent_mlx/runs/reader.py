"""Read runs: overviews, curves, chosen chains, two runs side by side, and SQL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import duckdb
import msgspec

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import literal, open_duckdb
from ..utils.settings import SettingError
from .records import Alert, Metrics, RolloutRecord, first_and_last_mean
from .run import LOGS, Run, is_number, run_names

T = TypeVar("T")
CURVES = (
    "loss",
    "kl",
    "entropy",
    "clipped",
    "grad_norm",
    "searches",
    "first_line",
    "words",
    "distinct",
    "recommended",
    "dropped_groups",
)  # metrics that are drawn beside the rewards


@dataclass(frozen=True, slots=True)
class RunOverview:
    """A run in one line."""

    run: str
    kind: str
    policy: str
    version: int | None  # of the policy; None where runs named none yet
    base: str
    created: str
    steps: int
    planned: int
    reward_first: float | None
    reward_last: float | None
    seconds: float
    state: str  # finished, unfinished, or the alarm that stopped it


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two runs side by side; pairs are of the first and the second."""

    runs: list[str]
    steps: list[int]
    same_until: int  # first steps that have the very same numbers
    settings: dict[str, list[Any]]  # where they differ
    metrics: dict[str, list[list[float] | None]]  # means of the first and last tenth


def all_runs(shop: Shop) -> list[Run]:
    """The shop's runs, in the order in which they were started."""
    runs = [Run.open(shop, name) for name in run_names(shop)]
    return sorted(runs, key=lambda run: str(run.config.get("created", "")))


def open_run(shop: Shop, name: str | None, kind: str | None = None) -> Run:
    """Open a run by name; without one the latest (of a kind)."""
    if name:
        return Run.open(shop, name)
    for run in reversed(all_runs(shop)):
        if kind is None or run.config.get("kind") == kind:
            return run
    raise QAgentError(f"{shop.path} has no {kind or 'training'} run; train with: qagent train")


def read_metrics(run: Run) -> list[Metrics]:
    """The metrics of each step; a damaged file is a `QAgentError`."""
    return _read(run, "metrics", _metrics)


def read_rollouts(run: Run) -> list[RolloutRecord]:
    """The sampled chains that were kept; a damaged file is a `QAgentError`."""
    return _read(run, "rollouts", lambda row: msgspec.convert(row, RolloutRecord))


def read_alerts(run: Run) -> list[Alert]:
    """The alarms that fired; a damaged file is a `QAgentError`."""
    return _read(run, "alarms", lambda row: msgspec.convert(row, Alert))


def _read(run: Run, log: str, convert: Callable[[Any], T]) -> list[T]:
    try:
        return [convert(row) for row in run.rows(log)]
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or another row
        raise QAgentError(
            f"the run {run.name} is damaged: {run.folder / log}.jsonl: {error}; resume the run, or "
            "delete its folder"
        ) from error


def _metrics(row: Any) -> Metrics:
    """A row of metrics whose numbers can be drawn."""
    if not isinstance(row, dict):
        raise ValueError("a line is no object")
    step = row.get("step")
    if not isinstance(step, int) or abs(step) >= 1 << 53:
        raise ValueError("a line has no step")
    names = ("reward", "seconds", *CURVES)
    for name, value in row.items():
        drawn = name in names or name.startswith(("reward_", "weight_", "eval_"))
        if drawn and value is not None and not is_number(value):
            raise ValueError(f"the {name[:40]} of step {step} is no number")
    return row


def overview(run: Run) -> RunOverview:
    """Summarise a run in one line."""
    summary, config = run.summary or {}, run.config
    history, alerts = read_metrics(run), read_alerts(run)
    rewards = [metrics["reward"] for metrics in history if "reward" in metrics]
    first, last = first_and_last_mean(rewards) if rewards else (None, None)
    stops = [alert for alert in alerts if alert.action == "stop"]
    state = "finished" if summary else "unfinished"
    if not summary and stops and stops[-1].step == len(history):
        state = f"alarm {stops[-1].name}"
    version = config.get("version")
    return RunOverview(
        run=run.name,
        kind=config.get("kind", ""),
        policy=config.get("policy", ""),
        version=version if isinstance(version, int) else None,
        base=config.get("base", ""),
        created=config.get("created", ""),
        steps=len(history),
        planned=len(history) if summary else config.get("train", {}).get("steps", len(history)),
        reward_first=summary.get("reward_first", first),
        reward_last=summary.get("reward_last", last),
        seconds=summary.get("seconds") or sum(m.get("seconds") or 0.0 for m in history),
        state=state,
    )


def curves(history: Sequence[Metrics]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) points of the metrics to draw, by name.

    The reward and its components come first, then evaluations, then what tells of trouble. A
    step that updated nothing lacks some.
    """
    present = {name for metrics in history for name in metrics}
    components = sorted(name for name in present if name.startswith(("reward_", "weight_")))
    evaluations = sorted(name for name in present if name.startswith("eval_"))
    names = ["reward", *components, *evaluations, *CURVES]
    if "reward" in present:
        names.remove("loss")  # a policy gradient's loss says nothing
    return {
        name: [(int(m["step"]), float(m[name])) for m in history if m.get(name) is not None]
        for name in names
        if name in present
    }


def filter_rollouts(
    rollouts: Sequence[RolloutRecord],
    *,
    step: int | None = None,
    case: int | None = None,
    user: str | None = None,
    min_reward: float | None = None,
    max_reward: float | None = None,
    finish: str | None = None,
) -> list[RolloutRecord]:
    """The chains that meet all conditions that are given."""
    low = -math.inf if min_reward is None else min_reward
    high = math.inf if max_reward is None else max_reward
    wanted = {"step": step, "case_id": case, "user": user, "finish": finish}
    return [
        rollout
        for rollout in rollouts
        if low <= rollout.reward <= high
        and all(value in (None, getattr(rollout, name)) for name, value in wanted.items())
    ]


def flatten_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, such as ``train.lora.rank``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat.update(flatten_settings(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def compare_runs(first: Run, second: Run) -> RunComparison:
    """Compare two runs: settings that differ, and how either went."""
    runs = (first, second)
    left, right = (flatten_settings(run.config) for run in runs)
    histories = [read_metrics(run) for run in runs]
    drawn = [curves(history) for history in histories]
    same = 0
    for one, other in zip(*histories, strict=False):
        if _timeless(one) != _timeless(other):
            break
        same += 1
    return RunComparison(
        runs=[run.name for run in runs],
        steps=[len(history) for history in histories],
        same_until=same,
        settings={
            name: [left.get(name), right.get(name)]
            for name in sorted({*left, *right} - {"name", "created", "format"})
            if left.get(name) != right.get(name)
        },
        metrics={
            name: [
                list(first_and_last_mean([v for _, v in c[name]])) if c.get(name) else None
                for c in drawn
            ]
            for name in dict.fromkeys([*drawn[0], *drawn[1]])
        },
    )


def _timeless(metrics: Metrics) -> Metrics:
    return {k: v for k, v in metrics.items() if "seconds" not in k and not k.endswith("_per_s")}


def query(run: Run, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Query a run's files by SQL: tables metrics, rollouts, alarms, cases, clicks.

    Returns column names and rows; errors say what DuckDB said.
    """
    with open_duckdb() as connection:
        try:
            for name in LOGS:
                path = run.folder / f"{name}.jsonl"
                if path.exists() and path.stat().st_size:
                    # The whole file decides the columns: a step without an update lacks some.
                    connection.execute(
                        f"CREATE TABLE {name} AS SELECT * FROM read_json({literal(path)}, "
                        "format = 'newline_delimited', sample_size = -1)"
                    )
            for name in ("cases", "clicks"):
                path = run.folder / f"{name}.parquet"
                if path.exists():
                    connection.execute(
                        f"CREATE VIEW {name} AS SELECT * FROM read_parquet({literal(path)})"
                    )
            result = connection.execute(sql)
            return [column[0] for column in result.description or []], result.fetchall()
        except duckdb.Error as error:
            raise SettingError("sql", f"failed: {str(error).splitlines()[0]}") from error
