"""``qagent move``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .console import say
from .options import Output, json_option, opened, shop_option
from .param_types import PLAIN

if TYPE_CHECKING:
    from qagent_mlx.shop.moving import MoveReport

F = TypeVar("F", bound=Callable[..., Any])

data_option = click.option(
    "--data",
    type=PLAIN,
    metavar="FOLDER",
    help="Where a new lake keeps its rows: a folder that all machines see at the same path, or "
    "s3://BUCKET/PLACE. Of a lake that is there, where they must be.",
)


def store_option(help: str, required: bool = False) -> Callable[[F], F]:
    """``--store``, with what it does for a command."""
    return click.option("--store", type=PLAIN, metavar="ADDRESS", required=required, help=help)


@click.command()
@store_option(
    "The lake that holds the rows from now on, such as ducklake:sqlite:FILE or "
    "ducklake:postgres:'host=HOST dbname=NAME user=USER'; or: file, for the shop's own file.",
    required=True,
)
@data_option
@shop_option
@json_option
def move(store: str, data: str | None, shop_path: Path) -> Output:
    """Take a shop's rows from its file into a lake that several machines share, or back.

    Every row is compared before the shop counts as moved. What a machine derives from them
    (memory, index, policies, runs) stays in the shop's folder.
    """
    from qagent_mlx.shop.moving import FILE
    from qagent_mlx.shop.moving import move as move_shop

    with opened(shop_path, write=True) as shop:
        before = shop.config.store or FILE
        report = move_shop(shop, store, data)

    def draw() -> None:
        if before == report.store:
            say(f"{shop_path} is in {where(report)} already")
        for line in compared(report):
            say(line)
        if before != report.store:
            say(f"{shop_path} is in {where(report)} from now on")
        if report.store == FILE and before != FILE:
            say(f"{before} stays as it is for other machines; remove it yourself if none use it")

    return Output(asdict(report), draw)


def where(report: MoveReport) -> str:
    """A store in words."""
    return "its file" if report.store == "file" else report.store


def compared(report: MoveReport) -> list[str]:
    """Lines on the tables that were compared."""
    tables = [table for table in report.tables if table.rows]
    return [f"{t.table}: {t.rows:,} rows, the same in both (checksum {t.checksum})" for t in tables]
