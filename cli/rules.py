"""``qagent rules``: what is never recommended, and what always."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import print_table, say
from .groups import Group
from .options import Output, json_option, opened, shop_option
from .param_types import EXISTING_FILE, ID, MOMENT, PLAIN

if TYPE_CHECKING:
    from qagent_mlx.live.rules import Rule

_starts = click.option(
    "--from", "starts", type=MOMENT, metavar="T", help="Moment from which it holds (UTC)."
)
_ends = click.option(
    "--until", "ends", type=MOMENT, metavar="T", help="Moment from which it holds no more (UTC)."
)


@click.group(cls=Group)
def rules() -> None:
    """What is never recommended, and what always.

    Rules hold for every answer from the next one on; servers take up what is changed here within
    seconds, and what is posted to their /rules at once. GET /search shows what it finds.
    """


@rules.command("list")
@click.option("--all", "everything", is_flag=True, help="Also rules that were removed.")
@shop_option
@json_option
def list_rules(everything: bool, shop_path: Path) -> Output:
    """List the rules, with who made them and when."""
    from qagent_mlx.live.rules import rules_of

    with opened(shop_path) as shop:
        found = rules_of(shop, everything=everything)

    def draw() -> None:
        if not found:
            say("no rules yet; next: qagent rules block QUERY")
            return
        rows = [(r.rule_id, r.kind, _what(r), _when(r), _who(r)) for r in found]
        print_table(("id", "rule", "what", "when", "who"), rows, wide="what")

    return Output({"rules": [rule.to_dict() for rule in found]}, draw)


@rules.command()
@click.argument("queries", nargs=-1, required=True, type=PLAIN)
@click.option("--word", is_flag=True, help="Every query that holds this word or phrase.")
@click.option("--pattern", is_flag=True, help="Every query that this pattern (RE2) is found in.")
@_starts
@_ends
@shop_option
@json_option
def block(
    queries: tuple[str, ...],
    word: bool,
    pattern: bool,
    starts: datetime | None,
    ends: datetime | None,
    shop_path: Path,
) -> Output:
    """Never recommend QUERIES, in any spelling."""
    from qagent_mlx.live.rules import new_rule

    if word and pattern:
        raise click.UsageError("give one of --word and --pattern")
    kind = "block-word" if word else "block-pattern" if pattern else "block"
    made = [new_rule(kind, text=query, starts=starts, ends=ends) for query in queries]
    return _stored(shop_path, made)


@rules.command("import")
@click.argument("file", type=EXISTING_FILE, required=False)
@click.option(
    "--offensive",
    is_flag=True,
    help="Without FILE: the English list of better-profanity, less what the catalog sells.",
)
@shop_option
@json_option
def import_words(file: Path | None, offensive: bool, shop_path: Path) -> Output:
    """Block every query that holds a word or phrase of FILE, which has one a line."""
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.live.rules import blocked_words

    if offensive == (file is not None):
        raise click.UsageError("give either FILE or --offensive")
    if file is None:
        from qagent_mlx.live.offensive_words import offensive_words, without_catalog_words

        with opened(shop_path) as shop:
            words = without_catalog_words(shop, offensive_words())
        return _stored(shop_path, blocked_words(words))
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise QAgentError(f"{file} is no UTF-8 text; write one word a line") from error
    made = blocked_words(lines)
    if not made:
        raise QAgentError(f"{file} names no word; write one a line")
    return _stored(shop_path, made)


@rules.command()
@click.argument("category", type=PLAIN)
@_starts
@_ends
@shop_option
@json_option
def exclude(
    category: str, starts: datetime | None, ends: datetime | None, shop_path: Path
) -> Output:
    """Never recommend queries whose first product lies in CATEGORY, or below it."""
    from qagent_mlx.live.rules import new_rule

    rule = new_rule("exclude-category", category=category, starts=starts, ends=ends)
    return _stored(shop_path, [rule])


@rules.command()
@click.argument("product", type=ID)
@click.option("--query", type=PLAIN, help="Only under this query; by default under all.")
@_starts
@_ends
@shop_option
@json_option
def hide(
    product: str, query: str | None, starts: datetime | None, ends: datetime | None, shop_path: Path
) -> Output:
    """Never show PRODUCT (an id) with a recommended query."""
    from qagent_mlx.live.rules import new_rule

    rule = new_rule("hide-product", text=query, product_id=product, starts=starts, ends=ends)
    return _stored(shop_path, [rule])


@rules.command()
@click.argument("query", type=PLAIN)
@click.option(
    "--position",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Place of the query in an answer; 1 is the first.",
)
@click.option(
    "--category", type=PLAIN, metavar="PATH", help="Category that an answer must lead into anyway."
)
@_starts
@_ends
@shop_option
@json_option
def pin(
    query: str,
    position: int,
    category: str | None,
    starts: datetime | None,
    ends: datetime | None,
    shop_path: Path,
) -> Output:
    """Always recommend QUERY, where it finds something, to everybody who did not refuse it."""
    from qagent_mlx.live.rules import new_rule

    rule = new_rule(
        "pin", text=query, position=position, category=category, starts=starts, ends=ends
    )
    return _stored(shop_path, [rule])


@rules.command()
@click.argument("ids", nargs=-1, required=True, type=PLAIN)
@shop_option
@json_option
def remove(ids: tuple[str, ...], shop_path: Path) -> Output:
    """Remove rules by their ids; qagent rules list --all goes on showing them."""
    from qagent_mlx.live.rules import change_rules, withdrawn

    with opened(shop_path, write=True) as shop:
        gone = withdrawn(shop, ids)
        change_rules(shop, gone)
    document = {"rules": [rule.to_dict() for rule in gone]}
    return Output(document, lambda: say(f"{len(gone)} removed"))


def _stored(shop_path: Path, made: Sequence[Rule]) -> Output:
    """Store rules, and say so."""
    from qagent_mlx.live.rules import change_rules

    with opened(shop_path, write=True) as shop:
        change_rules(shop, made)
    document: dict[str, Any] = {"rules": [rule.to_dict() for rule in made]}

    def draw() -> None:
        for rule in made[:10]:
            say(f"{rule.rule_id}  {rule.kind}  {_what(rule)}")
        if len(made) > 10:
            say(f"and {len(made) - 10:,} more; they are in: qagent rules list")

    return Output(document, draw)


def _what(rule: Rule) -> str:
    parts = [rule.text or "", rule.product_id or "", rule.category or ""]
    place = f"at position {rule.position}" if rule.position else ""
    return ", ".join(part for part in (*parts, place) if part)


def _when(rule: Rule) -> str:
    times = [
        f"{word} {moment:%Y-%m-%d %H:%M}"
        for word, moment in (("from", rule.starts), ("until", rule.ends))
        if moment is not None
    ]
    return " ".join(times) or "always"


def _who(rule: Rule) -> str:
    made = f"{rule.author} {rule.created:%Y-%m-%d %H:%M}" if rule.created else rule.author
    if rule.removed is None:
        return made
    return f"{made}, removed by {rule.removed_by} {rule.removed:%Y-%m-%d %H:%M}"
