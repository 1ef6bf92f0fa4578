"""Copies of a shop from which a scenario has taken a part of the log.

A copy lies in the shop's folder, as ``scenarios/<scenario>-<fingerprint>``: the fingerprint is of
the shop's data and settings, so a copy serves until one of them changes. It is a shop of its own,
with an index, stored memory and a memory ranker that know nothing but the copy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from ..build import retrieval
from ..errors import QAgentError
from ..inventory.index import open_index
from ..memory.ranker import fit_ranker
from ..memory.sessions import refresh_sessions
from ..memory.store import MEMORY_FORMAT, MemoryStore
from ..shop.config import ShopConfig
from ..shop.schema import EVENT_COLUMNS
from ..shop.shop import Shop
from ..utils.atomic_files import locked, read_json, replacing_folder, write_json
from ..utils.database import literal

FOLDER = "scenarios"  # of a shop
FILE = "scenario.json"  # of a copy, and of a run that was trained in one
FORMAT = 1  # of what a copy holds; raise it in the commit that changes what a scenario takes away
WAIT_SECONDS = 1800.0  # for another process that makes the same copy

_TABLES = ("products", "product_history", "product_aliases")  # besides events; copied whole


class Launch(msgspec.Struct, frozen=True):
    """Products that come up at a moment: before that nobody could find them."""

    moment: datetime
    products: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """What a scenario leaves of a shop.

    ``events`` is SQL that selects the events that stay, all columns; ``values`` are its parameters.
    """

    scenario: str
    config: ShopConfig
    events: str = "SELECT * FROM events"
    values: Mapping[str, Any] = field(default_factory=dict)
    launch: Launch | None = None
    same_index: bool = False  # whether the index learned from nothing that is taken away


def open_part(shop: Shop, part: Part) -> Shop:
    """The copy of a shop that has this part of it, made where there is none yet.

    Raises:
        QAgentError: the shop's folder cannot be written, or too little is left.
    """
    root = shop.path / FOLDER
    name = f"{part.scenario}-{_fingerprint(shop, part)}"
    if not (root / name / FILE).exists():
        try:
            root.mkdir(exist_ok=True)
            refusal = f"the scenario {part.scenario} is being made by {{}}; wait for it"
            with locked(root / f".{part.scenario}.lock", refusal, WAIT_SECONDS):
                if not (root / name / FILE).exists():
                    _make(shop, part, root / name)
                    _clear(shop, part.scenario, name)
        except (OSError, duckdb.IOException) as error:
            reason = getattr(error, "strerror", "") or str(error).splitlines()[0]
            raise QAgentError(
                f"cannot write {root}: {reason}; choose a shop folder you may write to, or free "
                "some space"
            ) from error
    return Shop.open(root / name)


def open_copy(shop: Shop, name: str) -> tuple[Shop, Launch | None]:
    """The copy of a name, as a run remembers it, and the launch of its new products.

    Raises:
        QAgentError: it is gone or damaged.
    """
    folder = shop.path / FOLDER / name
    if not (folder / FILE).exists():
        raise QAgentError(
            f"the run was trained in the scenario {name}, and {folder} is gone; start a new run"
        )
    values = read_json(folder / FILE, f"the scenario {name}")
    try:
        return Shop.open(folder), msgspec.convert(values["launch"], Launch | None)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise QAgentError(
            f"the scenario {name} is damaged: {folder / FILE}; delete {folder} and start a new run"
        ) from error


def delete_copies(shop: Shop) -> None:
    """Delete all copies: a run that was trained in one cannot go on."""
    if (shop.path / FOLDER).exists():
        shutil.rmtree(shop.path / FOLDER)


def _fingerprint(shop: Shop, part: Part) -> str:
    """What the copy is made from: all events and products, settings, and what is taken away."""
    ((*data,),) = shop.connection.execute(
        f"""SELECT (SELECT count(*) FROM events),
            (SELECT bit_xor(hash({EVENT_COLUMNS})) FROM events),
            (SELECT bit_xor(hash(p)) FROM products p),
            (SELECT bit_xor(hash(h)) FROM product_history h)"""
    ).fetchall()
    launch = msgspec.to_builtins(part.launch)
    made_from = [FORMAT, MEMORY_FORMAT, data, asdict(part.config), part.events, launch]
    return hashlib.sha256(json.dumps(made_from, default=str).encode()).hexdigest()[:8]


def _make(shop: Shop, part: Part, folder: Path) -> None:
    with replacing_folder(folder) as temporary:
        with Shop.create(temporary, part.config) as copy:
            files = _export(shop, part, temporary / "export")
            with copy.transaction() as connection:
                for path in files:
                    source = f"read_parquet({literal(path)})"
                    connection.execute(f"INSERT INTO {path.stem} BY NAME FROM {source}")
                copy.set_meta("catalog_version", str(shop.catalog_version))
                everybody = "SELECT DISTINCT user_id FROM events"
                refresh_sessions(connection, part.config.memory, everybody)
                MemoryStore(connection, part.config.memory).build()
            shutil.rmtree(temporary / "export")
            if part.same_index:
                open_index(shop)
                shutil.copytree(shop.path / "inventory", temporary / "inventory")
            index = open_index(copy)
            fit_ranker(copy, index.clicks_until, retrieval(copy, index))
        write_json(temporary / FILE, {"launch": msgspec.to_builtins(part.launch)})


def _export(shop: Shop, part: Part, folder: Path) -> list[Path]:
    """Write the part's tables as Parquet files, which any connection can read, into a folder."""
    folder.mkdir()
    events = f"SELECT {EVENT_COLUMNS} FROM ({part.events})"
    tables = {"events": (events, part.values)}
    tables |= {n: (f"SELECT * FROM {n}", {}) for n in _TABLES if shop.has_table(n)}
    for name, (query, values) in tables.items():
        target = literal(folder / f"{name}.parquet")
        shop.connection.execute(f"COPY ({query}) TO {target} (FORMAT parquet)", dict(values))
    return sorted(folder.glob("*.parquet"))


def _clear(shop: Shop, scenario: str, name: str) -> None:
    """Delete older copies of a scenario that no run was trained in."""
    used = {name}
    for path in (shop.path / "runs").glob(f"*/{FILE}"):
        used.add(str(read_json(path, f"the run {path.parent.name}").get("folder")))
    for folder in (shop.path / FOLDER).glob(f"{scenario}-*"):
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)
