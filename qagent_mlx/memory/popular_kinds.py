"""The kinds of products that a shop's users go for, by which memory fills up a profile.

They are for profiles that may hold nobody else's queries and of whose user too little is known: a
kind is named by the catalog, not by what anybody typed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime

import duckdb

from ..shop.config import MemoryConfig
from ..utils.text import query_key, title_head
from .sql import sql

MAX_KINDS = 8
_PRODUCTS = 400  # the most popular ones, whose kinds are counted
_HALF_LIVES = 8  # after so many an event counts nothing


def popular_kinds(
    connection: duckdb.DuckDBPyConnection, days: Collection[datetime], config: MemoryConfig
) -> dict[datetime, tuple[str, ...]]:
    """At most `MAX_KINDS` kinds for each day, the most popular first, from the log before it.

    A kind is the narrowest category of a product; of one without a category, the beginning of its
    title (`title_head`), as for games and books.
    """
    if not days:
        return {}
    query = sql(
        "popular_products",
        view=config.weight_view,
        click=config.weight_click,
        cart=config.weight_cart,
        purchase=config.weight_purchase,
        half_life=config.half_life_days,
        window=max(1, round(_HALF_LIVES * config.half_life_days)),
        most=_PRODUCTS,
    )
    worth: dict[datetime, dict[str, float]] = {day: defaultdict(float) for day in days}
    for day, title, leaf, weight in connection.execute(query, {"days": sorted(days)}).fetchall():
        kind = leaf.lower() if leaf and query_key(leaf) else title_head(title)
        if query_key(kind):
            worth[day][kind] += weight
    return {
        day: tuple(sorted(kinds, key=lambda kind: (-round(kinds[kind], 9), kind))[:MAX_KINDS])
        for day, kinds in worth.items()
    }
