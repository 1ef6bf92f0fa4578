"""``qagent runs``: what was trained, how it went, and the chains themselves."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from msgspec import Meta

from .chains import chain_lines
from .console import out, print_table, safe, say
from .groups import Group
from .options import Output, json_option, opened, setting_options, shop_option
from .param_types import FILE, PLAIN, RUN

if TYPE_CHECKING:
    from qagent_mlx.runs.reader import RunComparison
    from qagent_mlx.runs.records import RolloutRecord
    from qagent_mlx.runs.run import Run

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 50

sql_option = click.option(
    "--sql",
    type=PLAIN,
    metavar="QUERY",
    help="Query the run's files by DuckDB SQL: tables metrics, rollouts, alarms, cases, clicks.",
)


@click.group(cls=Group)
def runs() -> None:
    """Look into training runs."""


@runs.command("list")
@shop_option
@json_option
def list_runs(shop_path: Path) -> Output:
    """List the runs, oldest first."""
    from qagent_mlx.runs.reader import all_runs, overview

    with opened(shop_path) as shop:
        overviews = [asdict(overview(run)) for run in all_runs(shop)]
    return Output({"runs": overviews}, lambda: _draw_list(overviews))


def _draw_list(overviews: list[dict[str, Any]]) -> None:
    if not overviews:
        say("no runs yet; train with: qagent train sft")
        return
    rows = []
    for run in overviews:
        first, last = run["reward_first"], run["reward_last"]
        reward = "-" if first is None or last is None else f"{first:.3f} → {last:.3f}"
        rows.append(
            (
                *(run["run"], run["kind"], _policy(run), run["base"]),
                f"{run['steps']}/{run['planned']}",
                reward,
                f"{run['seconds']:.0f}",
                run["state"],
            )
        )
    columns = ("run", "kind", "policy", "from", "steps", "reward", "seconds", "state")
    print_table(columns, rows, numbers=("steps", "seconds"))


def _policy(run: dict[str, Any]) -> str:
    """The policy that a run makes, with its version where that is known."""
    return f"{run['policy']}@{run['version']}" if run["version"] else str(run["policy"])


@runs.command()
@click.argument("run", required=False, type=RUN)
@click.option(
    "--html", type=FILE, metavar="FILE", help="Write a report with plots into one HTML file."
)
@sql_option
@shop_option
@json_option
def show(run: str | None, html: Path | None, sql: str | None, shop_path: Path) -> Output:
    """Show a run's settings, alarms and curves; the latest run by default."""
    from qagent_mlx.runs.findings import findings
    from qagent_mlx.runs.reader import open_run, overview, read_alerts, read_metrics

    with opened(shop_path) as shop:
        record = open_run(shop, run)
    if html is not None:
        return _write_page(record, html)
    if sql is not None:
        return _query(record, sql)
    history = read_metrics(record)
    document = {
        **asdict(overview(record)),
        "config": record.config,
        "summary": record.summary,
        "alarms": [asdict(alert) for alert in read_alerts(record)],
        "findings": findings(history),
        "metrics": history,
    }
    return Output(document, lambda: _draw_run(document))


def _draw_run(run: dict[str, Any]) -> None:
    say(
        f"{run['run']}: {run['kind']}, {run['base']} → {_policy(run)}, "
        f"{run['steps']}/{run['planned']} steps, {run['state']}",
        "bold",
    )
    settings = run["config"].get("train", {})
    for name, value in settings.items():
        nested = value.items() if isinstance(value, dict) else ()
        text = ", ".join(f"{k} {v}" for k, v in nested) or value
        out().print("  ", safe(f"{name.replace('_', ' ')}: {text}"), sep="")
    if not run["metrics"]:
        say("no steps yet")
        return
    out().print()
    for sentence in run["findings"]:
        out().print(safe(sentence))
    _draw_curves(run["metrics"])
    for alarm in run["alarms"]:
        say(f"alarm at step {alarm['step']} ({alarm['action']}): {alarm['reason']}", "red")
    summary = run["summary"] or {}
    if summary.get("best_step"):
        say(
            f"kept: the policy after step {summary['best_step']}, best in "
            f"{settings.get('best_by')} ({summary['best_value']:.3f})"
        )
    if "validation_reward" in summary:
        say(f"reward of greedy chains on validation cases: {summary['validation_reward']:.3f}")


def _draw_curves(metrics: list[dict[str, Any]]) -> None:
    from qagent_mlx.runs.reader import curves
    from qagent_mlx.runs.records import first_and_last_mean

    rows = []
    for key, points in curves(metrics).items():
        values = [value for _, value in points]
        first, last = first_and_last_mean(values)
        name = key.replace("_", " ")
        rows.append((name, f"{first:.3f}", f"{last:.3f}", sparkline(values, WIDTH)))
    out().print()
    print_table(("", "first", "last", ""), rows, numbers=("first", "last"))


@dataclass(frozen=True)
class ChainFilter:
    """Which chains of a run to show, and in which order."""

    step: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="Only chains of this step.")
    ] = None
    case: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Only chains of this case.")
    ] = None
    user: Annotated[str | None, Meta(description="Only chains of this user.")] = None
    least: Annotated[float | None, Meta(description="Only chains with at least this reward.")] = (
        None
    )
    most: Annotated[float | None, Meta(description="Only chains with at most this reward.")] = None
    finish: Annotated[
        str | None,
        Meta(
            description="Only chains that ended like this: recommended, invalid, length and so on."
        ),
    ] = None
    best: Annotated[bool, Meta(description="The highest reward first.")] = False
    worst: Annotated[bool, Meta(description="The lowest reward first.")] = False
    n: Annotated[int, Meta(ge=1, description="Number of chains, at most.")] = 4

    def choose(self, rollouts: list[RolloutRecord]) -> list[RolloutRecord]:
        """The chains to show; the latest ones where no order was asked for."""
        from qagent_mlx.runs.reader import filter_rollouts

        chosen = filter_rollouts(
            rollouts,
            step=self.step,
            case=self.case,
            user=self.user,
            min_reward=self.least,
            max_reward=self.most,
            finish=self.finish,
        )
        if not (self.best or self.worst):
            return chosen[-self.n :]
        return sorted(chosen, key=lambda rollout: rollout.reward, reverse=self.best)[: self.n]


@runs.command()
@click.argument("run", required=False, type=RUN)
@setting_options(ChainFilter, into="chosen", build=True, least="--min-reward", most="--max-reward")
@sql_option
@shop_option
@json_option
def rollouts(run: str | None, chosen: ChainFilter, sql: str | None, shop_path: Path) -> Output:
    """Show chains of a GRPO run with their rewards; the latest ones by default."""
    from qagent_mlx.runs.reader import open_run, read_rollouts

    with opened(shop_path) as shop:
        record = open_run(shop, run, kind="grpo")
    if sql is not None:
        return _query(record, sql)
    chains = chosen.choose(read_rollouts(record))
    document = {"run": record.name, "rollouts": [asdict(chain) for chain in chains]}
    return Output(document, lambda: _draw_rollouts(chains))


def _draw_rollouts(chains: list[RolloutRecord]) -> None:
    console = out()
    if not chains:
        say("no such chains were kept (see runs show: logged groups)")
    for chain in chains:
        say(
            f"step {chain.step}, case {chain.case_id}, {chain.user}, chain {chain.member + 1}",
            "bold",
        )
        for line in chain_lines(chain.chain):
            console.print(line)
        say(f"recommended: {chain.recommended or '-'} ({chain.finish})")
        say(f"wanted:      {chain.wanted}")
        parts = "  ".join(f"{name} {value:.2f}" for name, value in chain.rewards.items())
        say(f"reward {chain.reward:.3f}  ({parts})  advantage {chain.advantage:+.2f}")
        say(f"tokens {chain.tokens}, of which sampled {chain.sampled_tokens}")
        console.print()


@runs.command()
@click.argument("first", type=RUN)
@click.argument("second", type=RUN)
@shop_option
@json_option
def diff(first: str, second: str, shop_path: Path) -> Output:
    """Compare two runs: settings that differ, and how either went."""
    from qagent_mlx.runs.reader import compare_runs
    from qagent_mlx.runs.run import Run

    with opened(shop_path) as shop:
        comparison = compare_runs(Run.open(shop, first), Run.open(shop, second))
    return Output(asdict(comparison), lambda: _draw_comparison(first, second, comparison))


def _draw_comparison(first: str, second: str, comparison: RunComparison) -> None:
    if comparison.settings:
        rows = [
            (name, *("-" if value is None else value for value in values))
            for name, values in comparison.settings.items()
        ]
        print_table(("setting", first, second), rows)
    else:
        say("the settings are the same")
    out().print()
    rows = [
        (
            name.replace("_", " "),
            *(f"{means[0]:.3f} → {means[1]:.3f}" if means else "-" for means in pair),
        )
        for name, pair in comparison.metrics.items()
    ]
    print_table(("first → last tenth", first, second), rows, numbers=(first, second))
    steps = comparison.steps
    say(
        f"steps: {steps[0]} and {steps[1]}, the first {comparison.same_until} with the very "
        "same numbers"
    )


def _write_page(run: Run, path: Path) -> Output:
    from qagent_mlx.runs.html_report import page
    from qagent_mlx.utils.atomic_files import write_text

    write_text(path, page(run))
    document = {"run": run.name, "html": str(path)}
    return Output(document, lambda: say(f"wrote {path}; open it in a browser"))


def _query(run: Run, sql: str) -> Output:
    from qagent_mlx.runs.reader import query

    columns, rows = query(run, sql)

    cells = [["-" if value is None else value for value in row] for row in rows]
    document = {"run": run.name, "columns": columns, "rows": rows}
    return Output(document, lambda: print_table(columns, cells))


def sparkline(values: list[float], width: int) -> str:
    """A curve in one line, from its lowest to its highest value."""
    from statistics import fmean

    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    means = [
        fmean(finite[i * len(finite) // count : (i + 1) * len(finite) // count])
        for i in range(count)
    ]
    low, high = min(means), max(means)
    if high - low < 1e-9:
        return BARS[3] * count
    return "".join(BARS[min(7, int((m - low) / (high - low) * 8))] for m in means)
