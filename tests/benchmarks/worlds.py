"""Where query and product part: what looking and the product's reward bring in harder worlds.

    pip install lightgbm
    python tests/benchmarks/worlds.py --out worlds.json                # some minutes a world
    python tests/benchmarks/worlds.py --out worlds.json --report       # the tables again
    python tests/benchmarks/worlds.py --rates shop                     # the same rates of a shop
    python tests/benchmarks/worlds.py --keep shop --worlds "homonyms .8" --seeds 0   # to train in

Each world is a simulated shop (`SimulatorConfig`) in which one thing is harder than in the sample
shop: names that mean two things (``homonyms``), products that share a title (``shared_titles``),
several good products for one query (``whim``), brands that tempt and cost too much
(``aspiration``). Of each world, made with several seeds, the benchmark says

- the rates that a log shows: searches without a click, how often the next search of the same
  user within ten minutes is another one, and which share of a query's clicks goes to its most
  clicked product;
- what a boosted-tree ranker over memory's lines reaches (see ceiling.py): one that sees the lines
  alone (``blind``), and three that see what each line finds, learned for the right query and
  product at once (``both``), for the right query of the same cases, which are searches that led to
  something (``query``), and for what people typed first, whatever came of it (``typed``). No policy
  that picks a line reaches more, and it takes seconds where RL takes minutes;
- what fresh shoppers do with the first choice of ``both`` against those of the others.
"""

from __future__ import annotations

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from ceiling import Lines, cases_of, outcome, ranker, ranker_system
from study import interval

from qagent_mlx.build import SAMPLE_MEMORY, build_shop
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.evaluate.abtest import abtest
from qagent_mlx.evaluate.config import AbConfig
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.shop.config import ShopConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.simulator.sample_files import write_sample
from qagent_mlx.simulator.world import SimulatorConfig
from qagent_mlx.utils.atomic_files import write_json

WORLDS: dict[str, dict[str, float]] = {
    "as the sample shop": {},
    "homonyms .2": {"homonyms": 0.2},
    "homonyms .4": {"homonyms": 0.4},
    "homonyms .8": {"homonyms": 0.8},
    "shared titles .4": {"shared_titles": 0.4},
    "shared titles .8": {"shared_titles": 0.8},
    "whim .3": {"whim": 0.3},
    "whim .6": {"whim": 0.6},
    "aspiration 2": {"aspiration": 2.0},
    "aspiration 4": {"aspiration": 4.0},
    "all": {"homonyms": 0.4, "shared_titles": 0.4, "whim": 0.3, "aspiration": 2.0},
}
ARMS = ("blind", "typed", "query", "both")
CONTROLS = ARMS[:-1]
RATES_SQL = """
WITH searches AS (
    SELECT user_id, event_id, query_key, ts, lead(query_key) OVER w AS next, lead(ts) OVER w AS following
    FROM events WHERE type = 'search' WINDOW w AS (PARTITION BY user_id ORDER BY ts, event_id)),
clicked AS (
    SELECT s.event_id, s.query_key, e.product_id FROM events e JOIN searches s
    ON s.event_id = e.search_id WHERE e.type = 'click' AND e.product_id IS NOT NULL),
shares AS (
    SELECT query_key, sum(n) AS n, max(n) AS most FROM (
        SELECT query_key, product_id, count(*) AS n FROM clicked GROUP BY ALL) GROUP BY ALL)
SELECT
    (SELECT 1 - count(DISTINCT event_id) / (SELECT count(*) FROM searches) FROM clicked),
    (SELECT avg((next IS NOT NULL AND next <> query_key
        AND following - ts < INTERVAL '10 minutes')::INTEGER) FROM searches),
    (SELECT sum(most) / sum(n) FROM shares WHERE n >= 20)"""


def rates(shop: Shop) -> dict[str, float]:
    """Shares: searches without a click, reworded within ten minutes, clicks on the first choice."""
    row = shop.connection.execute(RATES_SQL).fetchall()[0]
    return dict(zip(("no_click", "reworded", "first_choice"), map(float, row), strict=True))


def world_of(name: str, seed: int, users: int) -> SimulatorConfig:
    """The settings of a world of `WORLDS`, with so many shoppers in its log."""
    config = SimulatorConfig(users=users, products_per_pair=4.0, seed=100 + seed)
    return replace(config, **WORLDS[name])


def make_shop(folder: Path, config: SimulatorConfig) -> None:
    """Write a world's log, and build a shop of it as the sample shop is built."""
    source = folder.with_name(f"{folder.name}-files")
    write_sample(source, config)
    settings = ShopConfig(memory=SAMPLE_MEMORY, simulated=asdict(config))
    with Shop.create(folder, settings) as shop:
        for kind in ("products", "events"):
            ingest_files(shop, kind, [source / f"{kind}.parquet"], ReadOptions(allow_future=True))
        build_shop(shop)


def measured(shop: Shop, seed: int, users: int) -> dict[str, Any]:
    """Everything about one world, made with one seed."""
    cases = cases_of(shop, SplitConfig())
    learn = [c for c in cases if c.split != "test"]
    typed = [c for c in cases_of(shop, SplitConfig(learn_from="searches")) if c.split != "test"]
    test = [c for c in cases if c.split == "test"]
    choose = {
        "blind": ranker(learn, "alone", "cons@1", seed),
        "typed": ranker(typed, "read", "q_em", seed),
        "query": ranker(learn, "read", "q_em", seed),
        "both": ranker(learn, "read", "cons@1", seed),
    }
    made = {arm: outcome(test, [choose[arm](case) for case in test]).mean(0) for arm in ARMS}
    made["first line"] = outcome(test, [0] * len(test)).mean(0)
    lifts: dict[str, dict[str, float]] = {}
    looked: list[Lines] = []  # both arms ask about the same moments of the same shoppers
    for control in CONTROLS:
        arms = {arm: ranker_system(arm, choose[arm], looked) for arm in (control, "both")}
        report = abtest(shop, control, "both", AbConfig(k=1, users=users, seed=seed), systems=arms)
        lifts[control] = {name: report.rates[name].lift for name in ("ctr", "cvr", "orders")}
    return {
        "rates": rates(shop),
        "cases": len(test),
        "metrics": {arm: values.tolist() for arm, values in made.items()},
        "lifts": lifts,
    }


def tables(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    heads = ["no click", "reworded", "first choice", "first line", *ARMS]
    heads += [f"both - {arm}" for arm in CONTROLS] + [f"orders against {arm}" for arm in CONTROLS]
    lines = [f"| world | {' | '.join(heads)} |", f"|---{'|--:' * len(heads)}|"]
    for world, seeds in results.items():
        runs = list(seeds.values())
        cons = {a: [r["metrics"][a][2] for r in runs] for a in ("first line", *ARMS)}
        cells = [
            *(f"{100 * np.mean([r['rates'][n] for r in runs]):.0f}" for n in runs[0]["rates"]),
            *(f"{100 * np.mean(cons[a]):.1f}" for a in ("first line", *ARMS)),
            *(
                interval([b - a for a, b in zip(cons[arm], cons["both"], strict=True)])
                for arm in CONTROLS
            ),
            *(f"{interval([r['lifts'][arm]['orders'] for r in runs])} %" for arm in CONTROLS),
        ]
        lines.append(f"| {world} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not in ``--out`` yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", action="store_true", help="print what was measured")
    parser.add_argument("--rates", metavar="SHOP", help="print the rates of this shop's log")
    parser.add_argument(
        "--keep", metavar="SHOP", type=Path, help="make the first world's shop only"
    )
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=600, help="shoppers of each log")
    given = parser.parse_args()
    if given.rates:
        with Shop.snapshot(Path(given.rates)) as shop:
            return print(json.dumps(rates(shop), indent=1))
    if given.keep:
        return make_shop(given.keep, world_of(given.worlds[0], given.seeds[0], given.users))
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    for seed in given.seeds if not given.report else ():
        for world in given.worlds:
            if str(seed) in results.get(world, {}):
                continue
            with tempfile.TemporaryDirectory() as place:
                make_shop(Path(place) / "shop", world_of(world, seed, given.users))
                with Shop.open(Path(place) / "shop") as shop:
                    results.setdefault(world, {})[str(seed)] = measured(shop, seed, 300)
            write_json(given.out, results)
            print(f"{world}, seed {seed}: done", file=sys.stderr, flush=True)
    print(tables(results))


if __name__ == "__main__":
    main()
