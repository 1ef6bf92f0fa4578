"""``qagent ingest --preset NAME --from PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qagent_mlx.errors import QAgentError
from qagent_mlx.utils.settings import SettingError

from .console import say, waiting
from .groups import Group
from .options import Output, in_flags, opened

if TYPE_CHECKING:
    from qagent_mlx.ingest.options import Kind, ReadOptions
    from qagent_mlx.ingest.report import IngestReport, Understood
    from qagent_mlx.ingest.sources.locations import Location
    from qagent_mlx.shop.shop import Shop


class IngestGroup(Group):
    """A group whose help lists the presets."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options and commands, then the presets, a line each."""
        from qagent_mlx.ingest.presets.descriptions import DESCRIPTIONS

        super().format_options(ctx, formatter)
        with formatter.section("Presets"):
            formatter.write_dl(
                [(name, description.title) for name, description in DESCRIPTIONS.items()]
            )


def ingest_or_suggest(
    shop: Shop, kind: Kind, location: Location, options: ReadOptions
) -> IngestReport:
    """Ingest a file; one of a known format is named with the command that reads all of it.

    Raises:
        QAgentError: the file cannot be read, or its rows are but parts of products and orders.
    """
    from qagent_mlx.ingest.ingest import ingest_files
    from qagent_mlx.ingest.presets.loading import suggest_command
    from qagent_mlx.ingest.report import IngestReport

    known = None if options.mapping else suggest_command(location.name)
    if known is not None and known.preset.has_parts:
        raise QAgentError(
            f"{location.shown}: it is {known.preset.title}, whose rows are parts of products and "
            f"of orders; nothing is stored; read it by: {known.command}"
        )
    try:
        report = ingest_files(shop, kind, [location], options)
    except QAgentError as error:
        if known is None:
            raise
        hint = f"; its format is known: {known.command}"
        if isinstance(error, SettingError):
            raise SettingError(error.setting, error.reason + hint, error.where) from error
        raise QAgentError(f"{error}{hint}") from error
    if known is not None:
        note = f"the format of {location.shown} is known; all of it is read by: {known.command}"
        report += IngestReport(notes=(note,))
    return report


def load_files(
    shop_path: Path,
    preset: str | None,
    sources: Sequence[str],
    values: Sequence[str] = (),
    dry_run: bool = False,
) -> Output:
    """Read a preset's files into a shop; with ``dry_run`` into a copy of it."""
    from qagent_mlx.ingest.mapping import parse_values
    from qagent_mlx.ingest.presets.loading import AUTO, load_preset, preview_preset

    meanings = {}
    for field, given, meant in parse_values(values, "events"):
        if field != "type":
            raise SettingError(
                "values", f"{field}:{given}: presets take types only (type:NAME=TYPE)"
            )
        meanings[given] = meant
    for source in map(Path, sources):
        if source.is_file() and not source.stat().st_size:
            raise QAgentError(f"{source} is empty; nothing to ingest")
    name = preset or AUTO
    with waiting(f"reading {', '.join(sources)}"):
        if dry_run:
            report = preview_preset(shop_path, name, *sources, values=meanings)
        else:
            with opened(shop_path, write=True) as shop:
                report = load_preset(shop, name, *sources, values=meanings)

    command = click.get_current_context().command

    def draw() -> None:
        if preset is None:
            say(f"recognised: {report.preset}")
        for kind, part in report.parts.items():
            if not (part.accepted or part.duplicates or part.rejected):
                continue
            why = ", ".join(f"{count:,} {reason}" for reason, count in part.reasons.items())
            say(
                f"{kind}: {part.accepted:,} accepted, {part.duplicates:,} known "
                f"already, {part.rejected:,} rejected{f' ({why})' if why else ''}"
            )
            for understood in part.understood:
                _draw_understood(understood)
            for example in part.examples:
                say(f"  {in_flags(example, command)}")
        if report.total.ignored:
            counts = ", ".join(f"{n} {count:,}" for n, count in report.total.ignored.items())
            say(f"ignored: {counts}")
        for line in report.total.notes:
            say(f"note: {line}")
        if report.derived:
            say(f"queries are derived {report.derived}; nobody typed them")
        say("nothing is stored: a dry run" if dry_run else "next: qagent index")

    return Output(report.to_dict(), draw)


def _draw_understood(understood: Understood) -> None:
    if understood.types:
        types = ", ".join(f"{name} {count:,}" for name, count in understood.types.items())
        say(f"  {types}; {understood.users:,} users, {understood.products:,} products")
    if understood.first is not None:
        say(f"  from {understood.first:%Y-%m-%d %H:%M:%S} to {understood.last:%Y-%m-%d %H:%M:%S}")
    for warning in understood.warnings:
        say(f"  warning: {warning}")
