"""The interest graph of one user at a moment, as nodes and edges that can be shown."""

from __future__ import annotations

from typing import Any

from . import tables
from .profile import Memory, Moment

NODES = 8  # of each kind
EDGES = 72  # of each relation

# From what is wide to what is narrow: an edge within a session points that way.
KINDS = ("category", "department", "brand", "attribute", "price", "term", "product")

# What two sessions have in common, or two ends in one session: the weaker end's weight.
_EDGES = """
WITH kept AS (SELECT kind, node FROM shown),
touched AS (
    SELECT session_id, kind, node, sum(weight) AS weight, list_position({kinds}, kind) AS rank
    FROM ({touches}) SEMI JOIN kept USING (kind, node)
    WHERE moment = 0 GROUP BY session_id, kind, node),
numbered AS (
    SELECT session_id, row_number() OVER (ORDER BY min(ts), session_id) AS n
    FROM history WHERE moment = 0 GROUP BY session_id),
placed AS (SELECT t.*, s.n FROM touched t JOIN numbered s USING (session_id)),
linked AS (
    SELECT 'session' AS relation, a.kind AS from_kind, a.node AS from_node, b.kind AS to_kind,
           b.node AS to_node, sum(least(a.weight, b.weight)) AS weight
    FROM placed a JOIN placed b ON a.n = b.n
    WHERE a.rank < b.rank AND a.kind <> 'department' AND b.kind <> 'department' GROUP BY ALL
    UNION ALL
    SELECT 'next', a.kind, a.node, b.kind, b.node, sum(least(a.weight, b.weight))
    FROM placed a JOIN placed b ON b.n = a.n + 1
    WHERE a.kind = b.kind AND a.kind IN ('category', 'brand', 'term') AND a.node <> b.node
    GROUP BY ALL)
SELECT relation, from_kind, from_node, to_kind, to_node, weight FROM linked
QUALIFY row_number() OVER (
    PARTITION BY relation, from_kind = 'category' AND to_kind = 'brand'
    ORDER BY round(weight, 9) DESC, from_kind, from_node, to_kind, to_node) <= {edges}
ORDER BY relation DESC, round(weight, 9) DESC, from_kind, from_node, to_kind, to_node
"""


def graph(memory: Memory, moment: Moment) -> dict[str, list[dict[str, Any]]]:
    """What a user is interested in, from events before the moment only.

    Args:
        memory: Of the user's shop.
        moment: The user and the time.

    Returns:
        ``nodes``: kind (see `KINDS`), node, weight (event weights, halved each half-life),
        share of its kind; products also with their title. ``edges``: from, from_kind, to,
        to_kind, kind (as ``category-brand``), relation and weight. An edge of the relation
        ``session`` joins what was touched in the same sessions, one of ``next`` leads from
        what a session touched to what the following session did. Both ends are among the nodes.
    """
    memory.prepare([moment])
    connection = memory.connection
    rows = tables.node_rows(connection, NODES)
    nodes = [
        {"kind": kind, "node": node, "weight": round(weight, 4), "share": round(share, 4)}
        for _, kind, node, weight, share in rows
    ]
    titles = dict(connection.execute("SELECT DISTINCT product_id, title FROM engaged").fetchall())
    for node in nodes:
        if node["kind"] == "product":
            node["title"] = titles.get(node["node"], "")
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE shown AS {tables.NODES.format(keep=NODES)}"
    )
    query = _EDGES.format(
        kinds=list(KINDS), touches=tables.touches(memory.config), edges=EDGES
    )
    edges = [
        {
            "from": source, "from_kind": source_kind, "to": target, "to_kind": target_kind,
            "kind": f"{source_kind}-{target_kind}", "relation": relation,
            "weight": round(weight, 4),
        }
        for relation, source_kind, source, target_kind, target, weight in connection.execute(
            query
        ).fetchall()
    ]  # fmt: skip
    return {"nodes": nodes, "edges": edges}
