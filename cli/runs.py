"""``qagent runs``: what was trained, how it went, and the chains themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .chains import chain_lines
from .common import PLAIN, emit, json_option, opened, out, plain_table, shop_option, shown

if TYPE_CHECKING:
    from qagent_mlx.shop import Shop
    from qagent_mlx.train.runs import Run

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 50


@click.group()
def runs() -> None:
    """Look into training runs."""


@runs.command("list")
@shop_option
@json_option
def list_runs(shop_path: Path, as_json: bool) -> None:
    """List the runs, oldest first."""
    with opened(shop_path) as shop:
        found = [_overview(run) for run in all_runs(shop)]
    if as_json:
        emit({"runs": found})
        return
    if not found:
        out().print("no runs yet; train with: qagent train sft")
        return
    table = plain_table("run", "kind", "policy", "from", "steps", "reward", "seconds", "state",
                        numbers=("steps", "seconds"))  # fmt: skip
    for one in found:
        first, last = one["reward_first"], one["reward_last"]
        reward = f"{first:.3f} → {last:.3f}" if first is not None and last is not None else "-"
        table.add_row(
            shown(one["run"]), shown(one["kind"]), shown(one["policy"]), shown(one["base"]),
            f"{one['steps']}/{one['planned']}", reward, f"{one['seconds']:.0f}", one["state"],
        )  # fmt: skip
    out().print(table)


@runs.command()
@click.argument("run", required=False, type=PLAIN)
@shop_option
@json_option
def show(run: str | None, shop_path: Path, as_json: bool) -> None:
    """Show a run's settings and curves; the latest run by default."""
    from rich.text import Text

    with opened(shop_path) as shop:
        record = _open(shop, run)
        rows = _rows(record, "metrics")
        overview = _overview(record)
    if as_json:
        emit({**overview, "config": record.config, "summary": record.summary, "metrics": rows})
        return
    console = out()
    console.print(
        shown(
            f"{overview['run']}: {overview['kind']}, {overview['base']} → {overview['policy']}, "
            f"{overview['steps']}/{overview['planned']} steps, {overview['state']}",
            "bold",
        )
    )
    settings = dict(record.config.get("train", {}))
    for name, value in settings.items():
        nested = value.items() if isinstance(value, dict) else ()
        text = ", ".join(f"{k} {v}" for k, v in nested) or str(value)
        console.print(Text.assemble("  ", shown(f"{name.replace('_', ' ')}: {text}")))
    if not rows:
        console.print("no steps yet")
        return
    console.print()
    table = plain_table("", "first", "last", "", numbers=("first", "last"))
    for key in _curves(rows):
        values = [float(row[key]) for row in rows if key in row]
        tenth = max(1, len(values) // 10)
        table.add_row(
            shown(key.replace("_", " ")), f"{_mean(values[:tenth]):.3f}",
            f"{_mean(values[-tenth:]):.3f}", sparkline(values, WIDTH),
        )  # fmt: skip
    console.print(table)
    if record.summary and "validation_reward" in record.summary:
        console.print(
            f"reward of greedy chains on validation cases: "
            f"{record.summary['validation_reward']:.3f}"
        )


@runs.command()
@click.argument("run", required=False, type=PLAIN)
@click.option("--step", type=click.IntRange(1), help="Only of this step.")
@click.option("--case", type=click.IntRange(0), help="Only of this case.")
@click.option("--best", "order", flag_value="best", help="The highest reward first.")
@click.option("--worst", "order", flag_value="worst", help="The lowest reward first.")
@click.option("-n", default=4, show_default=True, type=click.IntRange(1), help="How many.")
@shop_option
@json_option
def rollouts(
    *, run: str | None, step: int | None, case: int | None, order: str | None, n: int,
    shop_path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Show chains of a GRPO run with their rewards; the latest ones by default."""
    with opened(shop_path) as shop:
        record = _open(shop, run, kind="grpo")
        rows = _rows(record, "rollouts")
    if step is not None:
        rows = [row for row in rows if row["step"] == step]
    if case is not None:
        rows = [row for row in rows if row["case_id"] == case]
    if order is not None:
        rows.sort(key=lambda row: row["reward"], reverse=order == "best")
        rows = rows[:n]
    else:
        rows = rows[-n:]
    if as_json:
        emit({"run": record.name, "rollouts": rows})
        return
    console = out()
    if not rows:
        console.print(
            "no such chains were kept; each step keeps a few groups (see runs show: logged groups)"
        )
    for row in rows:
        console.print(
            shown(
                f"step {row['step']}, case {row['case_id']}, {row['user']}, "
                f"chain {row['member'] + 1}", "bold",
            )
        )  # fmt: skip
        for line in chain_lines(row["chain"]):
            console.print(line)
        console.print(shown(f"recommended: {row['recommended'] or '-'} ({row['finish']})"))
        console.print(shown(f"wanted:      {row['wanted']}"))
        parts = "  ".join(f"{name} {value:.2f}" for name, value in row["rewards"].items())
        console.print(
            shown(f"reward {row['reward']:.3f}  ({parts})  advantage {row['advantage']:+.2f}")
        )
        console.print()


# ---------------------------------------------------------------- reading runs


def all_runs(shop: Shop) -> list[Run]:
    """The shop's runs, in the order in which they were started."""
    from qagent_mlx.train.runs import Run, run_names

    found = [Run.open(shop, name) for name in run_names(shop)]
    return sorted(found, key=lambda run: str(run.config.get("created", "")))


def _open(shop: Shop, name: str | None, kind: str | None = None) -> Run:
    """A run by name; without one the latest (of a kind)."""
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.train.runs import Run

    if name:
        return Run.open(shop, name)
    for run in reversed(all_runs(shop)):
        if kind is None or run.config.get("kind") == kind:
            return run
    raise QAgentError(f"{shop.path} has no {kind or 'training'} run; train with: qagent train")


def _rows(run: Run, what: str) -> list[dict[str, Any]]:
    from qagent_mlx.errors import QAgentError

    try:
        return list(run.rows(what))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise QAgentError(
            f"the run {run.name} is damaged: {run.folder / what}.jsonl: {error}; go on with "
            "qagent train grpo --resume, or delete its folder"
        ) from error


def _overview(run: Run) -> dict[str, Any]:
    summary = run.summary
    rows = _rows(run, "metrics")
    rewards = [row["reward"] for row in rows if "reward" in row]
    tenth = max(1, len(rewards) // 10)
    values = summary or {}
    return {
        "run": run.name,
        "kind": run.config.get("kind", ""),
        "policy": run.config.get("policy", ""),
        "base": run.config.get("base", ""),
        "created": run.config.get("created", ""),
        "steps": len(rows),
        "planned": len(rows) if summary else run.config.get("train", {}).get("steps", len(rows)),
        "reward_first": values.get("reward_first", _mean(rewards[:tenth]) if rewards else None),
        "reward_last": values.get("reward_last", _mean(rewards[-tenth:]) if rewards else None),
        "seconds": values.get("seconds", sum(row.get("seconds", 0.0) for row in rows)),
        "state": "finished" if summary else "unfinished",
    }


def _curves(rows: list[dict[str, Any]]) -> list[str]:
    """Which metrics to draw: reward and its components, then what tells of trouble."""
    # A step without signal has no update, so the first row may lack some names.
    present = {key for row in rows for key in row}
    components = sorted(key for key in present if key.startswith("reward_"))
    order = ["reward", *components, "loss", "kl", "entropy", "searches", "dropped_groups"]
    if "reward" in present:
        order.remove("loss")
    return [key for key in order if key in present]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def sparkline(values: list[float], width: int) -> str:
    """A curve in one line, from its least to its greatest value."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    count = min(width, len(finite))
    means = [
        _mean(finite[i * len(finite) // count : (i + 1) * len(finite) // count])
        for i in range(count)
    ]
    low, high = min(means), max(means)
    if high - low < 1e-9:
        return BARS[3] * count
    return "".join(BARS[min(7, int((m - low) / (high - low) * 8))] for m in means)
