import json
import shutil
from datetime import datetime, timedelta

import numpy as np
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.inventory.catalog import product_text, read_catalog
from qagent_mlx.inventory.index import (
    CLICK_SHARE,
    build_index,
    default_clicks_until,
    open_index,
    renewed_index,
)
from qagent_mlx.inventory.index_files import leftovers
from qagent_mlx.inventory.search import open_search
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.shop.shop import Shop

STEMS = (
    "catalog",
    "history",
    "encoder",
    "vectors0",
    "slots",
    "lexical_counts",
    "lexical_rows",
    "lexical_starts",
    "lexical_lengths",
    "lexical_impacts",
    "lexical_vocabulary",
)


def file_of(folder, stem):
    if stem == "manifest":
        return folder / "manifest.json"
    (path,) = folder.glob(f"{stem}-*")
    return path


def put(shop, tmp_path, text):
    (tmp_path / "more.csv").write_text(text)
    return ingest_files(shop, "products", [tmp_path / "more.csv"])


@pytest.fixture
def inventory(tiny_folder, tmp_path):
    """A copy of the small shop's index."""
    return shutil.copytree(tiny_folder / "inventory", tmp_path / "inventory")


def test_the_manifest_names_every_file(tiny_folder):
    manifest = json.loads((tiny_folder / "inventory" / "manifest.json").read_text())
    assert {name.partition("-")[0] for name in manifest["files"]} == set(STEMS)
    here = {path.name for path in (tiny_folder / "inventory").iterdir()}
    assert here == {*manifest["files"], "manifest.json", ".lock"}
    assert (manifest["products"], manifest["catalog_version"]) == (40, 1)


def test_an_index_comes_back_as_it_was_built(own_shop):
    built, queries = build_index(own_shop), ["acme usb cabel", "red shoes", "lamp"]
    first = open_search(own_shop, built).search(queries, 40)
    again = open_search(own_shop, load_index(own_shop.path / "inventory")).search(queries, 40)
    assert first == again


def says_damaged(folder):
    with pytest.raises(QAgentError) as error:
        load_index(folder)
    line = str(error.value)
    assert "\n" not in line and str(folder) in line and line.endswith("run: qagent index")


@pytest.mark.parametrize("name", [*STEMS, "manifest"])
def test_a_missing_cut_or_overwritten_file_is_noticed(inventory, name):
    path = file_of(inventory, name)
    content = path.read_bytes()
    # Of most files a changed bit leaves one that can be read, and says something else.
    bit = content[:-1] + bytes([content[-1] ^ 1])
    for damage in (None, content[: len(content) // 2], bytes(b ^ 0x5A for b in content), b"", bit):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        says_damaged(inventory)
    path.write_bytes(content)
    assert len(load_index(inventory).catalog) == 40


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"format": None},
        {"files": []},
        {"products": 3},
        {"products": -1},
        {"catalog_version": ...},
        {"clicks_until": "2026-01-01T00:00:00Z"},
        {"shards": [["../../vectors.npy", 0, 40]]},
        {"shards": [["vectors0-1.npy", 0, 40, 1]]},
        {"encoder": {"place": 3}},
    ],
)
def test_a_manifest_that_does_not_fit_is_noticed(inventory, change):
    path = inventory / "manifest.json"
    manifest = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not ...}))
    says_damaged(inventory)


def test_no_index_says_how_to_make_one(tmp_path):
    says_damaged(tmp_path / "none")


# ---------------------------------------------------------------- ensure


def stamp(shop):
    return (shop.path / "inventory" / "manifest.json").stat().st_mtime_ns


def test_a_good_index_is_not_built_again(own_shop):
    before = stamp(own_shop)
    open_index(own_shop)
    assert stamp(own_shop) == before


@pytest.mark.parametrize("name", ["manifest", "encoder", "vectors0"])
def test_a_torn_index_is_built_again(own_shop, name):
    path = file_of(own_shop.path / "inventory", name)
    path.write_bytes(path.read_bytes()[:50])
    assert len(open_index(own_shop).catalog) == 40
    assert len(load_index(own_shop.path / "inventory").catalog) == 40
    left = {p.name for p in own_shop.path.iterdir()}
    assert left == {"shop.json", "shop.duckdb", "inventory"}


def test_an_index_older_than_its_catalog_is_built_again_with_the_same_cut(own_shop, tmp_path):
    cut = load_index(own_shop.path / "inventory").clicks_until
    later = {"user_id": "u", "time": "2027-01-01", "type": "search", "query": "zebra"}
    append_events(own_shop, [later])
    put(own_shop, tmp_path, "product_id,title\nz,Zebra Carpet\n")
    index = open_index(own_shop)
    assert "z" in index.catalog.ids
    assert index.manifest.catalog_version == own_shop.catalog_version == 2
    assert index.clicks_until == cut != default_clicks_until(own_shop)
    assert open_search(own_shop).search(["zebra"], 1)[0][0].product_id == "z"


def test_an_index_is_built_where_there_is_none(own_shop):
    shutil.rmtree(own_shop.path / "inventory")
    assert len(open_index(own_shop).catalog) == 40


def test_reading_is_enough_to_build(own_shop):
    own_shop.close()
    with Shop.open(own_shop.path) as shop:
        assert len(build_index(shop).catalog) == 40


def test_the_index_in_place_survives_a_failed_build(own_shop, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qagent_mlx.inventory.stored_index.np.save", fails)
    with pytest.raises(QAgentError, match="cannot write the index in .*No space left"):
        build_index(own_shop)
    index = load_index(own_shop.path / "inventory")
    assert len(index.catalog) == 40
    assert leftovers(index.folder, index.manifest) == []
    assert not [p for p in own_shop.path.iterdir() if p.name.startswith(".")]


# ---------------------------------------------------------------- what is built from


def test_the_encoder_learns_from_the_first_part_of_the_log_only(own_shop):
    """Invariant 8: clicks from the cut on change nothing in the index."""
    first, last = own_shop.connection.execute("SELECT min(ts), max(ts) FROM events").fetchone()
    cut = default_clicks_until(own_shop)
    assert (cut - first) / (last - first) == pytest.approx(CLICK_SHARE)
    before = build_index(own_shop, cut)
    assert before.manifest.clicked_pairs > 10
    rows = []
    for kind in ("search", "click"):
        product = "p000" if kind == "click" else None
        rows.append(
            {"user_id": "new", "time": cut, "type": kind, "query": "zebra", "product_id": product}
        )
    append_events(own_shop, rows)
    after = build_index(own_shop, cut)
    assert np.array_equal(after.encoder.components, before.encoder.components)
    early = [{**row, "time": cut - timedelta(hours=1)} for row in rows]
    append_events(own_shop, early)
    assert not np.array_equal(
        build_index(own_shop, cut).encoder.components, before.encoder.components
    )


@pytest.mark.parametrize(("share", "is_more"), [(0.0, False), (0.05, False), (0.5, True)])
def test_an_index_learns_again_where_the_log_has_become_much_longer(own_shop, share, is_more):
    before = build_index(own_shop)
    first, last = own_shop.connection.execute("SELECT min(ts), max(ts) FROM events").fetchone()
    later = last + (last - first) * share
    append_events(own_shop, [{"user_id": "u00", "time": later, "type": "search", "query": "tent"}])
    after = renewed_index(own_shop)
    assert (after.manifest.generation > before.manifest.generation) == is_more
    assert (after.clicks_until > before.clicks_until) == is_more


def test_a_catalog_knows_prices_and_stock_at_any_moment(own_shop, tmp_path):
    def state(*moment):
        catalog = read_catalog(own_shop)
        return catalog.state_at(catalog.row_of["z"], datetime(*moment) if moment else None)

    header = "product_id,title,price,stock,time\n"
    put(own_shop, tmp_path, f"{header}z,Zebra,10,1,2026-01-10\nz,Zebra,5,0,2026-01-20\n")
    assert state(2026, 1, 1) == (10.0, True)  # the first that is known
    assert state(2026, 1, 10) == state(2026, 1, 19, 23, 59, 59) == (10.0, True)
    assert state(2026, 1, 20) == state() == (5.0, False)
    put(own_shop, tmp_path, f"{header}z,Zebra,7,1,2026-01-15\n")
    assert state(2026, 1, 14) == (10.0, True)
    assert state(2026, 1, 16) == (7.0, True)
    assert state() == (5.0, False)
    put(own_shop, tmp_path, f"{header}z,Zebra,,1,2026-01-25\n")  # a blank cell says nothing
    assert state() == (5.0, True)


def test_a_stored_catalog_has_the_same_states(tiny_shop, tiny_folder):
    fresh, loaded = read_catalog(tiny_shop), load_index(tiny_folder / "inventory").catalog
    assert (fresh.ids, fresh.titles, fresh.attributes) == (
        loaded.ids,
        loaded.titles,
        loaded.attributes,
    )
    for day in range(0, 40, 3):
        moment = datetime(2026, 2, 25) + timedelta(days=day)
        states = [fresh.state_at(row, moment) for row in range(len(fresh))]
        assert states == [loaded.state_at(row, moment) for row in range(len(fresh))]
    assert len({repr(s) for s in states}) > 5


def test_the_text_of_a_product_names_its_brand_once():
    assert product_text("Acme Tent", "acme", "Out > Tents") == "Acme Tent Out   Tents"
    assert product_text("Tent", "Acme", None) == "Tent Acme"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("", "has no products; run: qagent ingest products"),
        ("1,!!!\n2,???\n", "no product of .* has a letter or digit"),
    ],
)
def test_a_catalog_without_words_is_refused(tmp_path, rows, says):
    with Shop.create(tmp_path / "shop") as shop:
        if rows:
            put(shop, tmp_path, "product_id,title\n" + rows)
        with pytest.raises(QAgentError, match=says):
            open_index(shop)


def test_a_single_product_and_a_nameless_one_can_be_indexed(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        put(shop, tmp_path, "product_id,title\n1,Lamp\n")
        found = open_search(shop).search(["lamps", "zebra", "", "!!"], 5)
        assert [[hit.product_id for hit in hits] for hits in found] == [["1"], [], [], []]
        put(shop, tmp_path, "product_id,title\n2,!!!\n")
        assert open_search(shop).search(["lamp"], 5)[0][0].product_id == "1"


def test_an_index_that_cuts_texts_the_old_way_is_built_anew_where_that_differs(own_shop, tmp_path):
    open_index(own_shop)
    manifest = own_shop.path / "inventory" / "manifest.json"

    def aged():
        values = json.loads(manifest.read_text())
        del values["terms"]
        manifest.write_text(json.dumps(values))
        return values["generation"]

    before = aged()
    assert open_index(own_shop).manifest.generation == before  # Latin: the same terms
    put(own_shop, tmp_path, "product_id,title\nzh,户外折叠帐篷\n")
    open_index(own_shop)
    before = aged()
    assert open_index(own_shop).manifest.generation > before
    found = open_search(own_shop).search(["帐篷"], 1)[0]
    assert [hit.product_id for hit in found] == ["zh"]
