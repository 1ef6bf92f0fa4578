"""What the floors above do when a shop's rows change, named by the package (`qagent_mlx`).

The shop knows when a journal has to be stored or stored memory has to follow, and the rooms above
know how. They are imported when they are needed first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import duckdb

    from .config import MemoryConfig
    from .row_changes import Rows


class Follower(Protocol):
    """Made before rows are changed, in the same transaction."""

    def follow(self, changes: Mapping[str, Rows]) -> None:
        """Bring what was derived from the rows up to date with their changes, by table."""


@dataclass(frozen=True)
class Hooks:
    """What is done by the floors above.

    Attributes:
        apply_journal: Stores what servers have acknowledged in a `Shop` that is open for writing.
        make_follower: Lets stored memory follow rows that another machine has changed.
    """

    apply_journal: Callable[[Any], object]
    make_follower: Callable[[duckdb.DuckDBPyConnection, MemoryConfig], Follower]


_named: list[Hooks] = []


def name_hooks(hooks: Hooks) -> None:
    """Name what is done, instead of what was named before."""
    _named[:] = [hooks]


def hooks() -> Hooks:
    """What is done; the package has named it before any of its modules could be imported."""
    return _named[0]
