from __future__ import annotations

from datetime import datetime

import msgspec
import pytest

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory.interest_graph import interest_graph
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "products.csv"
    path.write_text(
        "product_id,title,brand,category,price\n"
        "t,Acme Tent,Acme,Camping > Tent,100\n"
        "s,Brio Stove,Brio,Camping > Stove,50\n"
        "h,Cadence Helmet,Cadence,Cycling > Helmet,70\n"
    )
    with Shop.create(tmp_path / "shop") as shop:
        ingest_files(shop, "products", [path])
        append_events(
            shop,
            [
                {"user_id": "ann", "time": time, "type": kind, "query": query, "product_id": item}
                for time, kind, query, item in (
                    ("2026-01-01T10:00", "search", "tent", None),
                    ("2026-01-01T10:01", "purchase", "tent", "t"),
                    ("2026-01-01T10:02", "click", None, "s"),
                    ("2026-01-05T10:00", "click", None, "h"),
                )
            ],
        )
        yield shop


def of(shop, *moment):
    memory = Memory(shop.connection, shop.config.memory, count_words)
    return msgspec.to_builtins(interest_graph(memory.loader, Moment("ann", datetime(*moment))))


def test_brands_are_linked_to_categories_of_the_same_session_only(shop):
    links = {
        (e["from"], e["to"])
        for e in of(shop, 2026, 2, 1)["edges"]
        if e["kind"] == "category-brand" and e["relation"] == "session"
    }
    assert links == {
        ("Tent", "Acme"),
        ("Tent", "Brio"),
        ("Stove", "Acme"),
        ("Stove", "Brio"),
        ("Helmet", "Cadence"),
    }


def test_edges_of_a_session_come_before_those_to_the_next_and_the_strong_before_the_weak(shop):
    edges = of(shop, 2026, 2, 1)["edges"]
    order = [(edge["relation"] == "next", -edge["weight"]) for edge in edges]
    assert order == sorted(order) and {later for later, _ in order} == {False, True}
    # Each pair within a session is linked once: its nodes' kinds differ, in one order.
    pairs = [frozenset({(e["from_kind"], e["from"]), (e["to_kind"], e["to"])}) for e in edges]
    within = [pair for pair, (later, _) in zip(pairs, order, strict=True) if not later]
    assert len(within) == len(set(within)) and all(len({k for k, _ in p}) == 2 for p in within)


def test_shares_of_a_kind_add_up_and_the_strongest_comes_first(shop):
    nodes = [n for n in of(shop, 2026, 2, 1)["nodes"] if n["kind"] == "category"]
    assert nodes[0]["node"] == "Tent"
    assert sum(n["share"] for n in nodes) == pytest.approx(1, abs=1e-3)


def test_nothing_at_or_after_the_moment_is_seen(shop):
    assert of(shop, 2026, 1, 1, 10, 0) == {"nodes": [], "edges": []}
    early = of(shop, 2026, 1, 5, 10, 0)
    assert "Helmet" not in {n["node"] for n in early["nodes"]}
    assert "Cadence" not in {e["to"] for e in early["edges"]}


def test_products_have_their_titles(shop):
    nodes = of(shop, 2026, 2, 1)["nodes"]
    titles = {n["node"]: n["title"] for n in nodes if n["kind"] == "product"}
    assert titles == {"t": "Acme Tent", "s": "Brio Stove", "h": "Cadence Helmet"}


def test_an_edge_leads_to_what_the_next_session_touched(shop):
    edges = of(shop, 2026, 2, 1)["edges"]
    steps = {
        (e["from"], e["to"])
        for e in edges
        if e["relation"] == "next" and e["kind"] == "category-category"
    }
    assert steps == {("Tent", "Helmet"), ("Stove", "Helmet")}


def test_query_terms_and_price_bands_are_linked_to_what_was_engaged(shop):
    kinds = {e["kind"] for e in of(shop, 2026, 2, 1)["edges"] if e["relation"] == "session"}
    assert {"category-term", "category-product", "brand-product", "brand-price"} <= kinds


def test_both_ends_of_an_edge_are_nodes(shop):
    found = of(shop, 2026, 2, 1)
    nodes = {(n["kind"], n["node"]) for n in found["nodes"]}
    for e in found["edges"]:
        assert {(e["from_kind"], e["from"]), (e["to_kind"], e["to"])} <= nodes
        assert e["weight"] > 0
