"""Write a shop's database anew, without what was deleted from it."""

from __future__ import annotations

from pathlib import Path

from ..utils.atomic_files import replacing, sync_folder
from ..utils.database import literal
from .shop import Shop


def rewrite_database(shop: Shop) -> None:
    """Copy the database into a new file: deleted rows stay in the old one's blocks.

    Where they are kept elsewhere, they leave that, too.
    """
    shop.store.forget_old()
    connection = shop.connection
    path = shop.path / "shop.duckdb"
    with replacing(path) as temporary:
        temporary.unlink()  # DuckDB makes its files itself
        ((current,),) = connection.execute("SELECT current_database()").fetchall()
        connection.execute(f"ATTACH {literal(temporary)} AS rewritten")
        connection.execute(f'COPY FROM DATABASE "{current}" TO rewritten')
        connection.execute("DETACH rewritten")
        shop.close()
    Path(f"{path}.wal").unlink(missing_ok=True)
    sync_folder(path.parent)
