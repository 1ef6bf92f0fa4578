"""``qagent ingest``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
from msgspec import Meta

from qagent_mlx.ingest.options import ReadOptions

from .console import say, waiting
from .ingested import history, rejects, show_ingested, undo
from .options import Output, json_option, opened, setting_options, shop_option
from .presets import IngestGroup, ingest_or_suggest, load_files

if TYPE_CHECKING:
    from qagent_mlx.ingest.derived_queries import Origin
    from qagent_mlx.ingest.options import ClearField, EventType, Kind
    from qagent_mlx.ingest.report import IngestReport
    from qagent_mlx.ingest.sources.locations import Location


@click.group(invoke_without_command=True, cls=IngestGroup)
@click.option(
    "--preset",
    metavar="NAME",
    help="The format of the files, one of the list below, or auto.  [default: auto]",
)
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="PATH",
    help="A file, a folder or a glob that the preset reads; may be repeated.",
)
@click.option(
    "--value",
    "values",
    multiple=True,
    metavar="type:NAME=TYPE",
    help="Type of the source's events of a name; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go in; store nothing.")
@shop_option
@json_option
@click.pass_context
def ingest(
    ctx: click.Context,
    preset: str | None,
    sources: tuple[str, ...],
    values: tuple[str, ...],
    dry_run: bool,
    shop_path: Path,
) -> Output | None:
    """Load products and events from CSV, JSON, Parquet, workbooks, databases or addresses.

    FILE is a file (also .gz, .zst, .bz2, .zip), a folder, a pattern, a table (shop.sqlite::events,
    postgresql://host/shop::events), an https:// address, or - for standard input.

    A file goes in whole or not at all, and twice does no harm. Rows that do not fit are kept
    with the reason; ``qagent ingest retry`` tries them again.

    With --from PATH the exports of shop systems and public data sets are read as they are
    handed out; --preset says which it is, or it is recognised. The next day's export may be
    added. Data sets without queries get derived ones, and every report says so.
    """
    if ctx.invoked_subcommand is not None:
        given = [ctx.get_parameter_source(name) for name in ctx.params]
        if any(source is not None and source.name == "COMMANDLINE" for source in given):
            raise click.UsageError("write the options behind the command", ctx)
        return None
    if sources:
        return load_files(shop_path, preset, sources, values, dry_run)
    if preset is not None:
        raise click.UsageError("--preset needs --from PATH, where its raw files are", ctx)
    click.echo(ctx.get_help())
    ctx.exit(2)


Values = Annotated[
    tuple[str, ...],
    Meta(
        description="What a field's value means, such as type:view_item=view or stock:Active=yes; "
        "may be repeated."
    ),
]


@dataclass(frozen=True)
class FileOptions:
    """What the files of products or events hold, as the command line writes it."""

    mapping: Annotated[
        tuple[str, ...],
        Meta(
            description="Column of a field, or a path into one such as user.id or items[].sku; "
            "may be repeated."
        ),
    ] = ()
    values: Values = ()
    sql: Annotated[
        str | None,
        Meta(
            description="SELECT in DuckDB's SQL that yields the fields, instead of FILES: "
            "SELECT uid AS user_id, … FROM 'log.parquet'."
        ),
    ] = None
    sheet: Annotated[
        str | None,
        Meta(description="Sheet or table of FILES, as FILE::NAME names that of a single one."),
    ] = None


class FilesCommand(click.Command):
    """A command that takes ``-::FILE``, a file of an archive on standard input, for no option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name standard input so that it does not begin with a dash."""
        return super().parse_args(ctx, [re.sub("^-(?=::)", "stdin", arg) for arg in args])


files_argument = click.argument("files", nargs=-1)
file_options = setting_options(
    FileOptions,
    into="options",
    build=True,
    mapping={"flags": ("--map",), "metavar": "FIELD=COLUMN"},
    values={"flags": ("--value",), "metavar": "FIELD:VALUE=MEANING"},
    sql={"metavar": "SELECT"},
    sheet={"metavar": "NAME"},
)
read_options = setting_options(
    ReadOptions,
    *("join", "on", "encoding", "time_format", "allow_future", "max_rejects", "dry_run"),
    into="reading",
    build=True,
    join={"metavar": "FILE"},
    on={"metavar": "COLUMN"},
    time_format={"metavar": "FORMAT"},
    max_rejects={"metavar": "SHARE"},
)


@ingest.command(cls=FilesCommand)
@click.option(
    "--clear",
    multiple=True,
    type=click.Choice(["brand", "category", "price", "stock", "attributes", "aliases"]),
    help="Field that a blank cell empties; may be repeated.",
)
@files_argument
@file_options
@read_options
@shop_option
@json_option
def products(
    files: tuple[str, ...],
    options: FileOptions,
    reading: ReadOptions,
    clear: tuple[ClearField, ...],
    shop_path: Path,
) -> Output:
    """Load products: product_id, title, brand, category, price, stock, attributes, time, aliases.

    Fields that a file has no column for stay as they are, and so do those whose cell is blank: a
    file of ids and prices updates prices. Products that are new need a title.
    """
    report = _ingest(shop_path, files, "products", options, replace(reading, clear=clear))
    then = "qagent ingest events FILE, or qagent index"
    return show_ingested(report, then, dry_run=reading.dry_run)


@ingest.command(cls=FilesCommand)
@click.option("--type", "event_type", help="The type of all rows, for files without such a column.")
@files_argument
@file_options
@read_options
@shop_option
@json_option
def events(
    files: tuple[str, ...],
    options: FileOptions,
    reading: ReadOptions,
    event_type: EventType | None,
    shop_path: Path,
) -> Output:
    """Load events: user_id, time, type, query, product_id, click_time.

    Events that came of a recommendation have its recommendation_id, and position in it.
    """
    reading = replace(reading, event_type=event_type)
    report = _ingest(shop_path, files, "events", options, reading)
    return show_ingested(report, "qagent index", dry_run=reading.dry_run)


@ingest.command(cls=FilesCommand)
@files_argument
@file_options
@read_options
@shop_option
@json_option
def impressions(
    files: tuple[str, ...], options: FileOptions, reading: ReadOptions, shop_path: Path
) -> Output:
    """Load impressions: user_id, time, query, product_id, position, query_id."""
    report = _ingest(shop_path, files, "impressions", options, reading)
    return show_ingested(report, "qagent index", dry_run=reading.dry_run)


@ingest.command(cls=FilesCommand)
@files_argument
@file_options
@read_options
@shop_option
@json_option
def recommendations(
    files: tuple[str, ...], options: FileOptions, reading: ReadOptions, shop_path: Path
) -> Output:
    """Load queries that users were shown, one a row.

    recommendation_id (of the answer), user_id, time, query, position, propensity, source, policy,
    version, experiment, arm; only the first five are needed.
    """
    report = _ingest(shop_path, files, "recommendations", options, reading)
    return show_ingested(report, "qagent impressions report", dry_run=reading.dry_run)


@dataclass(frozen=True)
class RetryOptions:
    """What the fields of rejected rows hold."""

    mapping: Annotated[
        tuple[str, ...],
        Meta(description="Field whose text a field takes, as product_id=query; may be repeated."),
    ] = ()
    values: Values = ()


@ingest.command()
@click.option("--type", "event_type", help="The type of events that have none.")
@setting_options(
    RetryOptions,
    into="options",
    build=True,
    mapping={"flags": ("--map",), "metavar": "FIELD=FIELD"},
    values={"flags": ("--value",), "metavar": "FIELD:VALUE=MEANING"},
)
@setting_options(
    ReadOptions,
    *("time_format", "allow_future"),
    into="reading",
    build=True,
    time_format={"metavar": "FORMAT"},
)
@shop_option
@json_option
def retry(
    options: RetryOptions, reading: ReadOptions, event_type: EventType | None, shop_path: Path
) -> Output:
    """Try rejected rows again, after what they lacked has come in, or read otherwise."""
    from qagent_mlx.ingest.ingest import retry_rejected
    from qagent_mlx.ingest.mapping import parse_any_kind

    mapping, values = parse_any_kind(options.mapping, options.values)
    reading = replace(reading, mapping=mapping, values=values, event_type=event_type)
    with opened(shop_path, write=True) as shop, waiting("trying rejected rows again"):
        report = retry_rejected(shop, reading)
    return show_ingested(report, "qagent index")


@ingest.command()
@click.option(
    "--from",
    "source",
    type=click.Choice(["categories", "titles"]),
    help="What the queries are made of.  [default: categories where most products have one]",
)
@shop_option
@json_option
def derive(source: Origin | None, shop_path: Path) -> Output:
    """Make queries for a log without searches, from what was clicked, carted or bought.

    Each such event makes a search of its product's category path, or of its title's most
    telling words, a second before. Nobody typed these queries, and every report says so. Run
    it again after new events.
    """
    from qagent_mlx.ingest.derived_queries import derive_queries

    with opened(shop_path, write=True) as shop, waiting("deriving queries"):
        report = derive_queries(shop, source)
        how = shop.config.derived_queries
    document = {
        "accepted": report.accepted,
        "rejected": report.rejected,
        "derived": how,
        "duplicates": report.duplicates,
        "reasons": report.reasons,
    }

    def draw() -> None:
        say(f"{report.accepted:,} searches derived {how}; nobody typed them")
        say("next: qagent index")

    return Output(document, draw)


def _ingest(
    shop_path: Path, files: tuple[str, ...], kind: Kind, options: FileOptions, reading: ReadOptions
) -> IngestReport:
    from qagent_mlx.ingest.columns import parse_mapping
    from qagent_mlx.ingest.ingest import ingest_each
    from qagent_mlx.ingest.mapping import parse_values
    from qagent_mlx.ingest.sources.locations import locate, query_location

    if (options.sql is None) == (not files):
        raise click.UsageError(
            "name FILES to read, or a query with --sql", click.get_current_context()
        )
    reading = replace(
        reading,
        mapping=parse_mapping(options.mapping, kind),
        values=parse_values(options.values, kind),
    )
    with opened(shop_path, write=True) as shop:
        named = [f"{file}::{options.sheet}" for file in files] if options.sheet else files
        places = named if options.sql is None else [query_location(options.sql)]

        def load(location: Location) -> IngestReport:
            with waiting(f"reading {location.shown}"):
                return ingest_or_suggest(shop, kind, location, reading)

        return ingest_each(locate(places, reading.join), load, dry_run=reading.dry_run)


for command in (rejects, history, undo):
    ingest.add_command(command)
