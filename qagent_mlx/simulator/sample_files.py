"""Simulate a log and write the sample shop's files."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from ..utils.atomic_files import replacing, write_json
from ..utils.database import open_duckdb
from .shopper import Shopper
from .world import START, SimulatedShop, SimulatorConfig


def simulate(
    config: SimulatorConfig | None = None,
) -> tuple[SimulatedShop, list[dict[str, object]]]:
    """A world and the log that its shoppers left, in order of time."""
    world = SimulatedShop(config)
    log: list[dict[str, object]] = []
    end = START + timedelta(days=world.config.days)
    for number in range(world.config.users):
        shopper = Shopper(world, f"u{number + 1:04d}", (world.config.seed, 2, number))
        log += [e for e in shopper.live() if e["time"] < end]  # type: ignore[operator]
    log.sort(key=lambda e: (e["time"], e["user_id"]))  # type: ignore[arg-type, return-value, unused-ignore]
    return world, log


def write_sample(folder: Path, config: SimulatorConfig | None = None) -> dict[str, int]:
    """Write ``products.parquet``, ``events.parquet`` and ``simulator.json`` to a folder."""
    world, log = simulate(config)
    connection = open_duckdb()
    columns = {
        "products": {
            "product_id": "VARCHAR",
            "title": "VARCHAR",
            "brand": "VARCHAR",
            "time": "TIMESTAMP",
            "category": "VARCHAR",
            "price": "DOUBLE",
            "stock": "BOOLEAN",
            "attributes": "VARCHAR",
        },
        "events": {
            "user_id": "VARCHAR",
            "time": "TIMESTAMP",
            "type": "VARCHAR",
            "query": "VARCHAR",
            "product_id": "VARCHAR",
        },
    }
    counts = {}
    for name, rows in (("products", list(world.product_rows())), ("events", log)):
        kinds = ", ".join(f"{c} {t}" for c, t in columns[name].items())
        connection.execute(f"CREATE TABLE {name} ({kinds})")
        with connection.appender(name) as appender:
            for row in rows:
                appender.append_row(*(row[c] for c in columns[name]))
        with replacing(folder / f"{name}.parquet") as temporary:
            connection.execute(
                f"COPY {name} TO '{temporary}' (FORMAT parquet, COMPRESSION zstd, "
                "COMPRESSION_LEVEL 19)"
            )
        counts[name] = len(rows)
    write_json(folder / "simulator.json", asdict(world.config))
    return counts
