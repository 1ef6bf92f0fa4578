"""A shop of a million products, or of 100,000 users, made of the sample shop's; how long it takes to index.

    python tests/benchmarks/large_shops.py FOLDER --products 1000000 [--policies SHOP]
    python tests/benchmarks/large_shops.py FOLDER --users 100000 [--policies SHOP]
    python tests/benchmarks/serving.py --shop FOLDER/shop --policy grpo --clients 1 16 --workers 2

More products are the sample's under other brands and model numbers, so that each query finds hundreds
of times as many. More users are the sample's under other names, each some hours earlier or later: who
asks has as long a history as there. ``--policies`` copies the policies of another shop, as training
anew would say nothing about speed. Prints a JSON document: seconds of wall clock and of processor
time, and the peak of memory, of each step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from qagent_mlx.utils.database import literal, open_duckdb

SAMPLE = Path(__file__).parent.parent.parent / "sample_data"

PRODUCTS = """COPY (
    WITH latest AS (SELECT *, row_number() OVER (ORDER BY product_id) - 1 AS number
                    FROM (FROM {sample} QUALIFY row_number() OVER (
                          PARTITION BY product_id ORDER BY time DESC NULLS LAST) = 1)),
    wanted AS (SELECT range AS i, range % (SELECT count(*) FROM latest) AS number FROM range({more}))
    SELECT 'x' || i AS product_id, 'Brand' || hash(i) % 3000 AS brand, brand || ' X' || i || ' '
        || regexp_replace(title, '^\\S+ \\S+ ', '') AS title, category,
        round(price * (0.5 + hash(i + 1) % 1000 / 1000.0), 2) AS price, stock, attributes
    FROM wanted JOIN latest USING (number) ORDER BY i) TO {file} (FORMAT parquet)"""
EVENTS = """COPY (
    SELECT user_id || '-' || copy AS user_id,
        time + to_seconds(hash(user_id || '-' || copy) % 43200) AS time, type, query, product_id
    FROM {sample}, (SELECT range + 1 AS copy FROM range({copies}))
    ORDER BY time) TO {file} (FORMAT parquet)"""


def timed(*words: object) -> dict[str, float]:
    """Run a `qagent` command; what it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "qagent_mlx", *map(str, words)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.monotonic() - began, 1),
        "processor": round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),  # of the largest so far
    }


def main() -> None:
    """Make the files, then the shop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--products", type=int, default=0)
    parser.add_argument("--users", type=int, default=0)
    parser.add_argument("--policies", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    shop, files = given.folder / "shop", given.folder / "files"
    files.mkdir(exist_ok=True)
    kinds = {"products": [SAMPLE / "products.parquet"], "events": [SAMPLE / "events.parquet"]}
    with open_duckdb() as connection:

        def make(kind: str, sql: str, **values: int) -> None:
            sample, file = literal(SAMPLE / f"{kind}.parquet"), files / f"{kind}.parquet"
            connection.execute(sql.format(sample=sample, file=literal(file), **values))
            kinds[kind].append(file)

        for kind, sql, column, wanted in (
            ("products", PRODUCTS, "product_id", given.products),
            ("events", EVENTS, "user_id", given.users),
        ):
            ((there,),) = connection.execute(
                f"SELECT count(DISTINCT {column}) FROM {literal(SAMPLE / f'{kind}.parquet')}"
            ).fetchall()
            if wanted > there:
                more = wanted - there
                make(kind, sql, more=more, copies=-(-more // there))
    steps = {"create": timed("init", "--shop", shop)}
    for kind, places in kinds.items():
        steps[f"ingest {kind}"] = timed("ingest", kind, *places, "--shop", shop)
    steps["index"] = timed("index", "--shop", shop)
    if given.policies:
        shutil.copytree(given.policies / "policies", shop / "policies", dirs_exist_ok=True)
    print(json.dumps(steps, indent=2))


if __name__ == "__main__":
    main()
