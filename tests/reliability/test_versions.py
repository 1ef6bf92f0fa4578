"""Shops of every released version are opened, or refused with the command to use."""

import json
import tarfile
from pathlib import Path

import pytest
from make import QUERY, USER

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.index import open_index
from qagent_mlx.inventory.product_search import search_products
from qagent_mlx.policy.registry import open_policy
from qagent_mlx.policy.shop_memory import inspect_memory
from qagent_mlx.runs.reader import overview
from qagent_mlx.runs.run import Run
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.atomic_files import read_json, write_json

RELEASED = sorted((Path(__file__).parent / "shops").glob("*.tar.xz"))


@pytest.fixture(params=RELEASED, ids=lambda path: path.name)
def old(request, tmp_path):
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "shop"


def test_there_is_a_shop_of_each_released_version():
    assert [path.name for path in RELEASED] == ["0.1.0.tar.xz"]


def test_a_shop_of_a_released_version_opens_answers_and_grows(old):
    expected = read_json(old / "expected.json", "what it said")
    with Shop.open(old, read_only=False) as shop:
        assert shop.counts() == expected["counts"]
        assert search_products(shop, QUERY, 3)[0].product_id == expected["first"]
        view = inspect_memory(shop, USER)
        assert view.events == expected["events"] and "desk lamp" in view.text
        for name in ("base", "tuned"):
            assert open_policy(shop, name).info.name == name
        assert overview(Run.open(shop, "tuned")).state == "finished"
        row = {"user_id": USER, "time": "2026-02-01", "type": "search", "query": "shoes"}
        assert append_events(shop, [row]).accepted == 1
        assert len(open_index(shop).catalog) == expected["counts"]["products"]


def spoiled(path, **values):
    write_json(path, {**read_json(path, "it"), **values})


def test_what_a_newer_version_made_is_refused_with_the_command_to_use(old):
    spoiled(old / "policies" / "base" / "policy.json", protocol=99)
    spoiled(old / "runs" / "tuned" / "config.json", format=99)
    with Shop.open(old) as shop:
        with pytest.raises(QAgentError, match="protocol 99.*qagent train"):
            open_policy(shop, "base")
        with pytest.raises(QAgentError, match="another format; train again"):
            Run.open(shop, "tuned")
        # An index is made from the shop, so it is made again.
        spoiled(old / "inventory" / "manifest.json", format=99)
        assert open_index(shop).manifest.format < 99
    spoiled(old / "shop.json", version=99)
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}
    for read_only in (True, False):
        with pytest.raises(QAgentError, match="version 99.*pip install --upgrade qagent-mlx"):
            Shop.open(old, read_only=read_only)
    assert before == {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- shops from strangers


def test_a_link_out_of_a_shop_is_refused_and_nothing_behind_it_touched(old, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    (old / "inventory").rename(old / "was")
    (old / "inventory").symlink_to(tmp_path / "mine")
    with pytest.raises(QAgentError, match=r"inventory is a link out of the shop"):
        Shop.open(old, read_only=False)
    (old / "inventory").unlink()
    (old / "inventory").symlink_to("was")  # one that stays inside
    Shop.open(old).close()
    (old / "policies" / "trap").symlink_to(tmp_path / "mine")
    with pytest.raises(QAgentError, match=r"trap is a link"):
        Shop.open(old)
    assert (tmp_path / "mine" / "letters.txt").read_text() == "dear"


@pytest.mark.parametrize("name", ["../secret.npy", "/etc/passwd", ".lock", "a/b", "..", "\0"])
def test_an_index_names_no_file_outside_of_its_folder(old, name):
    manifest = read_json(old / "inventory" / "manifest.json", "it")
    manifest["files"][name] = [1, 1]
    (old / "inventory" / "manifest.json").write_text(json.dumps(manifest))
    from qagent_mlx.inventory.stored_index import load_index

    with pytest.raises(QAgentError, match=r"damaged \(manifest.json\); run: qagent index"):
        load_index(old / "inventory")


@pytest.mark.parametrize("made", ["VIEW v AS SELECT 1", "MACRO m(x) AS x + 1"])
def test_a_database_that_holds_code_is_refused(old, made):
    with Shop.open(old, read_only=False) as shop:
        shop.connection.execute(f"CREATE {made}")
    with pytest.raises(QAgentError, match="a shop has none"), Shop.open(old) as shop:
        shop.counts()


@pytest.mark.parametrize("name", ["adapters.safetensors", "policy.json"])
def test_a_policy_whose_files_do_not_belong_together_is_refused(old, name):
    folder = old / "policies" / "tuned"
    with Shop.open(old) as shop:
        open_policy(shop, "tuned")
        if name == "policy.json":
            spoiled(folder / name, weights="0" * 16)
        else:
            data = bytearray((folder / name).read_bytes())
            data[-1] ^= 1
            (folder / name).write_bytes(bytes(data))
        with pytest.raises(
            QAgentError, match="not what its policy.json was written for.*resume its training run"
        ):
            open_policy(shop, "tuned")
        spoiled(folder / "policy.json", weights="")  # of before weights were known
        open_policy(shop, "tuned")
