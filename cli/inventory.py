"""``qagent index`` and ``search``."""

from __future__ import annotations

from collections.abc import Sequence
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
    plain_table,
    shop_option,
    shown,
    waiting,
)

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
    "--remove",
    multiple=True,
    type=PLAIN,
    metavar="PRODUCT",
    help="Take a product out of the catalog and the index; may be repeated.",
)
@click.option(
    "--encoder",
    type=PLAIN,
    metavar="ENCODER",
    help="subword (learned from the shop), a model folder, or FILE.py:FUNCTION; kept.",
)
@click.option(
    "--dimensions", type=click.IntRange(2, 8192), help="Length of the vectors, at most; kept."
)
@shop_option
@json_option
def index(
    *,
    only_update: bool,
    remove: tuple[str, ...],
    encoder: str | None,
    dimensions: int | None,
    shop_path: Path,
    as_json: bool,
) -> None:
    """Build or refresh the inventory index, and learn what lines of memory are worth.

    A search that finds its index older than the catalog updates it by itself; searches that
    are under way go on meanwhile.
    """
    from qagent_mlx.build import build_shop
    from qagent_mlx.inventory.updates import refresh_index, remove_products, set_encoder

    with opened(shop_path, write=True) as shop:
        if encoder is not None or dimensions is not None:
            set_encoder(shop, encoder, dimensions)
        if remove:
            remove_products(shop, remove)
        report = refresh_index(shop) if only_update or remove else build_shop(shop, note)
    if as_json:
        emit(report)
        return
    console = out()
    if "added" in report:
        console.print(
            f"{report['products']:,} products: {report['added']:,} added, "
            f"{report['changed']:,} changed, {report['restated']:,} with a new price or stock, "
            f"{report['removed']:,} removed, in {report['seconds']:.1f} s"
        )
        return
    console.print(
        f"{report['products']:,} products indexed with {report['clicked_pairs']:,} "
        f"query-product pairs, in {report['seconds']:.1f} s"
    )
    if report["learned_from"]:
        console.print(
            f"memory learned the worth of its lines from {report['learned_from']:,} moments "
            f"before {report['clicks_until'][:10]}"
        )
    else:
        console.print("memory keeps its default weights: the log holds too little to learn from")


@click.command()
@click.argument("query", type=PLAIN)
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many.")
@click.option("--in-stock", is_flag=True, help="Only products in stock.")
@click.option("--min-price", type=click.FloatRange(min=0), help="The least price.")
@click.option("--max-price", type=click.FloatRange(min=0), help="The highest price.")
@click.option(
    "--explain", is_flag=True, help="Show what words, vectors and past clicks say of each hit."
)
@click.option("--category", type=PLAIN, help="The beginning of the category's path.")
@as_of_option
@shop_option
@json_option
def search(
    *,
    query: str,
    k: int,
    in_stock: bool,
    min_price: float | None,
    max_price: float | None,
    category: str | None,
    explain: bool,
    as_of: datetime | None,
    shop_path: Path,
    as_json: bool,
) -> None:
    """Search the inventory for QUERY: words, vectors and past clicks, fused.

    Filters, prices and stock are those of the moment that --as-of names.
    """
    from qagent_mlx.inventory.product_search import search_products
    from qagent_mlx.inventory.types import Filters

    filters = Filters(in_stock, min_price, max_price, category)
    with opened(shop_path) as shop, waiting("searching"):
        results = search_products(shop, query, k, filters=filters, as_of=as_of, explain=explain)
        currency = shop.config.currency
    if as_json:
        emit({"query": query, "results": [product.to_dict() for product in results]})
    else:
        draw_products(results, currency)
        if explain:
            draw_reasons(results)


def draw_products(results: Sequence[ProductHit], currency: str) -> None:
    """Print products as a numbered table."""
    if not results:
        out().print("nothing found")
        return
    table = plain_table(
        "#", "product", "title", "price", "stock", "score", numbers=("#", "price", "score")
    )
    table.columns[2].ratio = 1
    for number, product in enumerate(results, 1):
        price = "-" if product.price is None else f"{currency}{product.price:,.2f}"
        table.add_row(
            str(number),
            shown(product.product_id),
            shown(product.title),
            shown(price),
            "yes" if product.in_stock else "no",
            f"{product.score:.3f}",
        )
    out().print(table)


SIDES = {"words": "BM25", "vectors": "cosine", "clicks": "weight"}


def draw_reasons(results: Sequence[ProductHit]) -> None:
    """Print why each product was found."""
    console = out()
    for number, product in enumerate(results, 1):
        assert product.why is not None
        why = product.why.to_dict()
        console.print(shown(f"\n{number}. {product.title}", "bold"), soft_wrap=True)
        for name, side in why["sides"].items():
            console.print(
                f"   {name:<8} rank {side['rank']:>2}, {SIDES[name]} {side['score']:.3f}, "
                f"adds {side['adds']:.4f}"
            )
        told = [
            word["typed"]
            if word["typed"] == word["matched"]
            else f"{word['typed']} as {word['matched']} ({word['how']})"
            for word in why["words"]
        ]
        if told:
            console.print(shown("   matched  " + ", ".join(dict.fromkeys(told))), soft_wrap=True)
        if why["borrowed"]:
            console.print(shown("   clicks under " + ", ".join(why["borrowed"])), soft_wrap=True)
