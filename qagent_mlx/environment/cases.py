"""Cases: moments of the log at which a query could have been recommended.

The first search of a session that led to an engagement makes a case; its moment is the
session's start. So a session in which somebody tried one query in vain and then another
with success asks for the second one, which is what the chain of retrieval is for.

A recommender that never looks at products knows nothing of success: it learns what people
type. ``SplitConfig.learn_from = "searches"`` makes such training cases; what is tested stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import duckdb

from ..errors import QAgentError
from ..memory.sessions import SuccessfulSession, first_searches, successful_sessions
from ..types import Case, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LEARN_FROM = ("successes", "searches")


@dataclass(frozen=True)
class SplitConfig:
    """How cases are chosen and split by time."""

    min_history: int = 1  # events before the moment; 0 lets new users in
    test_share: float = 0.2  # the last part of the cases, by time
    validation_share: float = 0.05  # the part before that
    test_from: str = ""  # ISO time; cuts there instead of by share
    # "searches": training and validation ask for each session's first search, whatever came of it
    learn_from: str = "successes"


def build_cases(
    connection: duckdb.DuckDBPyConnection,
    config: SplitConfig | None = None,
    after: datetime | None = None,
) -> list[Case]:
    """All cases from ``after`` on, in order of time, each with its split.

    Args:
        connection: A shop's database.
        config: Who counts and where to cut.
        after: The index's ``clicks_until``: earlier cases would see what it learned.

    Raises:
        QAgentError: no search in the log led to an engagement, a split would be empty, or
            ``learn_from`` is unknown.
    """
    config = config or SplitConfig()
    if config.learn_from not in LEARN_FROM:
        raise QAgentError(f"learn_from is {' or '.join(LEARN_FROM)}, not {config.learn_from!r}")
    cases = _cases(successful_sessions(connection, after), config.min_history)
    if not cases:
        raise QAgentError(f"the log holds no case: {_why_none(connection)}")
    if config.test_from:
        try:
            cut = datetime.fromisoformat(config.test_from)
        except ValueError:
            raise QAgentError(
                f"test_from {config.test_from!r}: write it as 2011-10-12 or 2011-10-12T00:00"
            ) from None
        if cut.tzinfo is not None:
            cut = cut.astimezone(timezone.utc).replace(tzinfo=None)
        first_test = next((i for i, c in enumerate(cases) if c.as_of >= cut), len(cases))
    else:
        first_test = len(cases) - max(1, round(len(cases) * config.test_share))
    first_validation = first_test - max(1, round(len(cases) * config.validation_share))
    if first_validation < 1 or first_test >= len(cases):
        if config.test_from and len(cases) > 2:
            raise QAgentError(
                f"test_from {config.test_from} leaves no case to test or to train on: the "
                f"{len(cases)} cases are from {cases[0].as_of:%Y-%m-%d} to "
                f"{cases[-1].as_of:%Y-%m-%d}; choose a moment between"
            )
        raise QAgentError(
            f"{len(cases)} cases are too few for a train, validation and test split; "
            "ingest a longer log, or lower the shares of validation and test"
        )
    if config.learn_from == "searches":
        # The same cuts in time, so that nothing of the test is learned from.
        validation, test = cases[first_validation].as_of, cases[first_test].as_of
        typed = _cases(first_searches(connection, after, before=test), config.min_history)
        cases = [*typed, *cases[first_test:]]
        first_validation = sum(c.as_of < validation for c in typed)
        first_test = len(typed)
    return [
        replace(c, case_id=i, split=SPLITS[(i >= first_validation) + (i >= first_test)])
        for i, c in enumerate(cases)
    ]


def _cases(found: Sequence[SuccessfulSession], min_history: int) -> list[Case]:
    """Cases of those with some history, not numbered yet."""
    return [
        Case(
            case_id=0,
            user_id=s.user_id,
            as_of=s.start,
            query=s.query,
            query_key=s.query_key,
            products=s.products,
            history=s.history,
        )
        for s in found
        if s.history >= min_history
    ]


def _why_none(connection: duckdb.DuckDBPyConnection) -> str:
    """What the log lacks, and the remedy."""
    searches, engaged = connection.execute(
        """SELECT count(*) FILTER (type = 'search'),
               count(*) FILTER (type IN ('click', 'cart', 'purchase')) FROM events"""
    ).fetchall()[0]
    if not searches and engaged:
        return "it has no searches; ingest them, or make some with: qagent ingest derive"
    return (
        "no search by a known user led to a click, cart or purchase; "
        "ingest events of both kinds with user ids"
    )


def of_split(cases: Sequence[Case], split: str) -> list[Case]:
    """The cases of one split."""
    return [c for c in cases if c.split == split]
