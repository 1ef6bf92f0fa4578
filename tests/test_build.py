from __future__ import annotations

import shutil
from datetime import timedelta

import pytest

from qagent_mlx.build import SAMPLE_MEMORY, build_shop, known_line_worth
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.memory import ranker
from qagent_mlx.memory.ranker import MemoryRanker
from qagent_mlx.shop.config import MemoryConfig, SearchConfig, ShopConfig
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def built(simulated_folder, tmp_path):
    """A shop that has learned all that it can, of 40 days."""
    with Shop.open(shutil.copytree(simulated_folder, tmp_path / "shop"), read_only=False) as shop:
        yield shop


def learned(shop):
    index = load_index(shop.path / "inventory")
    steps = MemoryRanker.of_shop(shop).steps
    return index.manifest.generation, [(s.until, s.values.tobytes()) for s in steps]


def search(shop, at, query="desk lamp"):
    report = append_events(
        shop, [{"user_id": "u01", "type": "search", "query": query, "time": at, "product_id": None}]
    )
    assert report.accepted == 1


def test_what_nothing_has_changed_of_is_not_learned_again(built):
    stages = []
    before = learned(built)
    assert len(before[1]) > 1  # something was learned
    build_shop(built, stages.append)
    search(built, built.end_of_log() + timedelta(minutes=1))
    build_shop(built)
    assert learned(built) == before
    assert "storing what is remembered of each user" not in stages
    build_shop(built, anew=True)
    assert learned(built)[0] > before[0]
    assert learned(built)[1][0] == before[1][0]


def test_anew_gives_what_is_kept(built):
    _, before = learned(built)
    build_shop(built, anew=True)
    assert learned(built)[1] == before


def test_late_events_are_learned_from(built):
    generation, before = learned(built)
    search(built, before[1][0] - timedelta(hours=1))
    build_shop(built)
    after = learned(built)
    assert after[0] == generation  # a search without a click teaches the encoder nothing
    assert [until for until, _ in after[1]] == [until for until, _ in before]
    sources = {step.source for step in MemoryRanker.of_shop(built).steps}
    build_shop(built)
    assert {step.source for step in MemoryRanker.of_shop(built).steps} == sources


def test_a_text_that_changed_is_learned_from(built):
    before = learned(built)
    with built.transaction() as connection:
        connection.execute("UPDATE products SET title = title || ' deluxe', changed = changed + 1")
        connection.execute(
            "UPDATE meta SET value = (value::INT + 1)::VARCHAR WHERE key = 'catalog_version'"
        )
    build_shop(built)
    assert learned(built)[0] > before[0]


def test_a_longer_log_goes_on_from_what_was_learned(built):
    generation, before = learned(built)
    search(built, built.end_of_log() + timedelta(days=3))
    build_shop(built)
    assert learned(built)[0] == generation
    assert learned(built)[1][:-1] == before  # and of the week that is full now
    search(built, built.end_of_log() + timedelta(days=10))
    build_shop(built)
    assert learned(built)[0] > generation
    assert learned(built)[1][1][0] > before[1][0]  # of a longer part of the log from the beginning


def test_what_is_known_of_this_very_log_is_kept_as_if_it_was_learned_here(built, monkeypatch):
    whole = built.meta("line_worth")
    known = MemoryRanker.from_json(whole)
    built.set_meta("line_worth", "")

    def refuse(*_):
        raise AssertionError("nothing is to be learned")

    monkeypatch.setattr(ranker, "fit_weights", refuse)
    report = build_shop(built, known=known)
    assert built.meta("line_worth") == whole  # digests of the log included
    assert report.learned_from == known.moments > 0
    build_shop(built)  # and so it stays


def test_the_sample_data_brings_what_its_own_log_teaches_and_no_other(monkeypatch):
    sample = ShopConfig(memory=SAMPLE_MEMORY)
    known = known_line_worth(sample)
    # None: the data, the settings or the way of learning have changed; run `make line-worth`.
    assert known is not None and known.moments > 0
    assert known_line_worth(ShopConfig(memory=MemoryConfig(half_life_days=3.0))) is None
    assert known_line_worth(ShopConfig(memory=SAMPLE_MEMORY, search=SearchConfig(rrf_k=9))) is None
    monkeypatch.setattr(ranker, "LEARNING", ranker.LEARNING + 1)
    assert known_line_worth(sample) is None
