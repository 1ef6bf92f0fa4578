"""What a scenario takes away reaches nobody; what it leaves can be trained on and evaluated."""

import json
import re
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest

from qagent_mlx.build import build_shop
from qagent_mlx.environment.cases import build_cases, of_split, start_of
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.environment.scenario_shop import FOLDER, delete_copies
from qagent_mlx.environment.scenarios import NEW_DAYS, open_scenario
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.inventory.index import open_index
from qagent_mlx.memory.loader import MemoryLoader
from qagent_mlx.memory.ranker import MemoryRanker
from qagent_mlx.memory.types import Moment
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.pretrain import shop_texts
from qagent_mlx.utils.settings import SettingError
from tests.conftest import tiny_events

AGENT = replace(AgentConfig(), profile_budget=1000)
SPLIT = SplitConfig(test_share=0.3, validation_share=0.1, new_share=0.3)


@pytest.fixture(scope="module")
def shop(tiny_files, tmp_path_factory):
    """The small shop, in which each user's queries hold a word that nobody else types."""
    folder = tmp_path_factory.mktemp("words")
    events = tiny_events()
    for event in events:
        if event["query"]:
            event["query"] += f" word{event['user_id']}"
    (folder / "events.jsonl").write_text("\n".join(json.dumps(e, default=str) for e in events))
    with Shop.create(folder / "shop") as shop:
        ingest_files(shop, "products", [tiny_files / "products.csv"])
        ingest_files(shop, "events", [folder / "events.jsonl"])
        build_shop(shop)
    with Shop.open(folder / "shop") as opened:
        yield opened


def split_of(name, **changes):
    return replace(SPLIT, scenario=name, **changes)


def environment_of(shop, name, codec):
    return Environment.of_shop(shop, codec, AGENT, split_of(name))


def words(*texts):
    """The users whose words stand in some texts."""
    return set(re.findall(r"wordu(\d\d)", " ".join(texts)))


def told(shop, name, codec):
    """For every case: its user, and whose words its memory and its search results hold."""
    scenario = open_scenario(shop, split_of(name))
    environment = Environment.of_scenario(scenario, scenario.cases, codec, AGENT)
    moments = [Moment(e.case.user_id, e.case.as_of) for e in environment.examples]
    loader = MemoryLoader(scenario.shop.connection, scenario.shop.config.memory)
    for example, memory in zip(environment.examples, loader.load(moments), strict=True):
        profile = example.profile
        read = [profile.text, *profile.references, *(line.reason for line in profile.lines)]
        read += memory.candidates.query.tolist()
        yield example.case.user_id[1:], words(*read)


def test_the_full_log_tells_everybody_what_others_typed(shop, nano_policy):
    """So the tests below look at what they should."""
    assert any(heard - {user} for user, heard in told(shop, "full", nano_policy.codec))


def test_without_a_query_log_nothing_tells_what_anybody_typed(shop, nano_policy):
    assert all(not heard for _, heard in told(shop, "no_query_log", nano_policy.codec))
    scenario = open_scenario(shop, split_of("no_query_log"))
    rows = scenario.shop.connection.execute("SELECT * FROM events").fetchall()
    assert len(rows) > 200 and not words(repr(rows))
    path = scenario.shop.path
    scenario.shop.close()
    assert b"wordu" not in (path / "shop.duckdb").read_bytes()
    environment = environment_of(shop, "no_query_log", nano_policy.codec)
    assert len(environment.search.click_log.queries) == 0
    assert environment.search.index.manifest.clicked_pairs == 0
    assert MemoryRanker.of_shop(scenario.shop).moments == 0
    texts = shop_texts(scenario.shop, environment, AGENT, environment.examples[-1].case.as_of)
    assert texts and not words(*texts)


def test_without_a_query_log_a_profile_tells_what_was_bought_and_looked_at(shop, nano_policy):
    examples = environment_of(shop, "no_query_log", nano_policy.codec).examples
    categories = {
        leaf.lower()
        for (leaf,) in shop.connection.execute(
            "SELECT DISTINCT trim(split_part(category, '>', -1)) FROM products"
        ).fetchall()
    }
    # What people come back for is told by the kind of product, perhaps of a brand: nobody typed it.
    brands = shop.connection.execute("SELECT DISTINCT lower(brand) FROM products").fetchall()
    told = {f"{brand} {leaf}" for (brand,) in brands for leaf in categories} | categories
    assert all(set(e.profile.references) <= told for e in examples)
    assert any(e.profile.references for e in examples)
    for example in examples:
        rows = shop.connection.execute(
            """SELECT lower(p.title), lower(p.brand), bool_or(e.type = 'purchase')
            FROM events e JOIN products p USING (product_id)
            WHERE user_id = ? AND ts < ? GROUP BY ALL""",
            [example.case.user_id, example.case.as_of],
        ).fetchall()
        text = example.profile.text
        shown = [title for title, _, _ in rows if title in text]
        assert len(shown) == min(len(rows), 8)
        assert all(
            f"bought {title}" in text for title, _, bought in rows if bought and title in shown
        )
        assert not rows or any(brand in text.split("\n")[0] for _, brand, _ in rows)


def test_without_a_query_log_the_test_asks_for_what_was_typed_and_training_does_not(shop):
    full = build_cases(shop.connection, SPLIT, after=open_index(shop).clicks_until)
    cases = open_scenario(shop, split_of("no_query_log")).cases

    def asked(of):
        return [(c.user_id, c.as_of, c.query, c.products) for c in of_split(of, "test")]

    assert asked(cases) == asked(full)
    learned = [case for case in cases if case.split != "test"]
    assert of_split(learned, "train") and of_split(learned, "validation")
    assert all(not c.query and not c.query_key and c.products for c in learned)
    assert max(c.as_of for c in learned) < start_of(full, "test")
    assert [c.case_id for c in cases] == list(range(len(cases)))
    for case in learned:
        rows = shop.connection.execute(
            """SELECT product_id FROM events WHERE user_id = ? AND ts >= ? AND ts < ?
            AND type IN ('click', 'cart', 'purchase')""",
            [case.user_id, case.as_of, start_of(full, "test")],
        ).fetchall()
        assert set(case.products) <= {product for (product,) in rows}


def test_a_shop_that_never_had_a_query_log_has_cases_too(tiny_files, tmp_path):
    events = [e for e in tiny_events() if e["type"] != "search"]
    lines = [json.dumps({**e, "query": None}, default=str) for e in events]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    with Shop.create(tmp_path / "shop") as shop:
        ingest_files(shop, "products", [tiny_files / "products.csv"])
        ingest_files(shop, "events", [tmp_path / "events.jsonl"])
        with pytest.raises(QAgentError, match="it has no searches"):
            open_scenario(shop, SPLIT)
        cases = open_scenario(shop, split_of("no_query_log")).cases
        assert all(of_split(cases, split) for split in ("train", "validation", "test"))
        with pytest.raises(QAgentError, match="of a user with 99 earlier events"):
            open_scenario(shop, split_of("no_query_log", min_history=99))


def test_own_only_tells_nobody_what_others_typed(shop, nano_policy):
    heard = list(told(shop, "own_only", nano_policy.codec))
    assert any(of for _, of in heard)
    assert all(of <= {user} for user, of in heard)
    environment = environment_of(shop, "own_only", nano_policy.codec)
    assert environment.search.clicks is None  # nobody is told what others chose under a query
    texts = [e.profile.text for e in environment.examples]
    assert not any(re.search(r"\b(warm|hot|top|poor|rising|fading)\b", text) for text in texts)
    scenario = open_scenario(shop, split_of("own_only"))
    learned = MemoryRanker.of_shop(scenario.shop)
    usual = MemoryRanker.of_shop(shop)
    assert learned.moments and learned.steps[-1].values.tolist() != usual.steps[-1].values.tolist()
    full = environment_of(shop, "full", nano_policy.codec)
    assert [e.case for e in environment.examples] == [e.case for e in full.examples]
    # The engine itself is the same.
    for example in full.examples[-5:]:
        query, as_of = example.case.query, example.case.as_of
        assert environment.retrieve(query, as_of) == full.retrieve(query, as_of)


def test_own_only_as_a_shops_own_setting_is_the_scenario(own_shop, nano_policy):
    scenario = environment_of(own_shop, "own_only", nano_policy.codec)
    own_shop.config = replace(
        own_shop.config, memory=replace(own_shop.config.memory, own_only=True)
    )
    own_shop.save_config()
    build_shop(own_shop)
    shop = environment_of(own_shop, "full", nano_policy.codec)
    again = environment_of(own_shop, "own_only", nano_policy.codec)
    assert not shop.scenario and not again.scenario
    for other in (shop, again):
        assert [e.profile for e in other.examples] == [e.profile for e in scenario.examples]
        assert other.search.clicks is None


def test_new_products_and_their_queries_are_unheard_of_before_the_launch(own_shop, nano_policy):
    scenario = open_scenario(own_shop, split_of("new"))
    launch, new = scenario.launch.moment, set(scenario.launch.products)
    assert 0.1 < len(new) / 40 < 0.5
    full = build_cases(own_shop.connection, SPLIT, after=open_index(own_shop).clicks_until)
    ((end,),) = own_shop.connection.execute("SELECT max(ts) FROM events").fetchall()
    assert launch == max(start_of(full, "test"), end - timedelta(days=NEW_DAYS))

    def mainly(rows):  # queries whose engagements are mainly with new products
        counts = {}
        for query, product in rows:
            counts.setdefault(query, []).append(product in new)
        return {query for query, hits in counts.items() if sum(hits) > len(hits) / 2}

    queries = mainly(
        own_shop.connection.execute(
            """SELECT s.query_key, e.product_id FROM events e JOIN events s
            ON s.event_id = e.search_id AND s.type = 'search'
            WHERE e.type IN ('click', 'cart', 'purchase')"""
        ).fetchall()
    )
    assert queries
    everything = "SELECT event_id, ts, product_id, query_key FROM events"
    left = scenario.shop.connection.execute(everything).fetchall()
    before = [row for row in left if row[1] < launch]
    assert before and not any(p in new or q in queries for _, _, p, q in before)
    later = [r for r in own_shop.connection.execute(everything).fetchall() if r[1] >= launch]
    assert sorted(r for r in left if r[1] >= launch) == sorted(later)
    test = of_split(scenario.cases, "test")
    expected = [
        c
        for c in of_split(full, "test")
        if c.as_of >= launch and (c.query_key in queries or new & set(c.products))
    ]
    assert [c.as_of for c in test] == [c.as_of for c in expected] and test
    learned = [c for c in scenario.cases if c.split != "test"]
    assert learned and not any(c.query_key in queries or new & set(c.products) for c in learned)
    assert max(c.as_of for c in learned) < start_of(full, "test")


def test_nobody_finds_a_new_product_before_the_launch(own_shop, nano_policy):
    scenario = open_scenario(own_shop, split_of("new"))
    environment = Environment.of_scenario(scenario, scenario.cases[-2:], nano_policy.codec, AGENT)
    new, moment = set(scenario.launch.products), scenario.launch.moment
    queries = ["usb cable", "coffee beans", "desk lamp"]
    early, late = (
        [set(environment.retrieve(q, at)) for q in queries]
        for at in (moment - timedelta(seconds=1), moment)
    )
    assert not any(found & new for found in early) and any(found & new for found in late)
    assert all(len(found) == 10 for found in [*early, *late])


def test_sold_out_cases_are_those_whose_first_line_shows_nothing_to_be_had(
    simulated_shop, nano_policy, tmp_path
):
    full = Environment.of_shop(simulated_shop, nano_policy.codec, AGENT, SPLIT)
    cases = open_scenario(simulated_shop, split_of("sold_out")).cases
    kept = {(c.user_id, c.as_of) for c in of_split(cases, "test")}
    assert of_split(cases, "train") == of_split([e.case for e in full.examples], "train")
    catalog, agreed = full.search.catalog, 0
    test = [e for e in full.of_split("test") if e.profile.references]
    for example in test:
        line = example.profile.references[0]
        shown = full.retrieve(line, example.case.as_of)[: AgentConfig().results_shown]
        out = all(
            not catalog.state_at(catalog.row_of[p], example.case.as_of).in_stock for p in shown
        )
        agreed += out == ((example.case.user_id, example.case.as_of) in kept)
    assert 0 < len(kept) < len(test) and agreed == len(test)


def test_a_scenario_without_cases_says_what_to_do(own_shop):
    with pytest.raises(QAgentError, match="in no test case is all sold out"):
        own_shop.connection.execute("UPDATE product_history SET in_stock = true")
        own_shop.connection.execute("UPDATE products SET in_stock = true")
        own_shop.set_meta("catalog_version", "99")
        open_scenario(own_shop, split_of("sold_out"))
    with pytest.raises(SettingError, match=r"new_share 1e-09 leaves no test case"):
        open_scenario(own_shop, split_of("new", new_share=1e-9))
    with pytest.raises(SettingError, match="learn_from cannot be searches"):
        open_scenario(own_shop, split_of("no_query_log", learn_from="searches"))


@pytest.mark.parametrize("name", ["full", "no_query_log", "own_only", "new"])
def test_a_run_sees_again_what_it_saw(own_shop, nano_policy, tmp_path, name):
    """Invariant 9."""
    environment = environment_of(own_shop, name, nano_policy.codec)
    folder = own_shop.folder("runs", "mine")
    folder.mkdir(parents=True)
    environment.save(folder)
    again = Environment.resume(own_shop, folder, own_shop.catalog_version)
    assert again.digest() == environment.digest()
    assert [e.profile for e in again.examples] == [e.profile for e in environment.examples]
    assert (again.search.clicks is None) == (environment.search.clicks is None)
    for case in [e.case for e in environment.examples[::7]]:
        for query in ("usb cable", "acme desk lamp", case.query):
            assert again.retrieve(query, case.as_of) == environment.retrieve(query, case.as_of)


def test_a_place_that_cannot_be_written_is_said(own_shop):
    (own_shop.path / FOLDER).write_text("no folder")
    with pytest.raises(QAgentError, match="cannot write .*scenarios: File exists; choose a shop"):
        open_scenario(own_shop, split_of("own_only"))


def test_what_a_copy_was_made_through_is_not_left_behind(own_shop):
    open_scenario(own_shop, split_of("no_query_log"))
    (name,) = copies(own_shop)
    left = {path.name for path in (own_shop.path / FOLDER / name).iterdir()}
    assert left >= {"scenario.json", "shop.json", "shop.duckdb", "inventory"}
    assert "export" not in left
    assert [p.name for p in (own_shop.path / FOLDER).glob(".*")] == [".no_query_log.lock"]


def copies(shop):
    return {path.name for path in (shop.path / FOLDER).glob("[!.]*")}


def test_a_copy_serves_until_the_shop_changes_and_as_long_as_a_run_needs_it(own_shop, nano_policy):
    environment = environment_of(own_shop, "no_query_log", nano_policy.codec)
    (first,) = copies(own_shop)
    stamp = (own_shop.path / FOLDER / first / "shop.duckdb").stat().st_mtime_ns
    open_scenario(own_shop, split_of("no_query_log"))
    assert (own_shop.path / FOLDER / first / "shop.duckdb").stat().st_mtime_ns == stamp

    def change(minute):
        time = f"2026-03-31T00:{minute:02}"
        row = {"user_id": "u00", "time": time, "type": "view", "product_id": "p000"}
        assert append_events(own_shop, [row]).accepted == 1
        open_scenario(own_shop, split_of("no_query_log"))

    change(1)
    (second,) = copies(own_shop)
    assert second != first
    with pytest.raises(QAgentError, match=f"trained in the scenario {first}, and .* is gone"):
        folder = own_shop.folder("runs", "old")
        folder.mkdir(parents=True)
        environment.save(folder)
        Environment.resume(own_shop, folder, own_shop.catalog_version)
    shutil.rmtree(folder)
    environment = environment_of(own_shop, "no_query_log", nano_policy.codec)
    folder.mkdir(parents=True)
    environment.save(folder)
    change(2)
    assert second in copies(own_shop) and len(copies(own_shop)) == 2
    assert Environment.resume(own_shop, folder, own_shop.catalog_version).examples
    delete_copies(own_shop)
    assert copies(own_shop) == set()
