"""The raw history as a profile: what abstraction has to beat at the same token budget.

The newest events that fit into the budget, an event a line, the newest first. A search's line can
be named by its reference, so that the same policy reads and acts on both kinds of profile.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from ..protocol.escape import safe
from ..protocol.marks import AGES
from ..types import Line
from .sql import sql
from .types import Moment

RAW = "raw"  # the section's name


def raw_lines(
    connection: duckdb.DuckDBPyConnection, moments: Sequence[Moment], budget: int
) -> list[list[Line]]:
    """The newest events of each moment as lines; at most ``budget``, as no line is free."""
    lines: list[list[Line]] = [[] for _ in moments]
    seen: list[set[str]] = [set() for _ in moments]
    values = {
        "numbers": list(range(len(moments))),
        "users": [moment.user_id for moment in moments],
        "times": [moment.as_of for moment in moments],
    }
    query = sql("newest_events", most=max(0, budget))
    for number, kind, key, text, age in connection.execute(query, values).fetchall():
        # One reference a query: the same query searched again is a line without one.
        named = kind == "search" and key not in seen[number]
        if named:
            seen[number].add(key)
        lines[number].append(
            Line(
                section=RAW,
                text=f"{kind} {safe(text)} {AGES.word(age)}",
                score=round(1 / (2 + len(lines[number])), 12),
                query=text if named else None,
                reason="from your history" if named else "",
            )
        )
    return lines
