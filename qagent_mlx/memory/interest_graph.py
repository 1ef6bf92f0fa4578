"""The interest graph of one user at a moment, as nodes and edges that can be drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from .interests import Node, strongest_interests
from .loader import MemoryLoader
from .types import Moment

MAX_EDGES = 72  # of each relation

# From wide to narrow: an edge within a session points that way.
KINDS = ("category", "department", "brand", "attribute", "price", "term", "product")
FOLLOWED = ("category", "brand", "term")  # kinds with edges from a session to the next

Edge = tuple[str, Node, Node]  # relation, from, to


@dataclass(frozen=True, slots=True)
class GraphNode:
    """Something that the user is interested in; ``kind`` is one of `KINDS`."""

    kind: str
    name: str
    weight: float  # event weights, halved each half-life
    share: float  # of the weight of its kind
    title: str | None = None  # of a product

    def to_dict(self) -> dict[str, Any]:
        """As JSON; only products have a title."""
        title = {} if self.title is None else {"title": self.title}
        values = {"kind": self.kind, "node": self.name, "weight": self.weight, "share": self.share}
        return values | title


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """Two nodes of the same sessions (relation ``session``), or of one and the ``next``."""

    source: str
    source_kind: str
    target: str
    target_kind: str
    relation: str
    weight: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON; ``kind`` is written like ``category-brand``."""
        return {
            "from": self.source,
            "from_kind": self.source_kind,
            "to": self.target,
            "to_kind": self.target_kind,
            "kind": f"{self.source_kind}-{self.target_kind}",
            "relation": self.relation,
            "weight": self.weight,
        }


@dataclass(frozen=True, slots=True)
class InterestGraph:
    """What a user is interested in; both ends of an edge are among the nodes."""

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "nodes": [node.to_dict() for node in self.nodes],
            "edges": [edge.to_dict() for edge in self.edges],
        }


def interest_graph(loader: MemoryLoader, moment: Moment) -> InterestGraph:
    """What a user is interested in, from events before the moment only."""
    touches, events, log = loader.interest_touches(moment)
    weights: dict[Node, float] = defaultdict(float)
    for _, node, weight in touches:
        weights[node] += weight
    interests = strongest_interests(weights)
    shown = {(interest.kind, interest.name) for interest in interests}
    sessions: dict[int, dict[Node, float]] = {e.session_id: {} for e in events}  # in their order
    for session, node, weight in touches:
        if node in shown:
            sessions[session][node] = sessions[session].get(node, 0.0) + weight
    edges: dict[Edge, float] = defaultdict(float)
    for edge, weight in _edges(list(sessions.values())):
        edges[edge] += weight
    return InterestGraph(
        tuple(
            GraphNode(
                interest.kind,
                interest.name,
                round(interest.weight, 4),
                round(interest.share, 4),
                log.products[interest.name].title if interest.kind == "product" else None,
            )
            for interest in interests
        ),
        tuple(
            GraphEdge(source, source_kind, target, target_kind, relation, round(edges[edge], 4))
            for edge in _strongest(edges)
            for relation, (source_kind, source), (target_kind, target) in [edge]
        ),
    )


def _edges(sessions: list[dict[Node, float]]) -> Iterator[tuple[Edge, float]]:
    """Pairs of nodes within sessions and across two in a row, with the weaker node's weight."""
    for touched in sessions:
        nodes = [node for node in touched if node[0] != "department"]
        for a, b in combinations(sorted(nodes, key=lambda node: KINDS.index(node[0])), 2):
            if a[0] != b[0]:
                yield ("session", a, b), min(touched[a], touched[b])
    for before, after in pairwise(sessions):
        for a, weight in before.items():
            if a[0] in FOLLOWED:
                for b, later in after.items():
                    if b[0] == a[0] and b != a:
                        yield ("next", a, b), min(weight, later)


def _strongest(edges: Mapping[Edge, float]) -> list[Edge]:
    """At most `MAX_EDGES` of a relation; those of categories and brands are counted apart."""
    order = sorted(edges, key=lambda edge: (-round(edges[edge], 9), *edge[1], *edge[2]))
    counts: dict[tuple[str, bool], int] = defaultdict(int)
    strongest = []
    for edge in order:
        group = edge[0], (edge[1][0], edge[2][0]) == ("category", "brand")
        counts[group] += 1
        if counts[group] <= MAX_EDGES:
            strongest.append(edge)
    return sorted(strongest, key=lambda edge: edge[0] == "next")
