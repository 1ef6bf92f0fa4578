"""``qagent init`` and ``ingest``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import emit, json_option, note, opened, out, shop_option, shown, waiting

if TYPE_CHECKING:
    from qagent_mlx.ingest.report import IngestReport


@click.command()
@click.option("--sample", is_flag=True, help="Fill it with the sample shop's data, ready to use.")
@shop_option
@json_option
def init(sample: bool, shop_path: Path, as_json: bool) -> None:
    """Make a shop: an empty one, or with --sample one that is ready to use."""
    from qagent_mlx.build import create_sample_shop
    from qagent_mlx.shop.shop import Shop

    if sample:
        report = create_sample_shop(shop_path, note)
    else:
        with Shop.create(shop_path) as shop:
            report = {"shop": str(shop_path), **shop.counts()}
    if as_json:
        emit(report)
        return
    console = out()
    if not sample:
        console.print(shown(f"made an empty shop in {shop_path}"), soft_wrap=True)
        console.print(shown(f"next: qagent ingest products FILE --shop {shop_path}"))
        return
    console.print(
        shown(
            f"made the sample shop in {shop_path}: {report['products']:,} products, "
            f"{report['events']:,} events of {report['users']:,} users in "
            f"{report['sessions']:,} sessions ({report['seconds']:.0f} s)"
        )
    )
    console.print("next: qagent recommend USER, or qagent memory USER")


# ---------------------------------------------------------------- ingest


@click.group(invoke_without_command=True)
@click.option(
    "--preset",
    metavar="NAME",
    help="Read a public data set's raw files: bestbuy, amazon (Reviews 2023 and ESCI), "
    "amazon-office, instacart, or generic (products.*, events.*).",
)
@click.option(
    "--from",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the preset's raw files are.",
)
@shop_option
@json_option
@click.pass_context
def ingest(
    ctx: click.Context, preset: str | None, folder: Path | None, shop_path: Path, as_json: bool
) -> None:
    """Load products and events from CSV, TSV, JSON lines (all also .gz) or Parquet.

    A file goes in whole or not at all, and twice does no harm. Rows that do not fit are kept
    with the reason; ``qagent ingest retry`` tries them again.

    With --preset NAME --from FOLDER a new shop is filled from a public data set as it is
    handed out. Where it has no queries they are derived, and every report says so.

    \b
    bestbuy        products.csv (sku, name),
                   events.csv (user_id, query, sku, query_time, click_time)
    amazon         Reviews 2023: *meta*.jsonl, one file of reviews (.jsonl, .csv);
                   for typed queries ESCI's *examples*.parquet or .csv
    amazon-office  products.csv (item_id, title, brand),
                   purchases.csv (user_id, position, item_id)
    instacart      products, aisles, departments, orders, order_products__prior
                   (.csv); or products.csv with aisle and department and
                   order_items.csv
    generic        products.* and events.* with this command's own columns
    """
    if ctx.invoked_subcommand is not None:
        sources = [ctx.get_parameter_source(name) for name in ctx.params]
        if any(source is not None and source.name == "COMMANDLINE" for source in sources):
            raise click.UsageError("write the options behind the command", ctx)
        return
    if preset is None:
        if folder is not None:
            raise click.UsageError("--from needs a --preset", ctx)
        click.echo(ctx.get_help())
        ctx.exit(2)
    if folder is None:
        raise click.UsageError("--preset needs --from FOLDER, where its raw files are", ctx)
    from qagent_mlx.ingest.datasets import load_preset

    with opened(shop_path, write=True) as shop, waiting(f"reading {folder}"):
        report = load_preset(shop, preset, folder)
    totals = {
        key: sum(report[kind][key] for kind in ("products", "events"))
        for key in ("accepted", "rejected", "duplicates")
    }
    if as_json:
        reasons: dict[str, int] = {}
        for kind in ("products", "events"):
            for reason, count in report[kind]["reasons"].items():
                reasons[reason] = reasons.get(reason, 0) + count
        emit({**totals, "reasons": reasons, **report})
        return
    console = out()
    for kind in ("products", "events"):
        row = report[kind]
        why = ", ".join(f"{count:,} {reason}" for reason, count in row["reasons"].items())
        console.print(
            shown(
                f"{kind}: {row['accepted']:,} accepted, {row['duplicates']:,} known already, "
                f"{row['rejected']:,} rejected" + (f" ({why})" if why else "")
            ),
            soft_wrap=True,
        )
    if report["derived"]:
        console.print(shown(f"queries are derived {report['derived']}; nobody typed them"))
    console.print("next: qagent index")


def _file_options(function: Any) -> Any:
    for option in (
        json_option,
        shop_option,
        click.option(
            "--time-format", metavar="FORMAT", help="Of times, as in strptime, e.g. %d.%m.%Y."
        ),
        click.option("--encoding", default="utf-8", show_default=True, help="Of text files."),
        click.option(
            "--map",
            "mapping",
            multiple=True,
            metavar="FIELD=COLUMN",
            help="Which column holds a field; may be repeated.",
        ),
        click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path)),
    ):
        function = option(function)
    return function


@ingest.command()
@_file_options
def products(
    *,
    files: tuple[Path, ...],
    mapping: tuple[str, ...],
    encoding: str,
    time_format: str | None,
    shop_path: Path,
    as_json: bool,
) -> None:
    """Load products: product_id, title, brand, category, price, stock, attributes, time."""
    report = _ingest(
        shop_path, files, "products", mapping, encoding=encoding, time_format=time_format
    )
    _show_ingest(report, as_json, "qagent ingest events FILE, or qagent index")


@ingest.command()
@click.option("--type", "event_type", help="The type of all rows, for files without such a column.")
@_file_options
def events(
    *,
    files: tuple[Path, ...],
    mapping: tuple[str, ...],
    encoding: str,
    time_format: str | None,
    event_type: str | None,
    shop_path: Path,
    as_json: bool,
) -> None:
    """Load events: user_id, time, type, query, product_id, click_time."""
    report = _ingest(
        shop_path,
        files,
        "events",
        mapping,
        encoding=encoding,
        time_format=time_format,
        event_type=event_type,
    )
    _show_ingest(report, as_json, "qagent index")


@ingest.command()
@shop_option
@json_option
def retry(shop_path: Path, as_json: bool) -> None:
    """Try rejected rows again, after what they lacked has come in."""
    from qagent_mlx.ingest.ingest import retry_rejected as again

    with opened(shop_path, write=True) as shop, waiting("trying rejected rows again"):
        report = again(shop)
    _show_ingest(report, as_json, "qagent index")


@ingest.command()
@click.option(
    "--from",
    "source",
    type=click.Choice(["categories", "titles"]),
    help="What the queries are made of.  [default: categories where most products have one]",
)
@shop_option
@json_option
def derive(source: str | None, shop_path: Path, as_json: bool) -> None:
    """Make queries for a log without searches, from what was clicked, carted or bought.

    Each such event makes a search of its product's category path, or of its title's most
    telling words, a second before. Nobody typed these queries, and every report says so. Run
    it again after new events.
    """
    from qagent_mlx.ingest.derived_queries import derive_queries as made

    with opened(shop_path, write=True) as shop, waiting("deriving queries"):
        report = made(shop, source)
        how = shop.config.derived_queries
    if as_json:
        emit(
            {
                "accepted": report.accepted,
                "rejected": report.rejected,
                "derived": how,
                "duplicates": report.duplicates,
                "reasons": report.reasons,
            }
        )
        return
    out().print(shown(f"{report.accepted:,} searches derived {how}; nobody typed them"))
    out().print("next: qagent index")


def _ingest(
    shop_path: Path, files: tuple[Path, ...], kind: str, mapping: tuple[str, ...], **options: Any
) -> IngestReport:
    from qagent_mlx.ingest.columns import parse_mapping
    from qagent_mlx.ingest.ingest import ingest_files as load
    from qagent_mlx.ingest.report import IngestReport, ReadOptions

    reading = ReadOptions(parse_mapping(mapping, kind), **options)
    total = IngestReport()
    with opened(shop_path, write=True) as shop:
        for file in files:
            with waiting(f"reading {file}"):
                total.add(load(shop, kind, [file], reading))
    return total


def _show_ingest(report: IngestReport, as_json: bool, then: str) -> None:
    if as_json:
        emit(
            {
                "accepted": report.accepted,
                "rejected": report.rejected,
                "duplicates": report.duplicates,
                "reasons": report.reasons,
                "examples": report.examples,
            }
        )
        return
    console = out()
    console.print(
        f"{report.accepted:,} accepted, {report.duplicates:,} known already, "
        f"{report.rejected:,} rejected"
    )
    for example in report.examples:
        console.print(shown("  " + example), soft_wrap=True)
    if report.accepted:
        console.print(f"next: {then}")
