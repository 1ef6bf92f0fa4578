"""``qagent ingest --preset NAME --from PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from .console import say, waiting
from .options import Output, opened


class IngestGroup(click.Group):
    """A group whose help lists the presets."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options and commands, then the presets, a line each."""
        from qagent_mlx.ingest.presets.descriptions import DESCRIPTIONS

        super().format_options(ctx, formatter)
        with formatter.section("Presets"):
            formatter.write_dl(
                [(name, description.title) for name, description in DESCRIPTIONS.items()]
            )


def load_files(shop_path: Path, preset: str | None, sources: Sequence[Path]) -> Output:
    """Read a preset's files into a shop."""
    from qagent_mlx.ingest.presets.loading import AUTO, load_preset

    names = ", ".join(map(str, sources))
    with opened(shop_path, write=True) as shop, waiting(f"reading {names}"):
        report = load_preset(shop, preset or AUTO, *sources)

    def draw() -> None:
        total = report.total
        if preset is None:
            say(f"recognised: {report.preset}")
        for kind, part in report.parts.items():
            if kind == "impressions" and part == type(part)():
                continue
            why = ", ".join(f"{count:,} {reason}" for reason, count in part.reasons.items())
            say(
                f"{kind}: {part.accepted:,} accepted, {part.duplicates:,} known "
                f"already, {part.rejected:,} rejected{f' ({why})' if why else ''}"
            )
            for example in part.examples:
                say(f"  {example}")
        if total.ignored:
            counts = ", ".join(f"{name} {count:,}" for name, count in total.ignored.items())
            say(f"ignored: {counts}")
        for line in total.notes:
            say(f"note: {line}")
        if report.derived:
            say(f"queries are derived {report.derived}; nobody typed them")
        say("next: qagent index")

    return Output(report.to_dict(), draw)
