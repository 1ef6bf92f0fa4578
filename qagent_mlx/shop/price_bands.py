"""Price bands: whether a product is cheap, middling or dear within its category.

A category's limits are the terciles of its products' first known prices. So a sale moves a
product into a lower band, and no later price moves a limit. Products without a category are
compared with each other.
"""

from __future__ import annotations

from ..protocol.marks import Mark

_LIMITS = """
WITH first AS (
    SELECT product_id, arg_min_null(price, ts) AS price FROM {history} GROUP BY product_id),
priced AS (
    SELECT p.product_id, p.category,
           CASE WHEN f.product_id IS NULL THEN p.price ELSE f.price END AS price
    FROM {products} p LEFT JOIN first f ON f.product_id = p.product_id)
SELECT product_id, price,
       quantile_cont(price, 1 / 3) OVER (PARTITION BY category) AS low,
       quantile_cont(price, 2 / 3) OVER (PARTITION BY category) AS high
FROM priced"""


def price_limits_sql(products: str = "products", history: str = "product_history") -> str:
    """SQL of (product_id, price, low, high): first known prices, and the limits of the bands.

    Args:
        products: A table or subquery with product_id, category and price.
        history: One with product_id, ts and price.
    """
    return _LIMITS.format(products=products, history=history)


def price_band(price: float | None, low: float | None, high: float | None) -> str:
    """The band of a price, ``$`` to ``$$$``; empty where it or a limit is None or NaN."""
    if price is None or low is None or high is None or price != price or low != low:
        return ""
    return Mark.CHEAP if price <= low else Mark.MIDDLE if price <= high else Mark.DEAR
