"""``qagent memory``: show, export or forget what is known of a user."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, note, out, safe, say, short, waiting, writes_unicode
from .groups import Group
from .options import Output, as_of_option, json_option, opened, shop_option
from .param_types import FILE, ID, PLAIN

if TYPE_CHECKING:
    from rich.tree import Tree

    from qagent_mlx.memory.inspect import MemoryView
    from qagent_mlx.memory.interest_graph import InterestGraph
    from qagent_mlx.memory.title_kinds import TitleKinds


class UserFirst(Group):
    """A group whose first word may be a user: ``memory ann`` is ``memory show ann``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``show`` before what is no command of the group.

        Two words are a command with its user, so a first one that is none was mistyped.
        """
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            if len(args) > 1 and not (args[0].startswith("-") or args[1].startswith("-")):
                from .near import near_commands, unknown_command

                if near_commands(args[0], self.commands):
                    raise unknown_command(args[0], self.commands, ctx)
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
@click.argument("user", type=ID)
@as_of_option
@click.option(
    "--html",
    type=FILE,
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
    user: str, as_of: datetime | None, html: Path | None, summarizer: str | None, shop_path: Path
) -> Output:
    """Show the profile of USER that the agent reads, and the interest graph.

    A user without events gets what a new user gets: the shop's trends.
    """
    from qagent_mlx.policy.shop_memory import inspect_memory

    with opened(shop_path) as shop, waiting("remembering"):
        view = inspect_memory(shop, user, as_of, summarizer=summarizer)
    if html:
        from qagent_mlx.memory.inspect import page
        from qagent_mlx.shop.traces import note_export
        from qagent_mlx.utils.atomic_files import write_text

        write_text(html, page(view))
        note_export(shop_path, html)
        note(f"wrote {html}")
        return Output(view.to_dict(), lambda: None)
    return Output(view.to_dict(), lambda: draw_memory(view))


@memory.command()
@click.argument("user", type=ID)
@shop_option
@json_option
def export(user: str, shop_path: Path) -> Output:
    """Print all that the shop and its runs hold of USER, as one JSON document."""
    from qagent_mlx.privacy import export_user

    with opened(shop_path) as shop, waiting("collecting"):
        document = export_user(shop, user).to_dict()
    return Output(document, lambda: emit(document))


@memory.command()
@click.argument("user", type=ID)
@click.option("--query", type=PLAIN, help="Only what USER did under this query.")
@click.option("--category", type=PLAIN, metavar="PATH", help="Only what USER did in this category.")
@click.option(
    "--yes", is_flag=True, help="Delete without asking; where stdin is no terminal nobody is asked."
)
@shop_option
@json_option
@click.pass_context
def forget(
    ctx: click.Context,
    user: str,
    query: str | None,
    category: str | None,
    yes: bool,
    shop_path: Path,
) -> Output:
    """Delete all that the shop and its runs hold of USER, and name the policies that saw it.

    Events, rejected rows, profile and graph go, cases and sampled chains of runs too, and so do
    queries that nobody else has typed, wherever others were shown them. What remains is named:
    trained policies keep what they learned, and exports lie elsewhere. Stop training first.
    """
    from qagent_mlx.privacy import erase_user

    if query is not None and category is not None:
        raise click.UsageError("give one of --query and --category")
    what = "everything about" if query is None and category is None else "this of"
    if not yes and not ctx.params["as_json"] and sys.stdin.isatty():
        click.confirm(f"Delete {what} {user} for good?", abort=True, err=True)
    if what == "this of":
        return _forget_part(user, query, category, shop_path)
    with opened(shop_path, write=True) as shop, waiting("forgetting"):
        report = erase_user(shop, user).to_dict()
    return Output(report, lambda: _draw_forgotten(user, report))


def _forget_part(user: str, query: str | None, category: str | None, shop_path: Path) -> Output:
    """Delete a user's events of a query or category, and recommend it to them no more."""
    from qagent_mlx.ingest.forgetting import forget_events
    from qagent_mlx.live.wishes import change_wishes, new_wish

    with opened(shop_path, write=True) as shop, waiting("forgetting"):
        wish = new_wish(user, query, category)
        change_wishes(shop, [wish])
        events = forget_events(shop, user, query, category)
    document = {"user": user, "wish": wish.to_dict(), "events": events}
    text = f"forgot {events:,} events of {user}; {_wish_text(wish.to_dict())} comes no more"
    return Output(document, lambda: say(text))


def _draw_forgotten(user: str, report: dict[str, Any]) -> None:
    say(
        f"forgot {user}: {report['events']:,} events, {report['recommendations']:,} "
        f"recommendations, {report['rejects']:,} rejected rows, "
        f"{sum(report['cases'].values()):,} cases and "
        f"{sum(report['rollouts'].values()):,} chains in runs"
    )
    if report["queries"]:
        text = "what others were shown, runs and stored memory hold them no more"
        say(f"{report['queries']:,} queries were typed by nobody else; {text}")
    for file, rows in report["files"].items():
        say(f"erased {rows:,} rows of {file}")
    for place in report["remains"]:
        say(f"  {place} holds, or may hold, something of the user still; delete or clean it")
    for seen in report["policies"]:
        how = f"{seen['cases']} cases" if seen["certain"] else "perhaps"
        through = f", through {seen['through']}" if seen["through"] else ""
        say(
            f"  the policy {seen['policy']} saw the user in its {seen['stage']} "
            f"({how}{through}); train it anew to be rid of it"
        )
    say("next: qagent index, so that search forgets the user's clicks")


@memory.command("unwanted")
@click.argument("user", type=ID)
@click.argument("query", type=PLAIN, required=False)
@click.option("--category", type=PLAIN, metavar="PATH", help="A category instead of a query.")
@click.option(
    "--withdraw", metavar="ID", help="Wish to take back: what it named may be recommended again."
)
@shop_option
@json_option
def unwanted(
    user: str, query: str | None, category: str | None, withdraw: str | None, shop_path: Path
) -> Output:
    """Never recommend QUERY to USER again; without one, list what USER wants no more.

    The memory of it stays; qagent memory forget USER --query QUERY deletes that, too.
    """
    from qagent_mlx.live.wishes import change_wishes, new_wish, wishes_of, withdrawn_wish

    if sum(value is not None for value in (query, category, withdraw)) > 1:
        raise click.UsageError("give one of QUERY, --category and --withdraw")
    is_change = query or category or withdraw
    with opened(shop_path, write=bool(is_change)) as shop:
        if withdraw is not None:
            change_wishes(shop, [withdrawn_wish(shop, user, withdraw)])
        elif is_change:
            change_wishes(shop, [new_wish(user, query, category)])
        wishes = [wish.to_dict() for wish in wishes_of(shop, [user])]

    def draw() -> None:
        for wish in wishes:
            say(f"{user} wants no more: {_wish_text(wish)} (id {wish['wish_id']})")
        if not wishes:
            say(f"nothing is unwanted by {user}")

    return Output({"user": user, "wishes": wishes}, draw)


def _wish_text(wish: dict[str, Any]) -> str:
    return str(wish["query"] or f"the category {wish['category']}")


@memory.command()
@click.option(
    "--anew",
    is_flag=True,
    help="Compute every user again, also those whom a machine of the lake has published.",
)
@shop_option
@json_option
def build(anew: bool, shop_path: Path) -> Output:
    """Store the profiles of all users; in a lake together with all machines that do so.

    \b
    qagent memory build      on each machine; users are computed by one of them

    `qagent index` does so, too, before it indexes products. A user's events and purchases are
    followed without it.
    """
    from qagent_mlx.memory.buckets import build_memory

    with opened(shop_path, write=True) as shop, waiting("storing what is remembered of each user"):
        report = build_memory(shop, anew)

    def draw() -> None:
        say(f"stored memory of {report.users:,} users, {report.computed:,} computed here")
        if report.buckets:
            say(
                f"published {report.published} of {report.buckets} buckets, as of snapshot "
                f"{report.snapshot} of the lake"
            )
        say_title_kinds(report.title_kinds)

    return Output(asdict(report), draw)


def say_title_kinds(told: TitleKinds | None) -> None:
    """Say where memory guesses kinds of products, and what would be better."""
    if told is None:
        return
    named = "by the beginning of their titles"
    if told.from_titles:
        rest = "" if told.from_titles == told.products else f", the rest {named}"
        named = (
            f"by {told.kinds:,} kinds from words of their titles "
            f"({', '.join(told.examples)}{', …' if told.kinds > len(told.examples) else ''}){rest}"
        )
    say(
        f"memory may name nobody else's queries; {told.products:,} products without a category are "
        f"named {named}. Categories are better: qagent ingest products FILE --map category=COLUMN"
    )


def draw_memory(view: MemoryView) -> None:
    """Print a user's profile and interest graph."""
    from rich.text import Text

    events = f"{view.events:,} events" if view.events else "no events: a new user"
    say(f"{view.user} at {view.as_of:%Y-%m-%d %H:%M} UTC, {events}", "bold")
    say(f"profile of {view.tokens} tokens instead of {view.raw_tokens:,} of raw log")
    console = out()
    for wish in view.wishes:
        say(f"wants no more: {_wish_text(wish)} (id {wish['wish_id']})")
    console.print()
    for line in view.text.splitlines():
        console.print(Text.assemble("  ", safe(line)))
    if view.graph.nodes:
        console.print()
        console.print(_graph_tree(view.graph))


# Products go under "seen"; the other kinds keep the order of how much they say.
_KINDS = ("category", "department", "brand", "attribute", "price", "term", "product")


def _graph_tree(graph: InterestGraph) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    brands: dict[str, list[str]] = {}
    following: dict[str, list[str]] = {}
    for edge in graph.edges:
        match edge.source_kind, edge.target_kind, edge.relation:
            case "category", "category", "next":
                following.setdefault(edge.source, []).append(edge.target)
            case "category", "brand", "session":
                brands.setdefault(edge.source, []).append(edge.target)
    tree = Tree(Text("interest graph", "bold"), guide_style="dim")
    mark = "█" if writes_unicode() else "#"
    for kind in _KINDS:
        nodes = [node for node in graph.nodes if node.kind == kind][:5]
        if not nodes:
            continue
        branch = tree.add(Text(kind, "bold"))
        for node in nodes:
            bar = mark * max(1, round(node.share * 12))
            name = safe(short(node.title or node.name, 48))
            leaf = branch.add(Text.assemble((f"{bar:<12} ", "cyan"), f"{node.share:>4.0%}  ", name))
            if kind != "category":
                continue
            for label, names in (("with", brands), ("then", following)):
                if node.name in names:
                    leaf.add(safe(f"{label} {', '.join(names[node.name][:4])}"))
    return tree
