"""``qagent reproduce``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from .console import note, out, say
from .options import Output, given, json_option, opened
from .param_types import MOMENT, PLAIN


@click.command()
@click.argument("source", type=PLAIN)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where everything goes; the same command goes on there.  [default: ./reproduce-NAME]",
)
@click.option("--preset", default="generic", show_default=True, help="How the raw files are read.")
@click.option(
    "--seeds", type=click.IntRange(1, 100), help="How many.  [default: 3, and 1 with --quick]"
)
@click.option("--size", default="tiny", show_default=True, help="Of the base model.")
@click.option("--pretrain-steps", type=click.IntRange(1), help="Of the base model.")
@click.option("--sft-steps", type=click.IntRange(1), help="Of each SFT.")
@click.option("--grpo-steps", type=click.IntRange(1), help="Of each GRPO.")
@click.option("--cases", type=click.IntRange(2), help="So many test cases.  [default: all]")
@click.option("--users", type=click.IntRange(2), help="Of the A/B test.  [default: 500]")
@click.option("--group", type=click.IntRange(1, 256), help="Chains a case.  [default: 8]")
@click.option("--test-from", type=MOMENT, metavar="T", help="Cases from this moment on test.")
@click.option("--min-history", type=click.IntRange(0), help="Events before a case.  [default: 1]")
@click.option("--quick", is_flag=True, help="Everything very small, to see that it runs.")
@json_option
def reproduce(
    *,
    source: str,
    folder: Path | None,
    preset: str,
    seeds: int | None,
    size: str,
    pretrain_steps: int | None,
    sft_steps: int | None,
    grpo_steps: int | None,
    cases: int | None,
    users: int | None,
    group: int | None,
    test_from: datetime | None,
    min_history: int | None,
    quick: bool,
) -> Output:
    """From raw data to the full table: SOURCE is "sample" or a folder of raw files.

    Ingest, index, base policy, SFT and GRPO for each seed, arms with other rewards or
    without search or memory, all baselines and ablations, one report, and for a simulated
    shop the A/B tests. It takes hours on a small machine; killed, the same command goes on
    where it was.
    """
    from qagent_mlx.reproduce.config import ReproduceConfig
    from qagent_mlx.reproduce.reproduction import Reproduction

    config = ReproduceConfig(
        preset=preset,
        seeds=tuple(range(seeds or (1 if quick else 3))),
        size=size,
        quick=quick,
        **given(
            pretrain_steps=pretrain_steps,
            sft_steps=sft_steps,
            grpo_steps=grpo_steps,
            cases=cases,
            users=users,
            group=group,
            min_history=min_history,
            test_from=test_from.isoformat() if test_from else None,
        ),
    )
    place = folder or Path(f"reproduce-{Path(source).name}")
    manifest = Reproduction(source, place, config, note, _Steps()).run()
    return Output({"out": str(place), **manifest}, lambda: _draw(place))


def _draw(place: Path) -> None:
    from qagent_mlx.utils.atomic_files import read_json

    from .abtest import draw

    console = out()
    console.print((place / "table.md").read_text(encoding="utf-8"), soft_wrap=True)
    if (place / "abtest.json").exists():
        with opened(place / "shop") as shop:
            currency = shop.config.currency
        for control, report in read_json(place / "abtest.json", "the A/B test").items():
            say(f"Simulated A/B test against {control}", "bold")
            draw(report, currency)
    say(f"report: {place / 'report.html'}; manifest: {place / 'manifest.json'}")


class _Steps:
    """Says now and then how training goes."""

    def __call__(self, row: dict[str, Any]) -> None:
        """After a step."""
        step = int(row.get("step", 0))
        if step % 20 == 0:
            shown_values = ("loss", "reward")
            values = " ".join(f"{n} {row[n]:.3f}" for n in shown_values if n in row)
            note(f"  step {step} {values}")
