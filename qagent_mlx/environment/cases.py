"""Cases: moments of the log at which a query could have been recommended.

The first search of a session that led to an engagement makes a case; the case's moment is the
session's start. A session in which somebody tried one query in vain and then another with
success therefore asks for the second one, which is what the chain of retrieval is for.

A recommender that never looks at products learns what people type, not what succeeds.
``SplitConfig.learn_from = "searches"`` makes training and validation cases for it; the test
cases stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar, get_args

import duckdb

from ..errors import QAgentError
from ..memory.sessions import SuccessfulSession, successful_sessions
from ..types import Case, Split
from ..utils.settings import SettingError, check
from ..utils.text import parse_utc
from .config import SplitConfig

SPLITS: tuple[Split, ...] = get_args(Split)
T = TypeVar("T")


def build_cases(
    connection: duckdb.DuckDBPyConnection,
    config: SplitConfig | None = None,
    after: datetime | None = None,
) -> list[Case]:
    """Find all cases of a shop's log, in order of time, and split them.

    Cases before ``after`` are left out: it is the index's ``clicks_until``, because search has
    learned from what users did before that moment.
    """
    config = config or SplitConfig()
    check(config)
    sessions = successful_sessions(connection, after)
    cases = _cases(sessions, config.min_history)
    if sessions and not cases:
        raise SettingError(
            "min_history",
            f"{config.min_history} is too high: the log holds no case of a user with so many "
            f"events before it; min_history 0 lets its {len(sessions):,} sessions of new users in",
        )
    if not cases:
        raise QAgentError(f"the log holds no case: {_what_is_missing(connection)}")
    cases = _split(cases, config)
    if config.learn_from == "searches":
        before = start_of(cases, "test")
        searches = successful_sessions(connection, after, before, any_outcome=True)
        cases = learning_from(searches, cases, config)
    return cases


def build_untyped_cases(
    sessions: Sequence[SuccessfulSession], config: SplitConfig, where: str
) -> list[Case]:
    """The cases of a log that knows nothing of what was typed (`memory.engaged_sessions`).

    Their query is empty; what is known is what the user engaged with. ``where`` names the log.
    """
    cases = _cases(sessions, config.min_history)
    if not cases:
        raise QAgentError(
            f"{where} holds no case: no session of a user with {config.min_history} earlier events "
            "led to a click, cart or purchase; ingest a longer log"
        )
    return _split(cases, config)


def learning_from(
    sessions: Sequence[SuccessfulSession], cases: Sequence[Case], config: SplitConfig
) -> list[Case]:
    """The cases with others to learn from: those of sessions that began before the test.

    The cuts in time stay, so that nothing of the test is learned from; the last session is for
    validation where none lies between them.

    Raises:
        QAgentError: too few are left.
    """
    validation, test = (start_of(cases, split) for split in SPLITS[1:])
    learned = [case for case in _cases(sessions, config.min_history) if case.as_of < test]
    if len(learned) < 2:
        raise QAgentError(
            f"the scenario {config.scenario} leaves {len(learned)} cases to learn from; ingest a "
            "longer log, or choose another scenario"
        )
    cut = min(validation, learned[-1].as_of)
    learned = [replace(case, split=SPLITS[case.as_of >= cut]) for case in learned]
    return numbered([*learned, *of_split(cases, "test")])


def start_of(cases: Sequence[Case], split: str) -> datetime:
    """The moment of a split's first case."""
    return of_split(cases, split)[0].as_of


def numbered(cases: Sequence[Case]) -> list[Case]:
    """The cases with their places as ids."""
    return [replace(case, case_id=i) for i, case in enumerate(cases)]


def _split(cases: Sequence[Case], config: SplitConfig) -> list[Case]:
    validation, test = _split_positions(cases, config)
    return numbered(
        [
            replace(case, split=SPLITS[(i >= validation) + (i >= test)])
            for i, case in enumerate(cases)
        ]
    )


def _split_positions(cases: Sequence[Case], config: SplitConfig) -> tuple[int, int]:
    """Positions of the first validation case and of the first test case."""
    if config.test_from:
        try:
            moment = parse_utc(config.test_from)
        except (ValueError, OverflowError):
            reason = f"{config.test_from!r}: write it as 2011-10-12 or 2011-10-12T00:00"
            raise SettingError("test_from", reason) from None
        test = sum(case.as_of < moment for case in cases)
    else:
        test = len(cases) - max(1, round(len(cases) * config.test_share))
    validation = test - max(1, round(len(cases) * config.validation_share))
    if validation >= 1 and test < len(cases):
        return validation, test
    if config.test_from and len(cases) > 2:
        raise SettingError(
            "test_from",
            f"{config.test_from} leaves no case to test or to train on: the {len(cases)} cases "
            f"are from {cases[0].as_of:%Y-%m-%d} to {cases[-1].as_of:%Y-%m-%d}; choose a moment "
            "between",
        )
    raise QAgentError(
        f"{len(cases)} cases are too few for a train, validation and test split; "
        "ingest a longer log, or lower the shares of validation and test"
    )


def _cases(sessions: Sequence[SuccessfulSession], min_history: int) -> list[Case]:
    """A case for each session of a user with enough history, not numbered yet."""
    return [
        Case(0, s.user_id, s.start, s.query, s.query_key, s.products, s.history)
        for s in sessions
        if s.history >= min_history
    ]


def _what_is_missing(connection: duckdb.DuckDBPyConnection) -> str:
    """What a log without cases lacks, and the remedy."""
    searches, engagements, views = connection.execute(
        """SELECT count(*) FILTER (type = 'search'),
               count(*) FILTER (type IN ('click', 'cart', 'purchase')),
               count(*) FILTER (type = 'view') FROM events"""
    ).fetchall()[0]
    if not searches and engagements:
        return "it has no searches; ingest them, or derive some with: qagent ingest derive"
    problem = "no search by a known user led to a click, cart or purchase"
    if views and not engagements:
        command = "qagent ingest events FILE --value type:view=click"
        return f"{problem}; ingest those, or take what was viewed as clicked: {command}"
    return f"{problem}; ingest events of both kinds with user ids"


def of_split(cases: Sequence[Case], split: str) -> list[Case]:
    """The cases of one split."""
    return [case for case in cases if case.split == split]


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of some cases or examples, spread over all of them."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
