"""What one user's events teach the shop: searches with success, and what followed what.

Nothing here depends on other users, so new events of a user replace that user's transitions alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from .event_log import DAY, PURCHASE, History, PastSearch, from_microseconds

MAX_STEPS = 3  # a success leads to at most so many successes after it
MAX_RETRIES = 12  # searches after one without success that may show how its session went on
WITHIN_DAYS = 45  # from one success to the next
# How close a step's two searches are, in sixths, so that sums are exact in any order.
ADJACENT = 6


# The rows of the tables in `sql/create_transitions.sql`; ``known``: when the shop could first know
# of it.


class Outcome(NamedTuple):
    """A search that led to an engagement; ``product_id`` is of the strongest engagement."""

    user_id: str
    event_id: int
    query_key: str | None
    known: datetime
    first_product: str | None
    product_id: str | None


class Step(NamedTuple):
    """Having done ``source`` (`user_state.Source`), a user searched a query with success."""

    user_id: str
    source: str
    query_key: str | None
    known: datetime
    closeness: int
    delay: float  # days


class Cycle(NamedTuple):
    """A purchase of a category; ``gap``: days since the user's purchase before, if any.

    ``more``: days until the user bought more of it in the same session, if so.
    """

    user_id: str
    leaf: str
    known: datetime
    gap: float | None
    more: float | None


class Return(NamedTuple):
    """Having searched with success, a user came back: with the ``same`` query or not."""

    user_id: str
    query_key: str | None
    known: datetime
    same: bool
    category: str | None  # what the user had engaged with (`History.category_key`)
    leaf: str | None  # what the user came back for
    delay: float  # days


class Transitions(NamedTuple):
    """All that one user's events teach, by table."""

    outcomes: list[Outcome]
    steps: list[Step]
    cycles: list[Cycle]
    returns: list[Return]


def transitions_of(history: History) -> Transitions:
    """The transitions of one user who has events."""
    successes = list(history.successes)
    outcomes = [
        Outcome(
            history.user,
            search.event.event_id,
            search.event.query_key,
            from_microseconds(search.known),
            search.first_product,
            search.product_id,
        )
        for search in successes
        if search.event.query_key is not None
    ]
    successes.sort(key=lambda search: (search.known, search.event.at, search.event.event_id))
    steps = [*_steps_after_success(history, successes), *_retries(history)]
    returns = list(_returns(history, successes))
    return Transitions(outcomes, steps, list(_cycles(history)), returns)


def _steps_after_success(history: History, successes: Sequence[PastSearch]) -> Iterator[Step]:
    """From each success to the next ones, in other sessions."""
    for number, before in enumerate(successes):
        start = before.event
        leaf = history.leaf(before.product_id)
        for distance, after in enumerate(successes[number + 1 : number + 1 + MAX_STEPS], 1):
            end = after.event
            too_late = end.at >= start.at + WITHIN_DAYS * DAY
            if end.query_key is None or end.session_id == start.session_id or too_late:
                continue
            known, delay = from_microseconds(after.known), (end.at - start.at) / DAY
            sources = [f"c:{leaf}"] if leaf else []
            if start.query_key != end.query_key:
                sources += [f"q:{start.query_key}", f"p:{before.product_id}"]
            for source in sources:
                yield Step(history.user, source, end.query_key, known, ADJACENT // distance, delay)


def _retries(history: History) -> Iterator[Step]:
    """From each search to the successes of its session that came before its own, if any."""
    sessions: dict[int, list[PastSearch]] = defaultdict(list)
    for search in history.searches:
        sessions[search.event.session_id].append(search)
    for session in sessions.values():
        for number, before in enumerate(session):
            source = f"r:{before.event.query_key}"
            for after in session[number + 1 : number + 1 + MAX_RETRIES]:
                query, delay = after.event.query_key, (after.event.at - before.event.at) / DAY
                first = after.outcome and not (before.outcome and before.known <= after.known)
                if first and query != before.event.query_key:
                    known = from_microseconds(after.known)
                    yield Step(history.user, source, query, known, ADJACENT, delay)


def _cycles(history: History) -> Iterator[Cycle]:
    """The user's purchases by category, one a session."""
    purchases: dict[str, dict[int, int]] = defaultdict(dict)  # the first of each session
    more: dict[tuple[str, int], float] = {}
    for event in history.events:
        if event.type == PURCHASE and (leaf := history.leaf(event.product_id)):
            first = purchases[leaf].setdefault(event.session_id, event.at)
            if event.at > first:  # not of one order
                more.setdefault((leaf, first), (event.at - first) / DAY)
    for leaf, sessions in purchases.items():
        earlier: int | None = None
        for at in sorted(sessions.values()):
            gap = None if earlier is None else (at - earlier) / DAY
            yield Cycle(history.user, leaf, from_microseconds(at), gap, more.get((leaf, at)))
            earlier = at


def _returns(history: History, successes: Sequence[PastSearch]) -> Iterator[Return]:
    """From each success to the first success of the next session that had one."""
    sessions: dict[int, list[PastSearch]] = defaultdict(list)
    for search in successes:
        sessions[search.event.session_id].append(search)
    for session, next_session in pairwise(sessions.values()):
        back = next_session[0]
        for before in session:
            yield Return(
                history.user,
                before.event.query_key,
                from_microseconds(back.known),
                before.event.query_key == back.event.query_key is not None,
                history.category_key(before),
                history.leaf(back.first_product),
                (back.event.at - before.event.at) / DAY,
            )
