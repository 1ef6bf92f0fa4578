"""What a lake holds beside a shop's rows: who wrote last, the shop's settings, its snapshots."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import duckdb

from ..errors import QAgentError
from ..utils.settings import merge
from .config import PLACES, ShopConfig
from .copied import Copied
from .lake_catalog import NAME
from .lake_files import refuse_views
from .store import OpenShop

FORMAT = 1  # of what a lake holds
STATE = f"{NAME}.main.lake_state"


def shared_settings(config: ShopConfig) -> str:
    """A shop's settings as the lake keeps them: where it is, each machine knows itself."""
    values: dict[str, Any] = asdict(config)
    return json.dumps({name: value for name, value in values.items() if name not in PLACES})


def take_settings(shop: OpenShop, state: dict[str, str], address: str) -> None:
    """Give a shop the settings that a lake's state holds."""
    values = json.loads(state["settings"])
    if isinstance(values, dict):  # else `merge` says so
        values = {name: value for name, value in values.items() if name not in PLACES}
    own = ShopConfig(store=shop.config.store, data=shop.config.data)
    config = merge(own, values, f"the lake {address}")
    if config != shop.config:
        shop.config = config
        shop.write_config()


def write_state(lake: duckdb.DuckDBPyConnection, values: dict[str, str]) -> None:
    """Set values of the table ``lake_state``, inside a transaction."""
    for key, value in values.items():
        lake.execute(f"DELETE FROM {STATE} WHERE key = ?", [key])
        lake.execute(f"INSERT INTO {STATE} VALUES (?, ?)", [key, value])


def state_of_lake(lake: duckdb.DuckDBPyConnection, snapshot: int | None = None) -> dict[str, str]:
    """The table ``lake_state``, as it is or as it was.

    Raises:
        QAgentError: the lake is of another format.
    """
    moment = "" if snapshot is None else f" AT (VERSION => {snapshot})"
    refuse_views(lake, NAME)
    values = dict(lake.execute(f"FROM {STATE}{moment}").fetchall())
    if values.get("format") != str(FORMAT):
        raise QAgentError(
            f"the lake is of format {values.get('format')}, this program reads {FORMAT}; "
            "use the same qagent-mlx on all machines"
        )
    return values


def newest_snapshot(lake: duckdb.DuckDBPyConnection) -> int:
    """The number of the lake's newest snapshot."""
    ((snapshot,),) = lake.execute(f"FROM ducklake_current_snapshot('{NAME}')").fetchall()
    return int(snapshot)


def head_of_lake(lake: duckdb.DuckDBPyConnection) -> Copied:
    """The lake's newest snapshot, and who wrote it last."""
    snapshot = newest_snapshot(lake)
    rows = lake.execute(f"SELECT value FROM {STATE} WHERE key = 'writer'").fetchall()
    return Copied(snapshot, rows[0][0] if rows else "")


def known_snapshots(lake: duckdb.DuckDBPyConnection, numbers: list[int]) -> int:
    """How many of these snapshots the lake still has."""
    ((count,),) = lake.execute(
        f"""SELECT count(DISTINCT snapshot_id) FROM ducklake_snapshots('{NAME}')
        WHERE list_contains(?, snapshot_id)""",
        [numbers],
    ).fetchall()
    return int(count)
