"""Simulate a log and write the sample shop's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..utils.atomic_files import write_json
from ..utils.database import append_rows, open_duckdb, write_parquet
from .shopper import Shopper
from .world import START, SimulatedShop, SimulatorConfig

COLUMNS = {
    "products": "product_id VARCHAR, title VARCHAR, brand VARCHAR, time TIMESTAMP, "
    "category VARCHAR, price DOUBLE, stock BOOLEAN, attributes VARCHAR",
    "events": "user_id VARCHAR, time TIMESTAMP, type VARCHAR, query VARCHAR, product_id VARCHAR",
}


def simulate(config: SimulatorConfig | None = None) -> tuple[SimulatedShop, list[dict[str, Any]]]:
    """Simulate a shop and the log that its shoppers leave, in order of time."""
    world = SimulatedShop(config)
    log: list[dict[str, Any]] = []
    end = START + timedelta(days=world.config.days)
    for number in range(world.config.users):
        shopper = Shopper(world, f"u{number + 1:04d}", (world.config.seed, 2, number))
        log += [event for event in shopper.events() if event["time"] < end]
    log.sort(key=lambda event: (event["time"], event["user_id"]))
    return world, log


def write_sample(folder: Path, config: SimulatorConfig | None = None) -> dict[str, int]:
    """Write ``products.parquet``, ``events.parquet`` and ``simulator.json``; returns row counts."""
    world, log = simulate(config)
    tables: dict[str, Sequence[dict[str, Any]]] = {
        "products": list(world.product_records()),
        "events": log,
    }
    connection = open_duckdb()
    for name, records in tables.items():
        columns = [column.split()[0] for column in COLUMNS[name].split(", ")]
        connection.execute(f"CREATE TABLE {name} ({COLUMNS[name]})")
        append_rows(connection, name, ([record[c] for c in columns] for record in records))
        options = ", COMPRESSION zstd, COMPRESSION_LEVEL 19"
        write_parquet(connection, f"FROM {name}", folder / f"{name}.parquet", options=options)
    write_json(folder / "simulator.json", asdict(world.config))
    return {name: len(records) for name, records in tables.items()}
