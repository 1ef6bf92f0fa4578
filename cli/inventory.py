"""``qagent index`` and ``search``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from msgspec import Meta

from .console import note, out, print_table, say, waiting
from .options import Output, as_of_option, json_option, opened, setting_options, shop_option
from .param_types import ID, PLAIN

if TYPE_CHECKING:
    from qagent_mlx.inventory.product_search import ProductHit


@click.command()
@click.option(
    "--update",
    "only_update",
    is_flag=True,
    help="Only bring in what changed in the catalog; the encoder stays as it is.",
)
@click.option(
    "--anew",
    is_flag=True,
    help="Learn all of it again, also where nothing has changed of what it was learned from.",
)
@click.option(
    "--remove",
    multiple=True,
    type=ID,
    metavar="PRODUCT",
    help="Take a product out of the catalog and the index; may be repeated.",
)
@click.option(
    "--encoder",
    type=PLAIN,
    metavar="ENCODER",
    help="Encoder of the vectors, kept for next time: subword (learned from the shop), a model "
    "folder, or FILE.py:FUNCTION.",
)
@click.option(
    "--dimensions",
    type=click.IntRange(2, 8192),
    help="Length of the vectors, at most; kept for next time.",
)
@shop_option
@json_option
def index(
    only_update: bool,
    anew: bool,
    remove: tuple[str, ...],
    encoder: str | None,
    dimensions: int | None,
    shop_path: Path,
) -> Output:
    """Build or refresh the inventory index, and learn what lines of memory are worth.

    What was learned stays, where only the end of the log or prices and stock are new: until the log
    is a tenth longer, and the next week for what lines are worth.

    A search that finds its index older than the catalog updates it by itself; searches that
    are under way go on meanwhile.
    """
    from qagent_mlx.build import BuildReport, build_shop
    from qagent_mlx.inventory.updates import refresh_index, remove_products, set_encoder
    from qagent_mlx.policy.registry import policy_names

    from .memory import say_title_kinds

    if anew and (only_update or remove):
        raise click.UsageError("--anew learns all again; give it without --update and --remove")
    with opened(shop_path, write=True) as shop:
        if encoder is not None or dimensions is not None:
            set_encoder(shop, encoder, dimensions)
        if remove:
            remove_products(shop, remove)
        refreshes = only_update or bool(remove)
        result = refresh_index(shop) if refreshes else build_shop(shop, note, anew)
        report = result.to_dict()
        is_new = not policy_names(shop)

    def draw() -> None:
        _draw_index(report)
        if isinstance(result, BuildReport):
            say_title_kinds(result.title_kinds)
        if is_new:
            say("next: qagent recommend USER, or train a policy on this shop: qagent pretrain")

    return Output(report, draw)


def _draw_index(report: dict[str, Any]) -> None:
    if "added" in report:
        say(
            f"{report['products']:,} products: {report['added']:,} added, "
            f"{report['changed']:,} changed, {report['restated']:,} with a new price or stock, "
            f"{report['removed']:,} removed, in {report['seconds']:.1f} s"
        )
        return
    say(
        f"{report['products']:,} products indexed with {report['clicked_pairs']:,} "
        f"query-product pairs, in {report['seconds']:.1f} s"
    )
    if report["taken"]:
        say("the index is what another machine has published, nothing of it was built here")
    if floor := report["relevance"]:
        say(
            f"relevance floor: how high clicked products stand (NDCG@10, {floor['queries']} "
            f"queries) {floor['ndcg_without']:.3f} -> {floor['ndcg']:.3f}; nothing is found for "
            f"{floor['nothing_typed']:.1%} of them, {floor['nothing_misspelt']:.1%} of them with "
            f"two slips, {floor['nothing_noise']:.1%} of words of noise"
        )
    if report["learned_from"]:
        say(
            f"memory learned the worth of its lines from {report['learned_from']:,} moments "
            f"before {report['clicks_until'][:10]}"
        )
    else:
        say("memory keeps its default weights: the log holds too little to learn from")


@dataclass(frozen=True)
class SearchFilters:
    """Which products a search may return."""

    in_stock: Annotated[bool, Meta(description="Only products in stock.")] = False
    min_price: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="The lowest price.")
    ] = None
    max_price: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="The highest price.")
    ] = None
    category: Annotated[str | None, Meta(description="The beginning of the category's path.")] = (
        None
    )


@click.command()
@click.argument("query", type=PLAIN)
@click.option(
    "-k",
    default=10,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Number of products, at most.",
)
@setting_options(SearchFilters, into="filters", build=True)
@click.option(
    "--explain", is_flag=True, help="Show what words, vectors and past clicks say of each hit."
)
@as_of_option
@shop_option
@json_option
def search(
    query: str,
    k: int,
    filters: SearchFilters,
    explain: bool,
    as_of: datetime | None,
    shop_path: Path,
) -> Output:
    """Search the inventory for QUERY: words, vectors and past clicks, fused.

    Filters, prices and stock are those of the moment that --as-of names.
    """
    from qagent_mlx.inventory.product_search import search_products, unlike_products
    from qagent_mlx.inventory.types import Filters

    with opened(shop_path) as shop, waiting("searching"):
        products = search_products(
            shop, query, k, filters=Filters(**asdict(filters)), as_of=as_of, explain=explain
        )
        currency = shop.config.currency
        left_out = unlike_products(shop, query, as_of) if explain else 0

    def draw() -> None:
        draw_products(products, currency)
        if explain:
            _draw_reasons(products)
        if left_out:
            say(
                f"left out: {left_out} of the nearest products, which only vectors find and which "
                "are less like the query than what people choose (search.relevance_floor)"
            )

    return Output({"query": query, "results": [p.to_dict() for p in products]}, draw)


def draw_products(products: Sequence[ProductHit], currency: str) -> None:
    """Print products as a numbered table."""
    if not products:
        say("nothing found")
        return
    rows = [
        (
            rank,
            product.product_id,
            product.title,
            "-" if product.price is None else f"{currency}{product.price:,.2f}",
            "yes" if product.in_stock else "no",
            f"{product.score:.3f}",
        )
        for rank, product in enumerate(products, 1)
    ]
    columns = ("#", "product", "title", "price", "stock", "score")
    print_table(columns, rows, numbers=("#", "price", "score"), wide="title")


_SCORES = {"words": "BM25", "vectors": "cosine", "clicks": "weight"}


def _draw_reasons(products: Sequence[ProductHit]) -> None:
    """Print why each product was found."""
    for rank, product in enumerate(products, 1):
        assert product.why is not None
        why = product.why.to_dict()
        say(f"{rank}. {product.title}", "bold")
        for name, side in why["sides"].items():
            out().print(
                f"   {name:<8} rank {side['rank']:>2}, {_SCORES[name]} {side['score']:.3f}, "
                f"adds {side['adds']:.4f}"
            )
        matches = [
            word["typed"]
            if word["typed"] == word["matched"]
            else f"{word['typed']} as {word['matched']} ({word['how']})"
            for word in why["words"]
        ]
        if matches:
            say("   matched  " + ", ".join(dict.fromkeys(matches)))
        if why["borrowed"]:
            say("   clicks under " + ", ".join(why["borrowed"]))
