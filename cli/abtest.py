"""``qagent abtest``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from qagent_mlx.evaluate.config import AbConfig
from qagent_mlx.utils.settings import merge

from .console import note, print_table, say
from .options import Changes, Output, json_option, opened, setting_options, shop_option
from .param_types import MOMENT, SYSTEM

RATES = {"ctr": "CTR", "cvr": "guided CVR", "orders": "orders a row", "revenue": "revenue a row"}


@click.command()
@click.option(
    "--control", required=True, type=SYSTEM, metavar="A", help="System that shoppers see now."
)
@click.option(
    "--treatment",
    required=True,
    type=SYSTEM,
    metavar="B",
    help="System that shoppers would see instead.",
)
@setting_options(AbConfig, into="changes")
@click.option(
    "--test-from",
    type=MOMENT,
    metavar="T",
    help="Visits from this moment on.  [default: where the test cases begin]",
)
@click.option(
    "--group",
    default=8,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Chains for each visit.",
)
@shop_option
@json_option
def abtest(
    control: str,
    treatment: str,
    changes: Changes,
    test_from: datetime | None,
    group: int,
    shop_path: Path,
) -> Output:
    """Ask fresh simulated shoppers: do they tap B's queries more than A's, and buy more?

    A and B are policies, baselines (popular, trending, swing …), an ablation such as
    "grpo (no search)", or what knows the shoppers' minds: oracle, oracle-taps (for the most
    taps), oracle-lines (with lines of memory alone). The shop must be a simulated one (qagent
    init --sample); it is not changed. CTR: taps a row of queries shown; guided CVR: purchases
    a tap. Each shopper sees both, and the test is paired.
    """
    from qagent_mlx.evaluate.abtest import abtest as run

    config = merge(AbConfig(), changes)
    with opened(shop_path) as shop:
        currency = shop.config.currency
        report = run(
            shop, control, treatment, config, test_from=test_from, group=group, on_stage=note
        ).to_dict()
    return Output(report, lambda: draw_abtest(report, currency))


def draw_abtest(report: dict[str, Any], currency: str) -> None:
    """Print the rates of both arms."""
    say(
        f"{report['users']:,} simulated shoppers, {report['rows']:,} visits; "
        f"at {report['same']:.0%} of them both lead to the same"
    )
    rows = []
    for name, title in RATES.items():
        rate = report[name]
        money = name == "revenue"
        values = [rate["control"], rate["treatment"]]
        lift = (
            f"{rate['lift']:+.1%} [{rate['lo']:+.1%}, {rate['hi']:+.1%}]"
            if rate["lift"] is not None
            else "-"
        )
        rows.append(
            (
                title,
                *(f"{currency}{value:,.2f}" if money else f"{value:.2%}" for value in values),
                lift,
                "<.001" if rate["p"] < 0.001 else f"{rate['p']:.3f}",
                "-" if rate["needed"] is None else f"{rate['needed']:,}",
            )
        )
    needed = f"needed, {report['settings']['detect']:+.0%}"
    columns = ("", "control", "treatment", "lift [95%]", "p", needed)
    print_table(columns, rows, numbers=columns[1:])
    for arm, tapped in zip(("control", "treatment"), report["tapped"], strict=True):
        most = ", ".join(f"{t['query']} ({t['taps']})" for t in tapped) or "nothing"
        say(f"{arm} ({report['arms'][arm]}): most tapped {most}")
    say("needed: shoppers in each arm of an unpaired test, for a power of 80 % at 5 %", "dim")
