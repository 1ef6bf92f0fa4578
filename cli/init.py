"""``qagent init``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from .console import note, say
from .move import data_option, store_option
from .options import Output, json_option, shop_option


@click.command()
@click.option("--sample", is_flag=True, help="Fill it with the sample shop's data, ready to use.")
@store_option(
    "Keep its rows in a lake that several machines share; one that holds a shop already is "
    "joined. See: qagent move --help."
)
@data_option
@click.option(
    "--snapshot",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --store: a shop of its own with the lake's rows as of snapshot N, which runs and "
    "evaluations name, to repeat what was done on them.",
)
@shop_option
@json_option
def init(
    sample: bool, store: str | None, data: str | None, snapshot: int | None, shop_path: Path
) -> Output:
    """Make a shop: an empty one, or with --sample one that is ready to use."""
    from qagent_mlx.build import create_sample_shop
    from qagent_mlx.shop.shop import Shop

    if snapshot is not None and (data or not store):
        raise click.UsageError("--snapshot is of a lake that is there; name it with --store alone")
    if data and not store:
        raise click.UsageError("--data is of a lake; name it with --store")
    if store and sample:
        raise click.UsageError("make the sample shop first, then: qagent move --store ADDRESS")
    if store and snapshot is not None:
        return _of_snapshot(store, snapshot, shop_path)
    if store:
        return _in_lake(store, data, shop_path)
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

    return Output(report, lambda: _say_all(lines))


def _say_all(lines: Sequence[str]) -> None:
    for line in lines:
        say(line)


def _in_lake(store: str, data: str | None, shop_path: Path) -> Output:
    """A shop whose rows are in a lake."""
    from qagent_mlx.shop.moving import create_in

    report, counts = create_in(shop_path, store, data)
    if report.joined:
        lines = (
            f"{shop_path} shares {report.store}: {counts['products']:,} products, "
            f"{counts['events']:,} events of {counts['users']:,} users",
            f"next: qagent index --shop {shop_path}",
        )
    else:
        lines = (
            f"made an empty shop in {shop_path}, with its rows in {report.store}",
            f"next: qagent ingest products FILE --shop {shop_path}; on other machines: "
            f"qagent init --store {shlex.quote(report.store)}",
        )
    return Output({"shop": str(shop_path), **counts, **asdict(report)}, lambda: _say_all(lines))


def _of_snapshot(store: str, snapshot: int, shop_path: Path) -> Output:
    """A shop of its own, of a lake's rows as they were."""
    from qagent_mlx.shop.moving import create_at

    counts = create_at(shop_path, store, snapshot)
    lines = (
        f"made a shop in {shop_path} of snapshot {snapshot}: {counts['products']:,} products, "
        f"{counts['events']:,} events of {counts['users']:,} users",
        f"next: qagent index --shop {shop_path}",
    )
    report = {"shop": str(shop_path), "snapshot": snapshot, **counts}
    return Output(report, lambda: _say_all(lines))
