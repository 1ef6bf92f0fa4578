"""Changes to a shop's inventory: products that go, and the encoder that is used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils import trusted_code
from .encoders.registry import SUBWORD, EncoderSpec, python_file
from .index import IndexChanges, build_index, load_index, open_index, update_index


def remove_products(shop: Shop, products: Sequence[str]) -> None:
    """Take products out of the catalog; what users did with them stays in the log.

    Args:
        shop: Open for writing. Its index notices; `refresh_index` brings it in line.
        products: Their ids.

    Raises:
        QAgentError: one is not in the catalog, or none would be left; nothing is removed.
    """
    wanted = list(dict.fromkeys(products))
    with shop.transaction() as connection:
        known = {
            product
            for (product,) in connection.execute(
                "SELECT product_id FROM products WHERE product_id IN (SELECT unnest(?))", [wanted]
            ).fetchall()
        }
        unknown = [product for product in wanted if product not in known]
        if unknown:
            raise QAgentError(
                f"{shop.path} has no product {', '.join(unknown[:5])}; nothing was removed"
            )
        for table in ("products", "product_history"):
            connection.execute(
                f"DELETE FROM {table} WHERE product_id IN (SELECT unnest(?))", [wanted]
            )
        left = connection.execute("SELECT count(*) FROM products").fetchone()
        if left is None or left[0] == 0:
            raise QAgentError(
                "no product would be left; to start anew, make another shop with qagent init"
            )
        shop.set_meta("catalog_version", str(shop.catalog_version + 1))


def set_encoder(shop: Shop, encoder: str | None, dimensions: int | None = None) -> None:
    """Name another encoder in the shop's settings; the index is then built anew with it.

    Args:
        shop: Its settings are saved.
        encoder: ``subword``, a model folder, or ``FILE.py:FUNCTION``; None keeps it.
        dimensions: Of the vectors, at most; None keeps it.

    Raises:
        QAgentError: there is no such encoder; the settings stay.
    """
    search = shop.config.search
    if encoder is not None:
        # The shop is opened from anywhere, so a path is kept whole.
        place = encoder if encoder == SUBWORD else str(Path(encoder).resolve())
        search = replace(search, encoder=place)
    if dimensions is not None:
        search = replace(search, dimensions=dimensions)
    EncoderSpec.of(search)
    source = python_file(search.encoder) if encoder is not None else None
    if source is not None:
        trusted_code.trust(source)
    shop.config = replace(shop.config, search=search)
    shop.save_config()


def refresh_index(shop: Shop) -> dict[str, Any]:
    """Bring the shop's index in line with its catalog.

    Returns:
        products, catalog_version, added, changed, restated, removed (numbers of products),
        and seconds. Where there was no index, all products are added.
    """
    start = time.perf_counter()
    try:
        before = load_index(shop.path / "inventory")
    except QAgentError:
        before = None
    if before is None or EncoderSpec.from_stored(before.manifest["encoder"]) != EncoderSpec.of(
        shop.config.search
    ):
        index = build_index(shop, before.clicks_until) if before is not None else open_index(shop)
        changes = IndexChanges(len(index.catalog), 0, 0, 0)
    elif before.manifest["catalog_version"] == shop.catalog_version:
        index, changes = before, IndexChanges(0, 0, 0, 0)
    else:
        index, changes = update_index(shop, before)
    return {
        "products": len(index.catalog),
        "catalog_version": index.manifest["catalog_version"],
        **asdict(changes),
        "seconds": round(time.perf_counter() - start, 2),
    }
