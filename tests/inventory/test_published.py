"""The index of a shop in a lake: one machine builds it, the others take it as it is."""

import os
import threading

import pytest
from lakes import lakes, object_store, require_lakes

from qagent_mlx.build import build
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.inventory import published as published_module
from qagent_mlx.inventory.bm25 import BM25Index
from qagent_mlx.inventory.encoders.subword import SubwordEncoder
from qagent_mlx.inventory.index import build_index, open_index, renewed_index
from qagent_mlx.inventory.published import PublishedIndex
from qagent_mlx.inventory.search import open_search
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.inventory.vector_index import VectorIndex
from qagent_mlx.shop.lake_catalog import INDEX
from qagent_mlx.shop.lake_data import FilesOfLake
from qagent_mlx.shop.moving import create_at, create_in, move
from qagent_mlx.shop.shop import Shop

QUERIES = ["acme usb cabel", "red shoes", "lamp", "desk"]


def two_machines(tmp_path, files, address, data):
    with Shop.create(tmp_path / "a") as shop:
        for kind, name in (("products", "products.csv"), ("events", "events.jsonl")):
            ingest_files(shop, kind, [files / name])
        move(shop, address, data)
    create_in(tmp_path / "b", address, None)
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def machines(tmp_path, tiny_files):
    """The folders of two machines that share a shop; neither has an index."""
    require_lakes()
    address = f"ducklake:sqlite:{tmp_path.resolve() / 'catalog.sqlite'}"
    return two_machines(tmp_path, tiny_files, address, str(tmp_path / "data"))


@pytest.fixture
def published(tmp_path):
    return tmp_path / "data" / "inventory"


@pytest.fixture
def counted(monkeypatch):
    """Counts what is computed of products."""
    counts = {"fit": 0, "vectors": 0, "words": 0, "encoded": 0}

    def count(owner, name, what):
        real = getattr(owner, name).__func__

        def counting(cls, *args, **kwargs):
            counts[what] += 1
            return real(cls, *args, **kwargs)

        monkeypatch.setattr(owner, name, classmethod(counting))

    count(SubwordEncoder, "fit", "fit")
    count(VectorIndex, "build", "vectors")
    count(BM25Index, "build", "words")
    encode = SubwordEncoder.encode

    def encoding(self, texts, *, queries=False):
        counts["encoded"] += 0 if queries else len(texts)
        return encode(self, texts, queries=queries)

    monkeypatch.setattr(SubwordEncoder, "encode", encoding)
    return counts


def indexed(path, how=renewed_index):
    with Shop.open(path, read_only=False) as shop:
        return how(shop)


def found(path):
    with Shop.open(path) as shop:
        hits = open_search(shop).search(QUERIES, 20)
    return [[(hit.product_id, hit.score) for hit in of_query] for of_query in hits]


def contents(path):
    """The bytes of each file of a machine's index."""
    folder = path / "inventory"
    files = load_index(folder).manifest.files
    return {name.partition("-")[0]: (folder / name).read_bytes() for name in files}


def change(path, tmp_path, text="product_id,title,price\np000,Zebra carpet,1.5\n"):
    (tmp_path / "change.csv").write_text(text)
    with Shop.open(path, read_only=False) as shop:
        ingest_files(shop, "products", [tmp_path / "change.csv"])


def forget(counts):
    counts.update(dict.fromkeys(counts, 0))


def test_the_second_machine_computes_nothing_and_finds_the_same(machines, published, counted):
    a, b = machines
    built = indexed(a)
    assert counted["fit"] == counted["vectors"] == counted["words"] == 1
    forget(counted)
    taken = indexed(b)
    first = found(b)
    assert counted == {"fit": 0, "vectors": 0, "words": 0, "encoded": 0}
    assert (built.manifest.taken, taken.manifest.taken) == (False, True)
    assert contents(a) == contents(b)
    assert first == found(a) and any(first)
    # On one disk nothing is copied either: all map the same pages.
    held = {path.stat().st_ino for path in published.glob("[0-9a-f]*")}
    for path in (a, b):
        folder = path / "inventory"
        files = load_index(folder).manifest.files
        assert {(folder / name).stat().st_ino for name in files} == held


def test_nor_what_memory_learned_from_searching(machines, counted):
    a, b = machines
    first = build(a)
    forget(counted)
    second = build(b)
    assert counted["fit"] == counted["vectors"] == counted["words"] == 0
    assert (first.taken, second.taken) == (False, True)
    assert second.learned_from == first.learned_from
    assert not build(a).taken


def test_a_change_of_the_catalog_is_brought_in_by_one(machines, published, tmp_path, counted):
    a, b = machines
    indexed(a), indexed(b)
    before = {path.name for path in published.glob("[0-9a-f]*")}
    open_before = indexed(b, open_index)
    change(a, tmp_path)
    forget(counted)
    first = found(b)
    assert (counted["fit"], counted["vectors"]) == (0, 1)  # one new text, few products
    forget(counted)
    assert found(a) == first
    assert counted == {"fit": 0, "vectors": 0, "words": 0, "encoded": 0}
    assert contents(a) == contents(b)
    after = {path.name for path in published.glob("[0-9a-f]*")}
    assert before & after and before - after and after - before  # the encoder stays, old ones go
    assert len(after) == len(load_index(a / "inventory").manifest.files)
    assert open_before.vectors.get(open_before.vectors.slots[:2]).any()  # who has it goes on
    assert [p.name for p in published.iterdir() if p.name.startswith(".")] == []


def test_two_machines_at_once_build_one_index(machines, counted):
    threads = [threading.Thread(target=indexed, args=(path,)) for path in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted["fit"] == 1
    assert contents(machines[0]) == contents(machines[1])


def test_a_machine_that_is_behind_brings_the_newer_index_to_its_rows(machines, tmp_path):
    a, b = machines
    indexed(a)
    with Shop.snapshot(b) as behind:
        change(a, tmp_path)
        assert found(a)
        titles = open_index(behind).catalog.titles
        assert "Zebra carpet" not in titles
    assert "Zebra carpet" in indexed(b, open_index).catalog.titles


@pytest.mark.parametrize("harm", [lambda data: data[:-9], lambda data: b"x" + data[1:]])
def test_a_file_that_was_tampered_with_is_refused(machines, published, caplog, harm, counted):
    a, b = machines
    indexed(a)
    encoder = load_index(a / "inventory").manifest.files
    size = encoder[next(name for name in encoder if name.startswith("encoder"))].size
    (file,) = [path for path in published.iterdir() if path.stat().st_size == size]
    content = harm(file.read_bytes())
    file.unlink()  # it is this machine's own, too
    file.write_bytes(content)
    forget(counted)
    indexed(b)
    assert counted["fit"] == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "is not used" in line and "qagent index" in line]) == 1
    forget(counted)
    indexed(a)  # b has published what is whole
    assert counted["fit"] == 0
    assert contents(a) == contents(b)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[" * 100_000,
        b'{"name": "x", "snapshot": -2, "index": {}, "files": {}}',
        b"\xff",
        "outside",
        "huge",
    ],
)
def test_a_manifest_that_cannot_be_read_is_built_anew(machines, published, caplog, content):
    a, b = machines
    indexed(a)
    manifest = published / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()
    if content is None:
        os.mkfifo(manifest)
    elif content == "outside":
        name = next(n for n in load_index(a / "inventory").manifest.files if "encoder" in n)
        manifest.write_text(text.replace(name, f"../{name}"))
    elif content == "huge":
        with manifest.open("wb") as file:
            file.truncate(published_module.LARGEST_MANIFEST + 1)
    else:
        manifest.write_bytes(content)
    index = indexed(b)
    assert not index.manifest.taken
    assert content is None or "is not used" in caplog.text
    if content is None:
        manifest.unlink()
        indexed(b)
    assert indexed(a).manifest.taken


@pytest.mark.parametrize("after", range(3))
def test_who_dies_while_publishing_leaves_what_was(
    machines, published, tmp_path, monkeypatch, after, counted
):
    a, b = machines
    indexed(a)
    before = (published / "manifest.json").read_bytes()
    change(a, tmp_path)
    put, calls = FilesOfLake.put, []

    def dies(self, name, file):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(name)
        put(self, name, file)

    with monkeypatch.context() as patch:
        patch.setattr(FilesOfLake, "put", dies)
        with pytest.raises(KeyboardInterrupt):
            indexed(a, open_index)
    assert len(calls) == after
    assert (published / "manifest.json").read_bytes() == before
    forget(counted)
    assert found(b) == found(a)
    assert (counted["fit"], counted["encoded"]) == (0, 1)  # by b, from what was before
    assert contents(a) == contents(b)
    # Nothing is left of what a had put there.
    names = {path.name for path in published.iterdir()}
    assert len(names) == 1 + len(load_index(b / "inventory").manifest.files)


def test_where_nothing_can_be_published_each_builds_its_own(machines, published, caplog):
    a, b = machines
    published.parent.mkdir(exist_ok=True)
    published.write_text("in the way")
    first = indexed(a)
    assert "other machines build their own" in caplog.text
    assert not indexed(b).manifest.taken
    assert found(a) and indexed(a, open_index).manifest.generation == first.manifest.generation
    published.unlink()
    indexed(a)  # publishes what it has
    assert indexed(b).manifest.taken


def test_who_waits_too_long_builds_without_publishing(machines, published, monkeypatch, caplog):
    a, b = machines
    indexed(a)
    before = (published / "manifest.json").read_bytes()
    monkeypatch.setattr(published_module, "WRITER_WAIT", 0.2)
    with Shop.open(b, read_only=False) as shop:
        catalog = PublishedIndex(shop).catalog
        with catalog.lock(0.0, INDEX):
            built = build_index(shop)
    assert "is not published" in caplog.text
    assert (published / "manifest.json").read_bytes() == before
    assert indexed(b, open_index).manifest.generation == built.manifest.generation  # it is kept


def test_a_shop_of_a_snapshot_has_an_index_of_its_own(machines, tmp_path, counted):
    a, _ = machines
    indexed(a)
    with Shop.open(a) as shop:
        address, snapshot = shop.config.store, shop.lake_snapshot
    forget(counted)
    create_at(tmp_path / "then", address, snapshot)
    assert indexed(tmp_path / "then").manifest.published == ""
    assert counted["fit"] == 1


def test_machines_on_postgres_share_it_too(tmp_path, tiny_files, counted):
    with lakes("postgres") as new_lake:
        data = str(tmp_path / "data")
        machines = two_machines(tmp_path, tiny_files, new_lake(tmp_path), data)
        test_two_machines_at_once_build_one_index(machines, counted)


def test_it_may_lie_in_a_store_of_objects(tmp_path, tiny_files, counted, monkeypatch):
    require_lakes()
    with object_store(tmp_path, monkeypatch) as place:
        address = f"ducklake:sqlite:{tmp_path.resolve() / 'catalog.sqlite'}"
        a, b = two_machines(tmp_path, tiny_files, address, place)
        indexed(a)
        forget(counted)
        assert indexed(b).manifest.taken
        assert counted["fit"] == counted["vectors"] == 0
        assert contents(a) == contents(b)
        change(a, tmp_path)
        assert found(b) == found(a)
        with Shop.open(a) as shop:
            there = PublishedIndex(shop)._data.sizes()
            assert len(there) == 1 + len(load_index(a / "inventory").manifest.files)
