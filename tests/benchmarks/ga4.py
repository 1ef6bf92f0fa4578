"""How fast a million events of GA4's nested form go in: python tests/benchmarks/ga4.py [EVENTS].

Writes an invented BigQuery export (JSON lines and Parquet) with searches, product views, carts and
purchases of several items to a temporary folder, ingests each into a new shop by the command line,
and prints events a second of wall time and the peak memory of the process. No test runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

_EVENTS = """CREATE TABLE export AS
WITH drawn AS (SELECT i, hash(i) AS h, hash(i + 1000000007) AS g FROM range({count}) t(i)),
named AS (SELECT *, (h % 20000)::VARCHAR AS person, list_extract(['view_search_results',
    'view_item', 'add_to_cart', 'purchase', 'page_view'], (1 + g % 5)::INT) AS event_name FROM drawn)
SELECT strftime(day, '%Y%m%d') AS event_date, event_name,
    epoch_us(TIMESTAMP '2026-01-01' + to_seconds(i)) AS event_timestamp,
    'web.' || person AS user_pseudo_id,
    CASE WHEN h % 3 = 0 THEN 'user' || person END AS user_id,
    CASE WHEN event_name = 'view_search_results' THEN [{{'key': 'search_term', 'value':
        {{'string_value': 'lamp ' || (g % 5000), 'int_value': NULL::BIGINT}}}}]
        ELSE [{{'key': 'ga_session_id', 'value': {{'string_value': NULL, 'int_value': i}}}}] END
        AS event_params,
    CASE WHEN event_name IN ('view_item', 'add_to_cart', 'purchase') THEN
        [{{'item_id': 'sku' || (g % 10000), 'item_name': 'Lamp ' || (g % 10000),
           'item_brand': 'Lumen', 'item_category': 'Lamps', 'price': 9.5, 'quantity': 1}}]
        ELSE [] END AS items
FROM named, (SELECT DATE '2026-01-01') d(day)"""


def main(count: int = 1_000_000) -> None:
    """Print a line for each form."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with duckdb.connect() as connection:
            connection.execute(_EVENTS.format(count=count * 5 // 4))  # a fifth are page views
            for form in ("parquet", "json"):
                connection.execute(f"COPY export TO '{folder}/events_20260101.{form}'")
        for form in ("parquet", "json"):
            shop = folder / form
            command = [sys.executable, "-m", "qagent_mlx"]
            subprocess.run([*command, "init", "--shop", shop], check=True, capture_output=True)
            export = str(folder / f"events_20260101.{form}")
            start = time.perf_counter()
            process = subprocess.Popen(
                [*command, "ingest", "--preset", "ga4", "--from", export, "--shop", shop, "--json"],
                stdout=subprocess.PIPE,
            )
            assert process.stdout is not None
            report = json.loads(process.stdout.read())
            _, _, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            accepted = report["events"]["accepted"]
            print(
                f"{form}: {accepted:,} events in {seconds:.1f} s, {accepted / seconds:,.0f} a second, "
                f"{usage.ru_utime + usage.ru_stime:.1f} s of processor time, "
                f"{usage.ru_maxrss / 1024:,.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
