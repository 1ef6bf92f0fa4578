"""Answers that users were shown: the table ``recommendations``, one row for each query.

In the words of UBI an answer is a query_id (here ``recommendation_id``), a query of it an
object_id with a position.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from typing import Any

from ..shop.journal import JournalWriter
from ..shop.shop import Shop
from ..utils.database import append_rows
from ..utils.text import query_key

ENTRY = "shown"  # kind of entries of the journal


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """Queries that a user was shown, in that order.

    Attributes:
        recommendation_id: Of the answer.
        queries: The first one stood at position 1.
        propensities: For each the probability that it was placed there.
        source: ``agent``, ``top-line`` (the user's memory), ``trending``, or ``interleaved``.
        teams: Of two systems that share the answer, the one that named each query.
    """

    recommendation_id: str
    user_id: str
    ts: datetime  # UTC
    queries: tuple[str, ...]
    propensities: tuple[float, ...]
    source: str
    policy: str
    version: int | None = None
    experiment: str | None = None
    arm: str | None = None
    latency_ms: float | None = None
    teams: tuple[str, ...] = ()


def new_recommendation_id() -> str:
    """An id that nobody can guess and no other process gives."""
    return secrets.token_urlsafe(15)


def shown_entry(answers: Iterable[ShownAnswer]) -> dict[str, Any]:
    """An entry of the journal (`shop.journal`)."""
    return {ENTRY: [{**asdict(answer), "ts": answer.ts.isoformat()} for answer in answers]}


def record_shown(shop: Shop, answers: Sequence[ShownAnswer]) -> None:
    """Record answers of a shop that is open for reading or writing.

    They go into its journal, and with the next look at it into the table.

    Raises:
        QAgentError: the shop's folder cannot be written.
    """
    writer = JournalWriter(shop.path)
    try:
        writer.append([shown_entry(answers)])
    finally:
        writer.close()


def prune_shown(shop: Shop, before: datetime) -> int:
    """Delete what was shown before a moment, as the table grows with every answer.

    Args:
        shop: Open for writing.
        before: In UTC.

    Returns:
        The number of answers that were deleted.
    """
    with shop.transaction() as connection:
        deleted = connection.execute(
            "DELETE FROM recommendations WHERE ts < ? RETURNING recommendation_id", [before]
        ).fetchall()
    return len(set(deleted))


def store_shown(shop: Shop, values: Sequence[Mapping[str, Any]]) -> int:
    """Store the answers of entries; returns their number. Snapshots hold none."""
    if shop.is_snapshot:
        return 0
    answers = [answer for answer in map(_answer, values) if answer is not None]
    append_rows(shop.connection, "recommendations", chain.from_iterable(map(_rows, answers)))
    return len(answers)


def _rows(answer: ShownAnswer) -> Iterator[tuple[Any, ...]]:
    """An answer's rows of the table."""
    arms = answer.teams or (answer.arm,) * len(answer.queries)
    lines = [*enumerate(zip(answer.queries, answer.propensities, arms, strict=True), 1)]
    # Nothing to show: that is told, too.
    for position, (query, propensity, arm) in lines or [(0, ("", 1.0, answer.arm))]:
        yield (
            *(answer.recommendation_id, answer.user_id, answer.ts, position),
            *(query, query_key(query), propensity),
            *(answer.source, answer.policy, answer.version),
            *(answer.experiment, arm, None, answer.latency_ms),
        )


def _answer(value: Mapping[str, Any]) -> ShownAnswer | None:
    """The answer of an entry; None for what no server has written."""
    try:
        answer = ShownAnswer(
            **{
                **value,
                "ts": datetime.fromisoformat(value["ts"]),
                "queries": tuple(map(str, value["queries"])),
                "propensities": tuple(map(float, value["propensities"])),
                "teams": tuple(map(str, value.get("teams", ()))),
            }
        )
    except (KeyError, TypeError, ValueError):
        return None
    texts = (answer.recommendation_id, answer.user_id, answer.source, answer.policy)
    sizes = {len(answer.queries), len(answer.propensities), len(answer.teams or answer.queries)}
    is_whole = len(sizes) == 1 and all(answer.queries)
    return answer if is_whole and all(isinstance(text, str) for text in texts) else None
