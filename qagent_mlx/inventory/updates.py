"""Changes to a shop's inventory: remove products, choose an encoder, refresh the index."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils import trust
from ..utils.settings import check
from .encoders.registry import SUBWORD, EncoderSpec, python_file
from .index import IndexChanges, sync_index


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """How an index was brought in line with its catalog."""

    products: int
    catalog_version: int
    changes: IndexChanges
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the changes stand beside the other values."""
        return {
            "products": self.products,
            "catalog_version": self.catalog_version,
            **asdict(self.changes),
            "seconds": round(self.seconds, 2),
        }


def remove_products(shop: Shop, products: Sequence[str]) -> None:
    """Take products out of the catalog of a shop that is open for writing.

    What users did with them stays in the log. The index is out of date until `refresh_index`.

    Raises:
        QAgentError: one is not in the catalog, or none would be left; nothing is removed.
    """
    with shop.transaction():
        remove_in_transaction(shop, products)


def remove_in_transaction(shop: Shop, products: Sequence[str]) -> None:
    """`remove_products` inside a transaction; where it raises nothing was removed."""
    connection, ids = shop.connection, list(dict.fromkeys(products))
    known = {
        product
        for (product,) in connection.execute(
            "SELECT product_id FROM products WHERE product_id IN (SELECT unnest(?))", [ids]
        ).fetchall()
    }
    unknown = [product for product in ids if product not in known]
    if unknown:
        raise QAgentError(
            f"{shop.path} has no product {', '.join(unknown[:5])}; nothing was removed"
        )
    ((total,),) = connection.execute("SELECT count(*) FROM products").fetchall()
    if total == len(ids):
        raise QAgentError(
            "no product would be left; to start again, make another shop with qagent init"
        )
    for table in ("products", "product_history", "product_aliases"):
        connection.execute(f"DELETE FROM {table} WHERE product_id IN (SELECT unnest(?))", [ids])
    shop.set_meta("catalog_version", str(shop.catalog_version + 1))


def set_encoder(shop: Shop, encoder: str | None, dimensions: int | None = None) -> None:
    """Save another encoder in the shop's settings; the index is then built again with it.

    ``encoder`` is ``subword``, a model folder, or ``FILE.py:FUNCTION``; None keeps what is there.

    Raises:
        QAgentError: there is no such encoder, or a setting is out of range.
    """
    search = shop.config.search
    if encoder is not None:
        # An absolute path, as the shop may be opened from any folder.
        place = encoder if encoder == SUBWORD else str(Path(encoder).resolve())
        search = replace(search, encoder=place)
    if dimensions is not None:
        search = replace(search, dimensions=dimensions)
    check(search)
    EncoderSpec.of(search)
    source = python_file(search.encoder) if encoder is not None else None
    if source is not None:
        trust.trust_file(source)
    shop.config = replace(shop.config, search=search)
    shop.save_config()


def refresh_index(shop: Shop) -> RefreshReport:
    """Bring the shop's index in line with its catalog; a new one counts all products as added."""
    start = time.perf_counter()
    index, changes = sync_index(shop)
    seconds = time.perf_counter() - start
    return RefreshReport(len(index.catalog), index.manifest.catalog_version, changes, seconds)
