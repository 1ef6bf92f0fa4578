"""``qagent impressions``: what users were shown, and what came of it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from .console import print_table, say, waiting
from .groups import Group
from .options import Output, json_option, opened, shop_option
from .param_types import FOLDER, ID, MOMENT

since_option = click.option(
    "--since", type=MOMENT, metavar="T", help="Moment from which answers count (UTC)."
)
until_option = click.option(
    "--until", type=MOMENT, metavar="T", help="Moment before which answers count (UTC)."
)


@click.group(cls=Group)
def impressions() -> None:
    """What users were shown, and what came of it.

    A server records each answer of POST /recommend with a recommendation_id, and so does qagent
    recommend --record. Events may name it, with the position of the query; a search that names
    none counts for the user's last answer that held its query, within 30 minutes.
    """


@impressions.command("list")
@click.argument("user", type=ID, required=False)
@click.option(
    "-n",
    "number",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    help="Number of answers, at most; the last ones.",
)
@shop_option
@json_option
def list_answers(user: str | None, number: int, shop_path: Path) -> Output:
    """List the last answers, of USER or of all, with what came of each query."""
    from qagent_mlx.live.outcomes import shown_answers

    with opened(shop_path) as shop:
        answers = shown_answers(shop, user, number)

    def draw() -> None:
        if not answers:
            say("nothing was shown yet; next: qagent serve, or qagent recommend USER --record")
            return
        rows = []
        for answer in answers:
            version = f"@{answer['version']}" if answer["version"] is not None else ""
            first = (answer["ts"][:19].replace("T", " "), answer["user_id"])
            by = f"{answer['source']}, {answer['policy']}{version}"
            for line in answer["queries"]:
                rows.append((*first, by, line["position"], line["query"], _came_of(line)))
                first, by = ("", ""), ""
        columns = ("time", "user", "by", "#", "query", "what came of it")
        print_table(columns, rows, numbers=("#",), wide="query")

    return Output({"answers": answers}, draw)


def _came_of(line: dict[str, Any]) -> str:
    if not line["taken"]:
        return ""
    counts = [f"{line[name]} {name}" for name in ("clicks", "carts", "purchases") if line[name]]
    how = "taken" if line["how"] == "named" else "searched for"
    return ", ".join([how, *counts])


@impressions.command()
@click.option(
    "--by",
    type=click.Choice(["policy", "source", "position", "arm"]),
    default="policy",
    show_default=True,
    help="What each row of the report stands for.",
)
@since_option
@until_option
@shop_option
@json_option
def report(by: Any, since: datetime | None, until: datetime | None, shop_path: Path) -> Output:
    """How often queries were taken (CTR), and led to purchases (guided CVR), per answer.

    qagent abtest counts guided CVR per tap, so the two are not compared.
    """
    from qagent_mlx.live.outcomes import outcomes

    with opened(shop_path) as shop, waiting("counting"):
        groups = outcomes(shop, by, since, until)

    def draw() -> None:
        if not groups:
            say("nothing was shown in that time; next: qagent serve, or recommend USER --record")
            return
        rows = [
            (
                *(g.group, f"{g.answers:,}", f"{g.users:,}", f"{g.taken:,}", f"{g.attributed:,}"),
                *(f"{g.ctr:.2%}", f"{g.cvr:.2%}", f"{g.purchases:,}", f"{g.revenue:,.2f}"),
            )
            for g in groups
        ]
        columns = (
            *(by, "answers", "users", "taken", "of these attributed"),
            *("CTR", "guided CVR", "purchases", "revenue"),
        )
        print_table(columns, rows, numbers=columns[1:])

    return Output({"by": by, "groups": [g.to_dict() for g in groups]}, draw)


@impressions.command()
@click.option(
    "--before",
    type=MOMENT,
    required=True,
    metavar="T",
    help="Moment before which everything goes (UTC).",
)
@shop_option
@json_option
def prune(before: datetime, shop_path: Path) -> Output:
    """Delete what was shown before T; export it first if it is to be kept."""
    from qagent_mlx.live.shown import prune_shown

    with opened(shop_path, write=True) as shop:
        answers = prune_shown(shop, before)
    text = f"{answers:,} answers from before {before:%Y-%m-%d %H:%M} are deleted"
    return Output({"answers": answers, "before": before.isoformat()}, lambda: say(text))


@impressions.command()
@click.argument("folder", type=FOLDER)
@since_option
@until_option
@shop_option
@json_option
def export(folder: Path, since: datetime | None, until: datetime | None, shop_path: Path) -> Output:
    """Write what was shown and done into FOLDER, as User Behavior Insights (UBI) has it.

    It holds everybody's user ids and queries. qagent ingest --preset ubi reads it back.
    """
    from qagent_mlx.live.ubi_export import export_ubi

    with opened(shop_path) as shop, waiting("writing"):
        written = export_ubi(shop, folder, since, until)
    text = f"{written.queries:,} queries and {written.events:,} events: {folder}"
    return Output(asdict(written), lambda: say(text))
