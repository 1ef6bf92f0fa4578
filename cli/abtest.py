"""``qagent abtest``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from .console import note, out, print_table, safe
from .options import Output, json_option, opened, shop_option
from .param_types import MOMENT, SYSTEM

NAMES = {"ctr": "CTR", "cvr": "guided CVR", "orders": "orders a row", "revenue": "revenue a row"}


@click.command()
@click.option("--control", required=True, type=SYSTEM, metavar="A", help="What shoppers see now.")
@click.option("--treatment", required=True, type=SYSTEM, metavar="B", help="What they could see.")
@click.option("--users", default=500, show_default=True, type=click.IntRange(2), help="Shoppers.")
@click.option(
    "--visits", default=3, show_default=True, type=click.IntRange(1), help="Of one at most."
)
@click.option("-k", default=5, show_default=True, type=click.IntRange(1, 20), help="Queries a row.")
@click.option(
    "--draws",
    default=10,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="How often each visit is lived through, each time with other luck.",
)
@click.option(
    "--detect",
    default=0.03,
    show_default=True,
    type=click.FloatRange(0, 10, min_open=True),
    help="The lift that the sample sizes are for.",
)
@click.option(
    "--test-from",
    type=MOMENT,
    metavar="T",
    help="Visits from this moment on.  [default: where the test cases begin]",
)
@click.option(
    "--group", default=8, show_default=True, type=click.IntRange(1, 256), help="Chains a visit."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the shoppers."
)
@shop_option
@json_option
def abtest(
    *,
    control: str,
    treatment: str,
    users: int,
    visits: int,
    k: int,
    draws: int,
    detect: float,
    test_from: datetime | None,
    group: int,
    seed: int,
    shop_path: Path,
) -> Output:
    """Ask fresh simulated shoppers: do they tap B's queries more than A's, and buy more?

    A and B are policies, baselines (popular, trending, swing …) or an ablation such as
    "grpo (no search)". The shop must be a simulated one (qagent init --sample); it is not
    changed. CTR: taps a row of queries shown; guided CVR: purchases a tap. Each shopper sees
    both, and the test is paired.
    """
    from qagent_mlx.evaluate.abtest import abtest as run
    from qagent_mlx.evaluate.config import AbConfig

    config = AbConfig(users=users, visits=visits, k=k, draws=draws, seed=seed, detect=detect)
    with opened(shop_path) as shop:
        currency = shop.config.currency
        report = run(
            shop, control, treatment, config, test_from=test_from, group=group, on_stage=note
        ).to_dict()
    return Output(report, lambda: draw(report, currency))


def draw(report: dict[str, Any], currency: str) -> None:
    """Print the rates of both arms."""
    console = out()
    detect = report["settings"]["detect"]
    console.print(
        safe(
            f"{report['users']:,} simulated shoppers, {report['rows']:,} visits; "
            f"at {report['same']:.0%} of them both lead to the same"
        )
    )
    needed = f"needed, {detect:+.0%}"
    rows = []
    for name, title in NAMES.items():
        rates = report[name]
        rows.append(
            (
                title,
                _rate(name, rates["control"], currency),
                _rate(name, rates["treatment"], currency),
                _lift(rates),
                "<.001" if rates["p"] < 0.001 else f"{rates['p']:.3f}",
                "-" if rates["needed"] is None else f"{rates['needed']:,}",
            )
        )
    columns = ("", "control", "treatment", "lift [95%]", "p", needed)
    print_table(columns, rows, numbers=columns[1:])
    for arm, tapped in zip(("control", "treatment"), report["tapped"], strict=True):
        most = ", ".join(f"{t['query']} ({t['taps']})" for t in tapped) or "nothing"
        console.print(safe(f"{arm} ({report['arms'][arm]}): most tapped {most}"))
    console.print(
        safe("needed: shoppers in each arm of an unpaired test, for a power of 80 % at 5 %"),
        style="dim",
    )


def _rate(name: str, value: float, currency: str) -> str:
    return f"{currency}{value:,.2f}" if name == "revenue" else f"{value:.2%}"


def _lift(row: dict[str, Any]) -> str:
    if row["lift"] is None:
        return "-"
    return f"{row['lift']:+.1%} [{row['lo']:+.1%}, {row['hi']:+.1%}]"
