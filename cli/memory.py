"""``qagent memory``: show, export or forget what is known of a user."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import (
    PLAIN,
    as_of_option,
    emit,
    json_option,
    note,
    opened,
    out,
    shop_option,
    short,
    shown,
    waiting,
    writes_unicode,
)

if TYPE_CHECKING:
    from rich.tree import Tree

    from qagent_mlx.memory.inspect import MemoryView
    from qagent_mlx.memory.interest_graph import InterestGraph


class UserFirst(click.Group):
    """A group whose first word may be a user: ``memory ann`` is ``memory show ann``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``show`` before what is no command of the group."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=UserFirst, subcommand_metavar="USER | COMMAND USER")
def memory() -> None:
    """Show what is remembered of USER; or export or forget it.

    \b
    qagent memory USER           the profile that the agent reads, and the interest graph
    qagent memory show USER      the same, also for a user who is called "forget"
    """


@memory.command()
@click.argument("user", type=PLAIN)
@as_of_option
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the profile and graph as one interactive page that needs no network.",
)
@click.option(
    "--summarizer",
    metavar="MODEL",
    help="An mlx-lm model folder or policy that writes the identity line; kept for next time.",
)
@shop_option
@json_option
def show(
    user: str,
    as_of: datetime | None,
    html: Path | None,
    summarizer: str | None,
    shop_path: Path,
    as_json: bool,
) -> None:
    """Show the profile of USER that the agent reads, and the interest graph.

    A user without events gets what a new user gets: the shop's trends.
    """
    from qagent_mlx.policy.shop_memory import inspect_memory

    with opened(shop_path) as shop, waiting("remembering"):
        view = inspect_memory(shop, user, as_of, summarizer=summarizer)
    if html:
        from qagent_mlx.memory.html_page import write_page

        write_page(view, html)
        note(f"wrote {html}")
    if as_json:
        emit(view.to_dict())
    elif not html:
        draw_memory(view)


@memory.command()
@click.argument("user", type=PLAIN)
@shop_option
@json_option
def export(user: str, shop_path: Path, as_json: bool) -> None:
    """Print all that the shop and its runs hold of USER, as one JSON document."""
    from qagent_mlx.privacy import export_user as held

    with opened(shop_path) as shop, waiting("collecting"):
        emit(held(shop, user))


@memory.command()
@click.argument("user", type=PLAIN)
@click.option("--yes", is_flag=True, help="Do not ask; never asked where stdin is no terminal.")
@shop_option
@json_option
def forget(user: str, yes: bool, shop_path: Path, as_json: bool) -> None:
    """Delete all that the shop and its runs hold of USER, and name the policies that saw it.

    Events, rejected rows, profile and graph go, cases and sampled chains of runs too. Trained
    policies keep what they learned: train those anew that are named. Stop training first.
    """
    from qagent_mlx.privacy import erase_user as remove

    if not yes and not as_json and sys.stdin.isatty():
        click.confirm(f"Delete everything about {user} for good?", abort=True, err=True)
    with opened(shop_path, write=True) as shop, waiting("forgetting"):
        report = remove(shop, user)
    if as_json:
        emit(report)
        return
    console = out()
    console.print(
        shown(
            f"forgot {user}: {report['events']:,} events, {report['rejects']:,} rejected rows, "
            f"{sum(report['cases'].values()):,} cases and "
            f"{sum(report['rollouts'].values()):,} chains in runs"
        )
    )
    for seen in report["policies"]:
        how = f"{seen['cases']} cases" if seen["certain"] else "perhaps"
        through = f", through {seen['through']}" if seen["through"] else ""
        console.print(
            shown(
                f"  the policy {seen['policy']} saw the user in its {seen['stage']} "
                f"({how}{through}); train it anew to be rid of it"
            ),
            soft_wrap=True,
        )
    console.print("next: qagent index, so that search forgets the user's clicks")


@memory.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--parts", type=click.IntRange(1, 10_000), required=True, help="How many partitions.")
@shop_option
@json_option
def split(folder: Path, parts: int, shop_path: Path, as_json: bool) -> None:
    """Write the log to FOLDER in partitions of users, for memory beyond one machine.

    \b
    qagent memory split big --parts 8
    qagent memory build big                          alone, or on several machines:
    mlx.launch --hostfile hosts.json -- qagent memory build big
    """
    from qagent_mlx.memory.sharding import split as write

    with opened(shop_path) as shop, waiting("writing partitions"):
        report = write(shop, folder, parts)
    if as_json:
        emit(asdict(report))
    else:
        out().print(shown(f"wrote {sum(report.events):,} events in {parts} partitions"))
        out().print(shown(f"next: qagent memory build {folder}"), soft_wrap=True)


@memory.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@json_option
def build(folder: Path, as_json: bool) -> None:
    """Build the profiles of the partitions in FOLDER: all, or a rank's share under mlx.launch."""
    from qagent_mlx.memory.sharding import build_all

    with waiting("building partitions"):
        report = build_all(folder)
    if as_json:
        emit(asdict(report))
    else:
        out().print(
            f"rank {report.rank} of {report.size} built {len(report.parts)} "
            f"partitions with {report.users:,} users"
        )


def draw_memory(view: MemoryView) -> None:
    """Print a user's profile and interest graph."""
    from rich.text import Text

    console = out()
    events = f"{view.events:,} events" if view.events else "no events: a new user"
    console.print(shown(f"{view.user} at {view.as_of:%Y-%m-%d %H:%M} UTC, {events}", "bold"))
    console.print(f"profile of {view.tokens} tokens instead of {view.raw_tokens:,} of raw log\n")
    for line in view.text.splitlines():
        console.print(Text.assemble("  ", shown(line)))
    if view.graph.nodes:
        console.print()
        console.print(_graph_tree(view.graph))


def _graph_tree(graph: InterestGraph) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text("interest graph", "bold"), guide_style="dim")
    # Products go under "seen"; the other kinds keep the order of how much they say.
    order = ("category", "department", "brand", "attribute", "price", "term", "product")
    mark = "█" if writes_unicode() else "#"
    linked: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for edge in graph.edges:
        kinds = edge.source_kind, edge.target_kind, edge.relation
        if kinds == ("category", "category", "next"):
            after.setdefault(edge.source, []).append(edge.target)
        elif kinds == ("category", "brand", "session"):
            linked.setdefault(edge.source, []).append(edge.target)
    for kind in order:
        nodes = [node for node in graph.nodes if node.kind == kind][:5]
        if not nodes:
            continue
        branch = tree.add(Text(kind, "bold"))
        for node in nodes:
            bar = mark * max(1, round(node.share * 12))
            name = shown(short(node.title or node.name, 48))
            line = Text.assemble((f"{bar:<12} ", "cyan"), f"{node.share:>4.0%}  ", name)
            brands = linked.get(node.name, []) if kind == "category" else []
            leaf = branch.add(line)
            if brands:
                leaf.add(Text.assemble("with ", shown(", ".join(brands[:4]))))
            if kind == "category" and node.name in after:
                leaf.add(Text.assemble("then ", shown(", ".join(after[node.name][:4]))))
    return tree
