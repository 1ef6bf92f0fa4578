"""``qagent init``."""

from __future__ import annotations

from pathlib import Path

import click

from .console import note, say
from .options import Output, json_option, shop_option


@click.command()
@click.option("--sample", is_flag=True, help="Fill it with the sample shop's data, ready to use.")
@shop_option
@json_option
def init(sample: bool, shop_path: Path) -> Output:
    """Make a shop: an empty one, or with --sample one that is ready to use."""
    from qagent_mlx.build import create_sample_shop
    from qagent_mlx.shop.shop import Shop

    if sample:
        report = create_sample_shop(shop_path, note).to_dict()
        lines = (
            f"made the sample shop in {shop_path}: {report['products']:,} products, "
            f"{report['events']:,} events of {report['users']:,} users in "
            f"{report['sessions']:,} sessions ({report['seconds']:.0f} s)",
            "next: qagent recommend USER, or qagent memory USER",
        )
    else:
        with Shop.create(shop_path) as shop:
            report = {"shop": str(shop_path), **shop.counts()}
        lines = (
            f"made an empty shop in {shop_path}",
            f"next: qagent ingest products FILE --shop {shop_path}",
        )

    def draw() -> None:
        for line in lines:
            say(line)

    return Output(report, draw)
