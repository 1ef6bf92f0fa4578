"""``qagent ingest rejects``, ``history`` and ``undo``, and how a load is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import print_table, say, waiting
from .options import Output, in_flags, json_option, opened, shop_option
from .param_types import FILE

if TYPE_CHECKING:
    from qagent_mlx.ingest.report import IngestReport, Understood


def show_ingested(report: IngestReport, then: str, *, dry_run: bool = False) -> Output:
    """What a load stored and how its files were understood."""
    command = click.get_current_context().command
    report = replace(
        report,
        examples=tuple(in_flags(line, command) for line in report.examples),
        notes=tuple(in_flags(line, command) for line in report.notes),
    )

    def draw() -> None:
        for file in report.understood:
            draw_understood(file)
        would = "would be " if dry_run else ""
        say(
            f"{would}{report.accepted:,} accepted, {report.duplicates:,} known already, "
            f"{report.rejected:,} rejected"
        )
        for example in report.examples:
            say(f"  {example}")
        if report.ignored:
            counts = ", ".join(f"{name} {count:,}" for name, count in report.ignored.items())
            say(f"ignored: {counts}")
        for line in report.notes:
            say(f"note: {line}")
        if dry_run:
            say("nothing was stored; run it again without --dry-run")
        elif report.accepted:
            say(f"next: {then}")

    return Output(report.to_dict(), draw)


def draw_understood(file: Understood) -> None:
    """Print which column became what, and what the rows hold."""
    span = f", {file.first:%Y-%m-%d %H:%M} to {file.last:%Y-%m-%d %H:%M} UTC" if file.first else ""
    people = f", {file.users:,} users" if file.kind != "products" else ""
    say(f"{file.file}: {file.rows:,} rows of {file.kind}{span}{people}, {file.products:,} products")
    say("  columns: " + ", ".join(f"{f} = {column}" for f, column in file.columns.items()))
    if file.unused:
        say(f"  not used: {', '.join(file.unused)}  (a field takes one by --map FIELD=COLUMN)")
    for line in file.choices:
        say(f"  {line}")
    if file.types:
        say("  events: " + ", ".join(f"{count:,} {name}" for name, count in file.types.items()))
    for line in file.warnings:
        say(f"warning: {line}")


@click.command()
@click.option(
    "--out", type=FILE, metavar="FILE", help="File for all rejected rows: .csv, .jsonl or .parquet."
)
@click.option("--clear", is_flag=True, help="Forget the rejected rows after they are written.")
@shop_option
@json_option
def rejects(out: Path | None, clear: bool, shop_path: Path) -> Output:
    """List the rows that were rejected, by file and reason; write or forget them."""
    from qagent_mlx.ingest.rejects import clear_rejects, count_rejects, export_rejects

    with opened(shop_path, write=clear) as shop:
        counts = count_rejects(shop)
        if out is not None:
            export_rejects(shop, out)
        if clear:
            clear_rejects(shop)
    context = click.get_current_context()
    assert context.parent is not None and isinstance(context.parent.command, click.Group)
    retry = context.parent.command.commands["retry"]  # which takes what helps
    counts = [replace(count, remedy=in_flags(count.remedy, retry)) for count in counts]
    total = sum(count.rows for count in counts)
    document = {
        "rejects": [count.to_dict() for count in counts],
        "rows": total,
        "out": str(out) if out is not None else None,
        "cleared": clear,
    }

    def draw() -> None:
        if not counts:
            say("no rejected rows" + (f"; {out} has none" if out is not None else ""))
            return
        rows = [(c.file, c.kind, c.reason, f"{c.rows:,}", c.first, c.remedy) for c in counts]
        columns = ("file", "kind", "reason", "rows", "first", "what helps")
        print_table(columns, rows, numbers=("rows", "first"), wide="what helps")
        if out is not None:
            say(f"{total:,} rows written to {out}")
        say(f"{total:,} rows forgotten" if clear else "next: qagent ingest retry")

    return Output(document, draw)


@click.command()
@shop_option
@json_option
def history(shop_path: Path) -> Output:
    """List the files that were loaded; `qagent ingest undo` takes one back by its number."""
    from qagent_mlx.ingest.history import ingest_history

    with opened(shop_path) as shop:
        loads = ingest_history(shop)

    def draw() -> None:
        if not loads:
            say("no file was loaded yet; next: qagent ingest products FILE")
            return
        rows = [
            (
                load.ingest_id,
                f"{load.started:%Y-%m-%d %H:%M}",
                load.kind,
                load.file,
                f"{load.accepted:,}",
                f"{load.rejected:,}",
                "undone" if load.undone else "",
            )
            for load in loads
        ]
        columns = ("id", "time (UTC)", "kind", "file", "accepted", "rejected", "")
        print_table(columns, rows, numbers=("id", "accepted", "rejected"))

    return Output({"ingests": [load.to_dict() for load in loads]}, draw)


@click.command()
@click.argument("ingest_id", type=click.IntRange(min=1), metavar="ID")
@shop_option
@json_option
def undo(ingest_id: int, shop_path: Path) -> Output:
    """Take back what one load brought; `qagent ingest history` has the IDs.

    Its events and rejected rows go, and the products that it changed are what they were.
    """
    from qagent_mlx.ingest.history import undo_ingest

    with opened(shop_path, write=True) as shop, waiting("undoing"):
        report = undo_ingest(shop, ingest_id)

    def draw() -> None:
        parts = {
            "events removed": report.events,
            "impressions removed": report.impressions,
            "products removed": report.products_removed,
            "products as before": report.products_restored,
            "rejected rows removed": report.rejects,
        }
        counts = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)
        say(f"undone: ingest {ingest_id} ({report.file}): {counts or 'it had changed nothing'}")
        say("next: qagent index")

    return Output(report.to_dict(), draw)
