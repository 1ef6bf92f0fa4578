"""The interest graph of one user at a moment, as nodes and edges that can be shown."""

from __future__ import annotations

from typing import Any

from . import tables
from .profile import Memory, Moment

NODES = 8  # of each kind
EDGES = 24

# An edge weighs what its weaker end weighed in each session that has both.
_EDGES = """
WITH ends AS (
    SELECT session_id, 'category' AS kind, leaf AS node, sum(weight) AS weight
    FROM engaged WHERE moment = 0 AND leaf <> '' GROUP BY session_id, leaf
    UNION ALL
    SELECT session_id, 'brand', brand, sum(weight)
    FROM engaged WHERE moment = 0 AND brand IS NOT NULL GROUP BY session_id, brand)
SELECT a.node, b.node, sum(least(a.weight, b.weight)) AS weight
FROM ends a JOIN ends b USING (session_id)
WHERE a.kind = 'category' AND b.kind = 'brand'
GROUP BY a.node, b.node ORDER BY weight DESC, a.node, b.node
"""


def graph(memory: Memory, moment: Moment) -> dict[str, list[dict[str, Any]]]:
    """What a user is interested in, from events before the moment only.

    Args:
        memory: Of the user's shop.
        moment: The user and the time.

    Returns:
        ``nodes``: kind (category, department, brand, price, attribute, term, product), node,
        weight (event weights, halved each half-life), share of its kind; products also with
        their title. ``edges``: from (a category), to (a brand), weight and kind, for pairs
        that the user engaged with in one session; both ends are among the nodes.
    """
    memory.profiles([moment], sections=())  # makes the tables of the moment
    nodes = [
        {"kind": kind, "node": node, "weight": round(weight, 4), "share": round(share, 4)}
        for _, kind, node, weight, share in tables.node_rows(memory.connection, NODES)
    ]
    titles = dict(
        memory.connection.execute("SELECT DISTINCT product_id, title FROM engaged").fetchall()
    )
    for node in nodes:
        if node["kind"] == "product":
            node["title"] = titles.get(node["node"], "")
    present = {(node["kind"], node["node"]) for node in nodes}
    edges = [
        {"from": category, "to": brand, "weight": round(weight, 4), "kind": "category-brand"}
        for category, brand, weight in memory.connection.execute(_EDGES).fetchall()
        if ("category", category) in present and ("brand", brand) in present
    ]
    return {"nodes": nodes, "edges": edges[:EDGES]}
