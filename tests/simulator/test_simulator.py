import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pytest

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.shop.shop import Shop
from qagent_mlx.simulator.catalog_data import load_catalog
from qagent_mlx.simulator.sample_files import simulate, write_sample
from qagent_mlx.simulator.shopper import Shopper
from qagent_mlx.simulator.world import START, SimulatedShop, SimulatorConfig, moment

SMALL = SimulatorConfig(users=12, days=25, products_per_pair=2.0)
CATALOG = ("product_id", "time", "title", "brand", "category", "price", "stock", "attributes")
SAMPLE = Path(__file__).parents[2] / "sample_data"


@pytest.fixture(scope="module")
def simulated():
    return simulate(SMALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    return folder, write_sample(folder, SMALL)


def test_the_log_is_in_order_and_within_its_days(simulated):
    world, log = simulated
    times = [e["time"] for e in log]
    assert times == sorted(times)
    assert times[0] >= START and times[-1] < START + timedelta(days=SMALL.days)
    assert {e["user_id"] for e in log} == {f"u{i:04}" for i in range(1, 13)}
    assert set(Counter(e["type"] for e in log)) == {"search", "view", "click", "cart", "purchase"}
    known = {p.product_id for p in world.products}
    assert {e["product_id"] for e in log} - {None} <= known


def test_the_seed_alone_decides(simulated):
    assert simulate(SMALL)[1] == simulated[1]
    assert simulate(SimulatorConfig(**{**asdict(SMALL), "seed": 8}))[1] != simulated[1]


def test_hash_seeds_decide_nothing(simulated):
    code = (
        "from qagent_mlx.simulator.sample_files import simulate\n"
        "from qagent_mlx.simulator.world import SimulatorConfig\n"
        "log = simulate(SimulatorConfig(users=3, days=25, products_per_pair=2.0))[1]\n"
        "print([e['query'] for e in log])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_shoppers_do_not_depend_on_each_other(simulated):
    world, log = simulated
    alone = list(Shopper(world, "u0005", (SMALL.seed, 2, 4)).events())
    end = START + timedelta(days=SMALL.days)
    assert [e for e in alone if e["time"] < end] == [e for e in log if e["user_id"] == "u0005"]


def test_a_product_is_clicked_under_the_query_that_shows_it(simulated):
    world, log = simulated
    at = {p.product_id: i for i, p in enumerate(world.products)}
    shown = set()
    for event in log:
        user, query = event["user_id"], event["query"]
        if event["type"] == "search":
            shown |= {(user, query, i) for i in world.engine.search(query).tolist()}
        elif event["type"] == "click":
            assert (user, query, at[event["product_id"]]) in shown


def test_what_is_bought_was_clicked_and_could_be_bought(simulated):
    world, log = simulated
    at = {p.product_id: i for i, p in enumerate(world.products)}
    clicked, start, last = set(), {}, {}
    bought = 0
    for event in log:
        user, product = event["user_id"], event["product_id"]
        if user not in last or event["time"] - last[user] > timedelta(minutes=30):
            start[user] = event["time"]
        last[user] = event["time"]
        if event["type"] == "click":
            clicked.add((user, product))
        elif event["type"] == "purchase":
            bought += 1
            assert (user, product) in clicked
            # A visit lasts minutes; stock is that of its beginning.
            assert world.in_stock(at[product], (start[user] - START) / timedelta(days=1))
    assert bought > 10


def test_prices_and_stock_are_written_as_they_change(simulated):
    world, _ = simulated
    states = {}
    for row in world.product_records():
        states.setdefault(row["product_id"], []).append((row["time"], row["price"], row["stock"]))
    assert list(states) == [p.product_id for p in world.products]
    for i, changes in enumerate(states.values()):
        assert changes[0][0] == START
        assert [t for t, *_ in changes] == sorted({t for t, *_ in changes})
        for a, b in pairwise(changes):
            assert a[1:] != b[1:]
        for day in (0.5, 7.25, 24.9):
            known = [(p, s) for t, p, s in changes if t <= moment(day)][-1]
            assert known == (world.price(i, day), world.in_stock(i, day))
    assert max(len(changes) for changes in states.values()) > 3


def test_the_written_files_hold_what_a_shop_would_see_and_no_more(written, simulated):
    folder, counts = written
    world, log = simulated
    assert counts == {"products": len(list(world.product_records())), "events": len(log)}
    assert {p.name for p in folder.iterdir()} == {
        "products.parquet",
        "events.parquet",
        "simulator.json",
    }
    assert json.loads((folder / "simulator.json").read_text()) == asdict(SMALL)
    with duckdb.connect() as connection:
        columns = {
            name: {
                c
                for c, *_ in connection.execute(
                    f"DESCRIBE FROM '{folder}/{name}.parquet'"
                ).fetchall()
            }
            for name in ("products", "events")
        }
    assert columns["events"] == {"user_id", "time", "type", "query", "product_id"}
    assert columns["products"] == {*CATALOG}


def test_a_shop_takes_the_files_whole(written, tmp_path):
    folder, counts = written
    with Shop.create(tmp_path / "shop") as shop:
        for kind in ("products", "events"):
            report = ingest_files(shop, kind, [folder / f"{kind}.parquet"])
            assert (report.accepted, report.rejected) == (counts[kind], 0)


def titles_found(world, query, k=10):
    """The titles and types of what a world's search finds."""
    found = [world.products[i] for i in world.engine.search(query, k)]
    return [p.title for p in found], {p.type_index for p in found}


def test_homonyms_name_two_kinds_of_two_departments_and_categories_tell_them_apart():
    world = SimulatedShop(SimulatorConfig(products_per_pair=2.0, homonyms=0.3))
    names = Counter(kind.name for kind in world.types)
    shared = [name for name, n in names.items() if n > 1]
    assert len(shared) == round(0.3 * 84 / 2) and set(names.values()) == {1, 2}
    for name in shared:
        twins = [t for t, kind in enumerate(world.types) if kind.name == name]
        assert len({world.types[t].department for t in twins}) == 2
        assert len({world.categories[t] for t in twins}) == 2
    assert len(set(world.categories)) == 84
    assert any(len(titles_found(world, name)[1]) > 1 for name in shared)


def test_products_of_a_line_share_a_title_where_it_names_no_more():
    world = SimulatedShop(SimulatorConfig(products_per_pair=6.0, shared_titles=0.5))
    lines = Counter((p.type_index, p.brand_index) for p in world.products)
    titles = {line: set() for line in lines}
    for product in world.products:
        titles[product.type_index, product.brand_index].add(product.title)
    shared = [line for line, n in lines.items() if n > 1 and len(titles[line]) == 1]
    assert 0.4 < len(shared) / len(lines) < 0.6
    plain = SimulatedShop(SimulatorConfig(products_per_pair=6.0))
    alike = [(p.product_id, p.price, p.spec, p.style) for p in plain.products]
    assert [(p.product_id, p.price, p.spec, p.style) for p in world.products] == alike


def test_a_whim_spreads_clicks_over_the_products_of_a_query():
    def spread(whim):
        world = SimulatedShop(SimulatorConfig(users=40, days=60, products_per_pair=4.0, whim=whim))
        shopper = Shopper(world, "u1", (1, 2, 3))
        shopper.rng = np.random.default_rng(0)
        day, results = 3.0, world.of_type[0]
        taken = Counter(
            i for _ in range(400) for i in shopper.browse_results(results, 0, day).clicks
        )
        return len(taken), max(taken.values()) / taken.total()

    assert spread(0.9)[0] > spread(0.0)[0] and spread(0.9)[1] < spread(0.0)[1]


@pytest.mark.skipif(not (SAMPLE / "events.parquet").exists(), reason="no sample data here")
def test_the_sample_data_are_what_the_simulator_makes():
    config = SimulatorConfig(**json.loads((SAMPLE / "simulator.json").read_text()))
    assert config == SimulatorConfig()
    world = SimulatedShop(config)
    end = START + timedelta(days=config.days)
    with duckdb.connect() as connection:
        products = connection.execute(
            f"SELECT {', '.join(CATALOG)} FROM '{SAMPLE}/products.parquet'"
        ).fetchall()
        assert products == [tuple(row[c] for c in CATALOG) for row in world.product_records()]
        for number in (0, 700, 1499):
            user = f"u{number + 1:04}"
            shopper = Shopper(world, user, (config.seed, 2, number))
            expected = [tuple(e.values()) for e in shopper.events() if e["time"] < end]
            found = connection.execute(
                f"""SELECT user_id, time, type, query, product_id
                FROM '{SAMPLE}/events.parquet' WHERE user_id = ?""",
                [user],
            ).fetchall()
            assert sorted(found, key=str) == sorted(expected, key=str)


def test_the_catalog_file_fits_together():
    catalog = load_catalog()
    names = [t.name for t in catalog.types]
    departments = {t.department for t in catalog.types}
    assert len(set(names)) == len(names) == 84 and len(departments) == 14
    assert {f.type for t in catalog.types for f in t.follow_ups} <= set(names)
    assert all(0 < f.probability <= 1 and f.days > 0 for t in catalog.types for f in t.follow_ups)
    assert {d for b in catalog.brands for d in b.departments} == departments
    assert {b.tier for b in catalog.brands} == {0, 1, 2}
