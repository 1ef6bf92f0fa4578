"""The interest graph of one user at a moment, as nodes and edges that can be drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise

from msgspec import Struct, field

from .interest_weights import Node, strongest_interests, touches
from .loader import MemoryLoader
from .types import Moment

MAX_EDGES = 72  # of each relation

# From wide to narrow: an edge within a session points that way.
KINDS = ("category", "department", "brand", "attribute", "price", "term", "product")
FOLLOWED = ("category", "brand", "term")  # kinds with edges from a session to the next

Edge = tuple[str, Node, Node]  # relation, from, to


class GraphNode(Struct, frozen=True, omit_defaults=True):
    """Something that the user is interested in; ``kind`` is one of `KINDS`."""

    kind: str
    name: str = field(name="node")
    weight: float  # event weights, halved each half-life
    share: float  # of the weight of its kind
    title: str | None = None  # of a product


class GraphEdge(Struct, frozen=True):
    """Two nodes of the same sessions (relation ``session``), or of one and the ``next``."""

    source: str = field(name="from")
    source_kind: str = field(name="from_kind")
    target: str = field(name="to")
    target_kind: str = field(name="to_kind")
    kind: str  # written like ``category-brand``
    relation: str
    weight: float


class InterestGraph(Struct, frozen=True):
    """What a user is interested in; both ends of an edge are among the nodes."""

    nodes: list[GraphNode]
    edges: list[GraphEdge]


def interest_graph(loader: MemoryLoader, moment: Moment) -> InterestGraph:
    """What a user is interested in, from events before the moment only."""
    history = loader.history(moment)
    touched = list(touches(history, loader.config))
    weights: dict[Node, float] = defaultdict(float)
    for _, node, weight in touched:
        weights[node] += weight
    interests = strongest_interests(weights)
    shown = {(interest.kind, interest.name) for interest in interests}
    sessions: dict[int, dict[Node, float]] = {e.session_id: {} for e in history.events}
    for session, node, weight in touched:
        if node in shown:
            sessions[session][node] = sessions[session].get(node, 0.0) + weight
    edges: dict[Edge, float] = defaultdict(float)
    for edge, weight in _edges(list(sessions.values())):
        edges[edge] += weight
    nodes = [
        GraphNode(
            i.kind,
            i.name,
            round(i.weight, 4),
            round(i.share, 4),
            history.products[i.name].title if i.kind == "product" else None,
        )
        for i in interests
    ]
    return InterestGraph(nodes, [_graph_edge(edge, edges[edge]) for edge in _strongest(edges)])


def _graph_edge(edge: Edge, weight: float) -> GraphEdge:
    relation, (source_kind, source), (target_kind, target) = edge
    kind = f"{source_kind}-{target_kind}"
    return GraphEdge(source, source_kind, target, target_kind, kind, relation, round(weight, 4))


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
