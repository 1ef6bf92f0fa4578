"""The index follows the catalog, in place, whatever happens meanwhile."""

import threading
from contextlib import contextmanager
from datetime import datetime

import numpy as np
import pytest
from crashes import index_matches as matches
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.inventory import index as index_module
from qagent_mlx.inventory import vector_index as module
from qagent_mlx.inventory.catalog import read_catalog
from qagent_mlx.inventory.index import IndexChanges, open_index
from qagent_mlx.inventory.index_files import LOCK, MANIFEST, leftovers
from qagent_mlx.inventory.search import HybridSearch, open_search
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.inventory.types import Filters
from qagent_mlx.inventory.updates import refresh_index, remove_products, set_encoder
from qagent_mlx.inventory.vector_index import VectorIndex

QUERIES = ["acme usb cable", "red running shoes", "zebra carpet", "desk lamp", "cofee beens"]
HEADER = "product_id,title,brand,category,price,stock\n"


def put(shop, tmp_path, *rows):
    (tmp_path / "more.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return ingest_files(shop, "products", [tmp_path / "more.csv"])


def test_added_changed_restocked_and_removed_products_are_followed(own_shop, tmp_path):
    first = load_index(own_shop.path / "inventory")
    put(
        own_shop,
        tmp_path,
        "z1,Zebra Carpet,Zed,Home > Rugs,9,1",
        "p000,Acme Velvet Curtain,Acme,Home > Curtains,5,1",
        f'p001,"{first.catalog.titles[1]}",Acme,{first.catalog.categories[1]},123,0',
    )
    remove_products(own_shop, ["p431"])
    report = refresh_index(own_shop)
    assert report.changes == IndexChanges(added=1, changed=1, restated=1, removed=1)
    assert list(report.to_dict())[2:-1] == ["added", "changed", "restated", "removed"]
    index = load_index(own_shop.path / "inventory")
    assert matches(index, own_shop)
    assert index.clicks_until == first.clicks_until
    search = open_search(own_shop, index)

    def top(query):
        return search.search([query], 1)[0][0].product_id

    assert (top("zebra carpet"), top("velvet curtain")) == ("z1", "p000")
    assert "p431" not in {h.product_id for h in search.search(["dune desk lamp"], 50)[0]}
    assert refresh_index(own_shop).changes.added == 0
    # The index that was open meanwhile is as it was.
    assert first.catalog.titles[0] != "Acme Velvet Curtain"
    assert len(first.lexical.scores(first.lexical.query_terms("usb cable"))) == 40


def test_a_new_price_rewrites_neither_words_nor_vectors(own_shop, tmp_path):
    before = load_index(own_shop.path / "inventory").manifest
    title = read_catalog(own_shop).titles[0]
    put(own_shop, tmp_path, f'p000,"{title}",Acme,Computers > Cables,77,1')
    after = open_index(own_shop).manifest
    assert after.generation == before.generation + 1
    same = set(after.files) & set(before.files)
    assert {n.partition("-")[0] for n in set(after.files) - same} == {"catalog", "history"}
    assert load_index(own_shop.path / "inventory").catalog.prices[0] == 77


def test_much_new_text_makes_the_encoder_learn_anew(own_shop, tmp_path):
    before = load_index(own_shop.path / "inventory")
    put(
        own_shop,
        tmp_path,
        *(f"n{i},Garden gnome number {i},Gno,Garden > Gnomes,5,1" for i in range(30)),
    )
    after = open_index(own_shop)
    assert not np.array_equal(before.encoder.idf, after.encoder.idf)
    assert before.clicks_until == after.clicks_until and matches(after, own_shop)


def test_removing_what_is_not_there_or_all_removes_nothing(own_shop):
    version = own_shop.catalog_version
    with pytest.raises(QAgentError, match="has no product nosuch; nothing was removed"):
        remove_products(own_shop, ["p000", "nosuch"])
    with pytest.raises(QAgentError, match="no product would be left"):
        remove_products(own_shop, read_catalog(own_shop).ids)
    assert own_shop.catalog_version == version and len(read_catalog(own_shop)) == 40


def test_an_encoder_that_cannot_be_leaves_the_shop_as_it_is(own_shop):
    before = own_shop.config
    for encoder, dimensions, says in (("nosuch", None, "neither"), (None, 1, "dimensions must be")):
        with pytest.raises(QAgentError, match=says):
            set_encoder(own_shop, encoder, dimensions)
    assert own_shop.config == before


def test_a_search_under_way_is_not_disturbed_by_an_update(own_shop, tmp_path):
    search = open_search(own_shop)
    answers, stop = [], threading.Event()

    def serve():
        while not stop.is_set():
            answers.append(search.search(["usb cable"], 3)[0])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        put(own_shop, tmp_path, "a0,Zebra Carpet,Zed,Home > Rugs,9,1")
        refresh_index(own_shop)
    finally:
        stop.set()
        thread.join()
    assert answers and all(answer == answers[0] for answer in answers)
    fresh = open_search(own_shop)
    assert fresh.search(["zebra carpet"], 1)[0][0].product_id == "a0"
    assert "a0" not in {hit.product_id for hit in search.search(["zebra carpet"], 40)[0]}


def test_what_a_dead_writer_left_is_cleared(own_shop):
    folder = own_shop.path / "inventory"
    (folder / "vectors0-99.npy").write_bytes(b"half")
    (folder / "lexical").mkdir()
    hidden = own_shop.path / ".inventory.abc"
    hidden.mkdir()
    index = open_index(own_shop)
    assert leftovers(folder, index.manifest) == [] and not hidden.exists()
    assert {p.name for p in folder.iterdir()} == {*index.manifest.files, MANIFEST, LOCK}


# ---------------------------------------------------------------- shards and graphs


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(module, "EXACT_BELOW", 20)
    monkeypatch.setattr(module, "SHARD_SIZE", 30)


def points(size, seed=0):
    made = np.random.default_rng(seed).standard_normal((size, 16)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def exactly(vectors, query, k, allowed=None):
    near = np.round(1 - vectors.astype(np.float64) @ query, 5)
    rows = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    return rows[np.lexsort((rows, near[rows]))][:k].tolist()


def test_shards_are_searched_as_one(small_limits):
    made = points(100)
    vectors = VectorIndex.build(made)
    assert [s.size for s in vectors.shards] == [25] * 4 and not vectors.is_exact
    for query, ranking in zip(points(9, 5), vectors.search(points(9, 5), 10), strict=True):
        assert ranking.rows.tolist() == exactly(made, query, 10)
        assert (np.diff(ranking.scores) <= 0).all()


@settings(max_examples=25)
@given(data=st.data())
def test_vectors_that_come_and_go_are_found_as_if_built_anew(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXACT_BELOW", 20)
        patch.setattr(module, "SHARD_SIZE", 30)
        made = points(60)
        vectors = VectorIndex.build(made)
        for step in range(3):
            kept = data.draw(st.lists(st.integers(0, len(made) - 1), unique=True, min_size=15))
            fresh = points(data.draw(st.integers(0, 25)), 7 + step)
            source = np.array([*kept, *[-1] * len(fresh)], dtype=np.int64)
            source = source[np.random.default_rng(step).permutation(len(source))]
            new = np.empty((len(source), 16), dtype=np.float32)
            new[source >= 0] = made[source[source >= 0]]
            new[source < 0] = fresh
            vectors, made = vectors.updated(source, fresh), new
            assert np.allclose(vectors.get(np.arange(len(made))), made, atol=2e-3)
            query = points(2, 99)
            allowed = np.arange(len(made)) % 3 > 0
            for mask in (None, allowed):
                found = vectors.search(query, 8, mask)
                for q, ranking in zip(query, found, strict=True):
                    wanted = exactly(made, q, 8, mask)
                    assert len(set(ranking.rows.tolist()) & set(wanted)) >= len(wanted) - 1
                    assert len(ranking) == len(wanted)


def test_a_sharded_index_is_stored_updated_and_mapped(own_shop, tmp_path, small_limits):
    from qagent_mlx.inventory.index import build_index

    index = build_index(own_shop)
    assert [s.graph is not None for s in index.vectors.shards] == [True, True]
    put(own_shop, tmp_path, *(f"z{i},Zebra Carpet {i},Zed,Home > Rugs,9,1" for i in range(5)))
    remove_products(own_shop, ["p000", "p111"])
    made = open_index(own_shop)
    assert [s.graph is not None for s in made.vectors.shards] == [True, True, False]
    graphs = [name for name in made.manifest.files if name.endswith(".usearch")]
    assert set(graphs) <= set(index.manifest.files)
    again = load_index(own_shop.path / "inventory")
    assert matches(again, own_shop)
    first, second = (HybridSearch(i, None, own_shop.config.search) for i in (made, again))
    assert first.search(QUERIES, 10) == second.search(QUERIES, 10)
    assert second.search(["zebra carpet"], 1)[0][0].product_id.startswith("z")


# ---------------------------------------------------------------- filters at a moment


def test_filters_see_price_and_stock_of_the_moment(tiny_search):
    catalog = tiny_search.catalog
    row = catalog.row_of["p000"]
    full, (sale, _) = (
        catalog.state_at(row, datetime(2026, 3, 2))[0],
        catalog.state_at(row, datetime(2026, 3, 7)),
    )
    assert sale < full and not catalog.in_stock[row]

    def found(moment, **filters):
        hits = tiny_search.search(["acme usb cable black"], 40, [moment], Filters(**filters))[0]
        return "p000" in {hit.product_id for hit in hits}

    assert found(datetime(2026, 3, 2), in_stock=True) and not found(None, in_stock=True)
    assert not found(datetime(2026, 3, 11), in_stock=True)
    assert not found(datetime(2026, 3, 2), max_price=sale) and found(
        datetime(2026, 3, 7), max_price=sale
    )


def test_states_of_all_products_are_those_of_each(tiny_search):
    catalog = tiny_search.catalog
    for moment in (None, datetime(2026, 1, 1), datetime(2026, 3, 8), datetime(2026, 4, 1)):
        prices, in_stock = catalog.states_at(moment)
        wanted = [catalog.state_at(row, moment) for row in range(len(catalog))]
        assert list(zip(prices.tolist(), in_stock.tolist(), strict=True)) == wanted


def test_a_batch_may_ask_at_different_moments_with_filters(tiny_search):
    moments = [datetime(2026, 3, 2), datetime(2026, 3, 11), None]
    kept = Filters(in_stock=True)
    batch = tiny_search.search(["acme usb cable black"] * 3, 10, moments, kept)
    alone = [tiny_search.search(["acme usb cable black"], 10, [m], kept)[0] for m in moments]
    assert batch == alone and batch[0] != batch[1]


def test_what_another_process_did_while_this_one_waited_is_not_done_again(
    own_shop, tmp_path, monkeypatch
):
    put(own_shop, tmp_path, "z1,Zebra Carpet,Zed,Home > Rugs,9,1")
    sharing, others = index_module.sharing, []

    @contextmanager
    def waiting(*shop_and_published):
        if not others:
            others.append(None)
            others[0] = index_module.sync_index(own_shop)
        with sharing(*shop_and_published) as writer:
            yield writer

    monkeypatch.setattr(index_module, "sharing", waiting)
    index, changes = index_module.sync_index(own_shop)
    assert others[0][1] == IndexChanges(added=1) and changes == IndexChanges()
    assert index.manifest == others[0][0].manifest
    assert matches(index, own_shop)
