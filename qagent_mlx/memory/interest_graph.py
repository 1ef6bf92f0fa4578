"""The interest graph of one user at a moment, as nodes and edges that can be shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise
from typing import Any

from .profile import Memory
from .types import Moment
from .user_state import NODES, heaviest

EDGES = 72  # of each relation

# From what is wide to what is narrow: an edge within a session points that way.
KINDS = ("category", "department", "brand", "attribute", "price", "term", "product")
LEADING = ("category", "brand", "term")  # of these, edges lead from a session to the next

Node = tuple[str, str]  # kind and name
Edge = tuple[str, Node, Node]  # relation, from, to


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
    touches, events, log = memory.reader.touches(moment)
    weights: dict[Node, float] = defaultdict(float)
    for _, kind, node, weight in touches:
        weights[kind, node] += weight
    rows = heaviest(weights, NODES)
    nodes: list[dict[str, Any]] = [
        {"kind": kind, "node": node, "weight": round(weight, 4), "share": round(share, 4)}
        for kind, node, weight, share in rows
    ]
    for shown_node in nodes:
        if shown_node["kind"] == "product":
            shown_node["title"] = log.goods[shown_node["node"]].title
    shown = {(kind, node) for kind, node, _, _ in rows}
    sessions: dict[int, dict[Node, float]] = {e.session_id: {} for e in events}  # in their order
    for session, kind, name, weight in touches:
        if (kind, name) in shown:
            here = sessions[session]
            here[kind, name] = here.get((kind, name), 0.0) + weight
    linked: dict[Edge, float] = defaultdict(float)
    for edge, weight in _links(list(sessions.values())):
        linked[edge] += weight
    return {"nodes": nodes, "edges": [_shown(edge, linked[edge]) for edge in _strongest(linked)]}


def _links(sessions: list[dict[Node, float]]) -> Iterator[tuple[Edge, float]]:
    """What two sessions have in common, or two ends in one: the weaker end's weight."""
    for touched in sessions:
        ends = [end for end in touched if end[0] != "department"]
        for one, other in combinations(sorted(ends, key=lambda end: KINDS.index(end[0])), 2):
            if one[0] != other[0]:
                yield ("session", one, other), min(touched[one], touched[other])
    for before, after in pairwise(sessions):
        for one, weight in before.items():
            if one[0] in LEADING:
                for other, later in after.items():
                    if other[0] == one[0] and other != one:
                        yield ("next", one, other), min(weight, later)


def _strongest(linked: Mapping[Edge, float]) -> list[Edge]:
    """At most `EDGES` of a relation; those of categories and brands are counted apart."""
    order = sorted(linked, key=lambda edge: (-round(linked[edge], 9), *edge[1], *edge[2]))
    counts: dict[tuple[str, bool], int] = defaultdict(int)
    kept = []
    for edge in order:
        group = edge[0], (edge[1][0], edge[2][0]) == ("category", "brand")
        counts[group] += 1
        if counts[group] <= EDGES:
            kept.append(edge)
    return sorted(kept, key=lambda edge: edge[0] == "next")


def _shown(edge: Edge, weight: float) -> dict[str, Any]:
    relation, (source_kind, source), (target_kind, target) = edge
    return {
        "from": source,
        "from_kind": source_kind,
        "to": target,
        "to_kind": target_kind,
        "kind": f"{source_kind}-{target_kind}",
        "relation": relation,
        "weight": round(weight, 4),
    }
