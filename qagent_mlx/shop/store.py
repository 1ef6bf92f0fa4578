"""Where a shop's rows are kept: in its file alone, or in a lake that several machines share.

Every command reads and changes the shop's file. A `Store` says what happens around that: before a
change the file is brought up to date, and a change is kept elsewhere before it counts. The file
alone needs neither; see `lake.LakeStore` for the other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import duckdb

from .config import ShopConfig


class OpenShop(Protocol):
    """What a store needs of a `shop.Shop`."""

    path: Path
    config: ShopConfig
    wait_seconds: float

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The file, opened at the first use."""

    def reading_file(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """The file as it is, for a moment."""

    def roll_back(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Undo what the transaction has changed in the file."""

    def write_config(self) -> None:
        """Write the settings to ``shop.json``."""


class Store:
    """The shop's file alone."""

    is_shared = False  # whether other machines change the shop, too

    def is_behind(self, shop: OpenShop) -> bool:
        """Whether others have changed what the shop's file does not hold yet.

        Called while the file is open for nobody in this process.
        """
        return False

    def pull(self, shop: OpenShop) -> bool:
        """Bring the file up to date, outside of a transaction; returns whether it changed."""
        return False

    @contextmanager
    def alone(self, shop: OpenShop) -> Iterator[None]:
        """Keep all others from changing the shop; the file is up to date in it."""
        yield

    def watch(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Remember the rows as they are, before a transaction begins."""

    def push(self, shop: OpenShop) -> bool:
        """Keep what the transaction has changed, before it is committed; False where nothing was.

        Raises:
            QAgentError: nothing of it is kept.
        """
        return False

    def forget_old(self) -> None:
        """Erase what was deleted, where it can still be read as the shop was before."""

    def settings_saved(self, shop: OpenShop) -> None:
        """Let others know of settings that have changed."""
