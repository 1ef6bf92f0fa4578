"""``qagent runs``: what was trained, how it went, and the chains themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .chains import chain_lines
from .common import PLAIN, RUN, emit, json_option, opened, out, plain_table, shop_option, shown

if TYPE_CHECKING:
    from qagent_mlx.runs.run import Run

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
    from qagent_mlx.runs.reader import all_runs, overview

    with opened(shop_path) as shop:
        found = [overview(run) for run in all_runs(shop)]
    if as_json:
        emit({"runs": found})
        return
    if not found:
        out().print("no runs yet; train with: qagent train sft")
        return
    table = plain_table(
        "run",
        "kind",
        "policy",
        "from",
        "steps",
        "reward",
        "seconds",
        "state",
        numbers=("steps", "seconds"),
    )
    for one in found:
        first, last = one["reward_first"], one["reward_last"]
        reward = f"{first:.3f} → {last:.3f}" if first is not None and last is not None else "-"
        table.add_row(
            shown(one["run"]),
            shown(one["kind"]),
            shown(one["policy"]),
            shown(one["base"]),
            f"{one['steps']}/{one['planned']}",
            reward,
            f"{one['seconds']:.0f}",
            one["state"],
        )
    out().print(table)


sql_option = click.option(
    "--sql",
    type=PLAIN,
    metavar="QUERY",
    help="Query the run's files by DuckDB SQL: tables metrics, rollouts, alarms, cases, clicks.",
)


@runs.command()
@click.argument("run", required=False, type=RUN)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a report with plots into one HTML file.",
)
@sql_option
@shop_option
@json_option
def show(
    run: str | None, html: Path | None, sql: str | None, shop_path: Path, as_json: bool
) -> None:
    """Show a run's settings, alarms and curves; the latest run by default."""
    from rich.text import Text

    from qagent_mlx.runs.reader import curves, first_and_last_mean, open_run, overview, rows_of

    with opened(shop_path) as shop:
        record = open_run(shop, run)
    if html is not None:
        _write_page(record, html, as_json)
        return
    if sql is not None:
        _answer(record, sql, as_json)
        return
    rows, alarms, facts = rows_of(record, "metrics"), rows_of(record, "alarms"), overview(record)
    if as_json:
        emit(
            {
                **facts,
                "config": record.config,
                "summary": record.summary,
                "alarms": alarms,
                "metrics": rows,
            }
        )
        return
    console = out()
    console.print(
        shown(
            f"{facts['run']}: {facts['kind']}, {facts['base']} → {facts['policy']}, "
            f"{facts['steps']}/{facts['planned']} steps, {facts['state']}",
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
    for key, points in curves(rows).items():
        values = [value for _, value in points]
        first, last = first_and_last_mean(values)
        table.add_row(
            shown(key.replace("_", " ")), f"{first:.3f}", f"{last:.3f}", sparkline(values, WIDTH)
        )
    console.print(table)
    for alarm in alarms:
        console.print(
            shown(f"alarm at step {alarm['step']} ({alarm['action']}): {alarm['reason']}", "red"),
            soft_wrap=True,
        )
    if record.summary and record.summary.get("best_step"):
        console.print(
            shown(
                f"kept: the policy after step {record.summary['best_step']}, best in "
                f"{settings.get('best_by')} ({record.summary['best_value']:.3f})"
            )
        )
    if record.summary and "validation_reward" in record.summary:
        console.print(
            f"reward of greedy chains on validation cases: "
            f"{record.summary['validation_reward']:.3f}"
        )


@runs.command()
@click.argument("run", required=False, type=RUN)
@click.option("--step", type=click.IntRange(1), help="Only of this step.")
@click.option("--case", type=click.IntRange(0), help="Only of this case.")
@click.option("--user", type=PLAIN, help="Only of this user.")
@click.option("--min-reward", "least", type=float, help="Only with at least this reward.")
@click.option("--max-reward", "most", type=float, help="Only with at most this reward.")
@click.option("--finish", type=PLAIN, help="Only that ended so: recommended, invalid, length …")
@click.option("--best", "order", flag_value="best", help="The highest reward first.")
@click.option("--worst", "order", flag_value="worst", help="The lowest reward first.")
@click.option("-n", default=4, show_default=True, type=click.IntRange(1), help="How many.")
@sql_option
@shop_option
@json_option
def rollouts(
    *,
    run: str | None,
    step: int | None,
    case: int | None,
    user: str | None,
    least: float | None,
    most: float | None,
    finish: str | None,
    order: str | None,
    n: int,
    sql: str | None,
    shop_path: Path,
    as_json: bool,
) -> None:
    """Show chains of a GRPO run with their rewards; the latest ones by default."""
    from qagent_mlx.runs.reader import filter_chains, open_run, rows_of

    with opened(shop_path) as shop:
        record = open_run(shop, run, kind="grpo")
    if sql is not None:
        _answer(record, sql, as_json)
        return
    rows = filter_chains(
        rows_of(record, "rollouts"),
        step=step,
        case=case,
        user=user,
        least=least,
        most=most,
        finish=finish,
    )
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
        console.print("no such chains were kept (see runs show: logged groups)")
    for row in rows:
        console.print(
            shown(
                f"step {row['step']}, case {row['case_id']}, {row['user']}, "
                f"chain {row['member'] + 1}",
                "bold",
            )
        )
        for line in chain_lines(row["chain"]):
            console.print(line)
        console.print(shown(f"recommended: {row['recommended'] or '-'} ({row['finish']})"))
        console.print(shown(f"wanted:      {row['wanted']}"))
        parts = "  ".join(f"{name} {value:.2f}" for name, value in row["rewards"].items())
        console.print(
            shown(f"reward {row['reward']:.3f}  ({parts})  advantage {row['advantage']:+.2f}")
        )
        console.print(shown(f"tokens {row['tokens']}, of which sampled {row['sampled_tokens']}"))
        console.print()


@runs.command()
@click.argument("first", type=RUN)
@click.argument("second", type=RUN)
@shop_option
@json_option
def diff(first: str, second: str, shop_path: Path, as_json: bool) -> None:
    """Compare two runs: settings that differ, and how either went."""
    from qagent_mlx.runs.reader import compare_runs
    from qagent_mlx.runs.run import Run

    with opened(shop_path) as shop:
        found = compare_runs(Run.open(shop, first), Run.open(shop, second))
    if as_json:
        emit(found)
        return
    console = out()
    table = plain_table("setting", first, second)
    for name, values in found["settings"].items():
        table.add_row(shown(name), *(shown("-" if v is None else v) for v in values))
    if found["settings"]:
        console.print(table)
    else:
        console.print("the settings are the same")
    console.print()
    table = plain_table("first → last tenth", first, second, numbers=(first, second))
    for name, pair in found["metrics"].items():
        shares = [f"{p[0]:.3f} → {p[1]:.3f}" if p else "-" for p in pair]
        table.add_row(shown(name.replace("_", " ")), *shares)
    console.print(table)
    console.print(
        f"steps: {found['steps'][0]} and {found['steps'][1]}, the first {found['same_until']} "
        "with the very same numbers"
    )


def _write_page(run: Run, path: Path, as_json: bool) -> None:
    from qagent_mlx.runs.html_report import page
    from qagent_mlx.utils.atomic_files import replacing

    text = page(run)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if as_json:
        emit({"run": run.name, "html": str(path)})
    else:
        out().print(shown(f"wrote {path}; open it in a browser"))


def _answer(run: Run, sql: str, as_json: bool) -> None:
    from qagent_mlx.runs.reader import query

    columns, rows = query(run, sql)
    if as_json:
        emit({"run": run.name, "columns": columns, "rows": rows})
        return
    table = plain_table(*(str(shown(column)) for column in columns))
    for row in rows:
        table.add_row(*(shown("-" if v is None else v) for v in row))
    out().print(table)


def sparkline(values: list[float], width: int) -> str:
    """A curve in one line, from its least to its greatest value."""
    from qagent_mlx.runs.reader import mean

    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    count = min(width, len(finite))
    means = [
        mean(finite[i * len(finite) // count : (i + 1) * len(finite) // count])
        for i in range(count)
    ]
    low, high = min(means), max(means)
    if high - low < 1e-9:
        return BARS[3] * count
    return "".join(BARS[min(7, int((m - low) / (high - low) * 8))] for m in means)
