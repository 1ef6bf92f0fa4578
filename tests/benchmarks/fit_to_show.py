"""Are rows fit to be shown where a category went and much is sold out?

    python tests/benchmarks/fit_to_show.py --users 10000 --policy sample

Simulates a shop, takes its most searched category out of the catalog, sells out a share of the rest,
and recommends to everybody (chains as in bulk). For each row whose first product is sold out, or
whose first query leads to what its user has just bought, it looks by itself whether another query of
the user's profile, or one that is trending, leads to what can be had. Prints one JSON document; the
share to reach is 0. No test runs this.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from qagent_mlx.agent.recommend import Recommender
from qagent_mlx.build import build_shop
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.inventory.updates import refresh_index, remove_products
from qagent_mlx.policy.registry import open_policy
from qagent_mlx.serve.batch import all_users
from qagent_mlx.shop.config import ShopConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.simulator.sample_files import write_sample
from qagent_mlx.simulator.world import SimulatorConfig
from qagent_mlx.utils.atomic_files import read_json

AT_ONCE = 32  # users


def make_shop(path: Path, users: int, sold_out: float, seed: int) -> str:
    """A simulated shop without its most searched category; returns that category."""
    files = path / "files"
    files.mkdir()
    write_sample(files, SimulatorConfig(users=users, seed=seed))
    config = ShopConfig(simulated=read_json(files / "simulator.json", "the sample"))
    with Shop.create(path / "shop", config) as shop:
        for kind in ("products", "events"):
            options = ReadOptions(allow_future=True)
            ingest_files(shop, kind, [files / f"{kind}.parquet"], options)
        build_shop(shop)
        ((category,),) = shop.connection.execute(
            """SELECT category FROM events JOIN products USING (product_id)
            GROUP BY category ORDER BY count(*) DESC, category LIMIT 1"""
        ).fetchall()
        gone = shop.connection.execute(
            "SELECT product_id FROM products WHERE category = ? ORDER BY product_id", [category]
        ).fetchall()
        remove_products(shop, [product for (product,) in gone])
        with shop.transaction() as connection:
            connection.execute(
                f"""UPDATE products SET in_stock = false
                WHERE hash(product_id) % 1000 < {round(1000 * sold_out)};
                INSERT INTO product_history SELECT product_id, $1, price, in_stock FROM products
                WHERE hash(product_id) % 1000 < {round(1000 * sold_out)}""",
                [shop.end_of_log()],
            )
            shop.set_meta("catalog_version", str(shop.catalog_version + 1))
        refresh_index(shop)
    return str(category)


def check(recommender: Recommender, users: list[str]) -> Counter[str]:
    """Counts of rows, and of those that are not fit though another query is."""
    shop, search, catalog = recommender.shop, recommender.search, recommender.search.catalog
    moment = shop.end_of_log()
    others = [line.query for line in recommender.others(moment) if line.query]
    unfit = ("first sold out", "first just bought", "another could be shown")
    counts = Counter(dict.fromkeys(unfit, 0))

    def is_out(product: str) -> bool:
        return not catalog.state_at(catalog.row_of[product], moment)[1]

    def is_had(product: str, just_bought: tuple[str, ...]) -> bool:
        return catalog.leaf(catalog.row_of[product]) in just_bought

    for start in range(0, len(users), AT_ONCE):
        profiles = recommender.profiles(users[start : start + AT_ONCE], moment)
        answers = recommender.answer(recommender.requests(profiles, moment, 5))
        for profile, answer in zip(profiles, answers, strict=True):
            had = profile.context.just_bought
            row = answer.recommendations
            counts["users"] += 1
            counts["empty"] += not row
            counts["queries that find nothing"] += sum(not item.products for item in row)
            if not row:
                continue
            first = row[0].products[0]
            counts["just bought somewhere"] += any(is_had(i.products[0], had) for i in row)
            if not is_out(first) and not is_had(first, had):
                continue
            counts["first sold out"] += is_out(first)
            counts["first just bought"] += is_had(first, had)
            queries = [query for query in (*profile.references, *others) if query]
            found = search.search(queries, 10, [moment] * len(queries))
            tops = [hits[0].product_id for hits in found if hits]
            counts["another could be shown"] += any(
                not is_out(top) and not is_had(top, had) for top in tops
            )
    return counts


def main() -> None:
    """Simulate, recommend and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--policy", default="sample")
    parser.add_argument("--group", type=int, default=1)
    parser.add_argument("--sold-out", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        category = make_shop(Path(folder), given.users, given.sold_out, given.seed)
        with Shop.open(Path(folder) / "shop") as shop:
            recommender = Recommender(shop, open_policy(shop, given.policy), group=given.group)
            counts = check(recommender, all_users(shop)[: given.users])
        seconds = round(time.perf_counter() - start)
    print(json.dumps({"removed": category, "sold_out": given.sold_out, **counts, "s": seconds}))


if __name__ == "__main__":
    main()
