"""``qagent reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qagent_mlx.reproduce.config import ReproduceConfig
from qagent_mlx.utils.settings import merge

from .abtest import draw_abtest
from .console import note, out, say
from .options import Changes, Output, json_option, opened, setting_options
from .param_types import FOLDER, ISO_MOMENT, PLAIN


@click.command()
@click.argument("source", type=PLAIN)
@click.option(
    "--out",
    "folder",
    type=FOLDER,
    metavar="FOLDER",
    help="Folder for everything; the same command goes on there.  [default: ./reproduce-NAME]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    help="Number of seeds that are trained with.  [default: 3, and 1 with --quick]",
)
@setting_options(
    ReproduceConfig,
    *("preset", "size", "pretrain_steps", "sft_steps", "grpo_steps", "cases", "users", "group"),
    *("test_from", "min_history", "quick"),
    into="changes",
    test_from={"type": ISO_MOMENT, "metavar": "T"},
)
@json_option
def reproduce(source: str, folder: Path | None, seeds: int | None, changes: Changes) -> Output:
    """From raw data to the full table: SOURCE is "sample" or a folder of raw files.

    Ingest, index, base policy, SFT and GRPO for each seed, arms with other rewards or
    without search or memory, all baselines and ablations, one report, and for a simulated
    shop the A/B tests. It takes hours on a small machine; killed, the same command goes on
    where it was.
    """
    from qagent_mlx.reproduce.reproduction import Reproduction

    seeds = seeds or (1 if "quick" in changes else 3)
    config = merge(ReproduceConfig(seeds=tuple(range(seeds))), changes)
    place = folder or Path(f"reproduce-{Path(source).name}")
    manifest = Reproduction(source, place, config, note, _note_step).run()
    return Output({"out": str(place), **manifest}, lambda: _draw(place))


def _draw(place: Path) -> None:
    from qagent_mlx.utils.atomic_files import read_json

    out().print((place / "table.md").read_text(encoding="utf-8"), soft_wrap=True)
    if (place / "abtest.json").exists():
        with opened(place / "shop") as shop:
            currency = shop.config.currency
        for control, report in read_json(place / "abtest.json", "the A/B test").items():
            say(f"Simulated A/B test against {control}", "bold")
            draw_abtest(report, currency)
    say(f"report: {place / 'report.html'}; manifest: {place / 'manifest.json'}")


def _note_step(metrics: dict[str, Any]) -> None:
    """Say now and then how training goes."""
    step = int(metrics.get("step", 0))
    if step % 20 == 0:
        values = " ".join(f"{n} {metrics[n]:.3f}" for n in ("loss", "reward") if n in metrics)
        note(f"  step {step} {values}")
