"""What one user's events teach the shop: searches with success, and what followed what.

Nothing here depends on other users, so new events of a user replace that user's transitions alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from .event_log import DAY, PURCHASE, Event, ProductFacts, from_microseconds
from .past_searches import PastSearch, category_key, leaf_of, past_searches

MAX_STEPS = 3  # a success leads to at most so many successes after it
MAX_RETRIES = 12  # searches after one without success that may show how its session went on
WITHIN_DAYS = 45  # from one success to the next
# How close a step's two searches are, in sixths, so that sums are exact in any order.
ADJACENT = 6


# The rows of the tables of the same names. ``known``: when the shop could first know of it.


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
    """A purchase of a category; ``gap``: days since the user's purchase before, if any."""

    user_id: str
    leaf: str
    known: datetime
    gap: float | None


class Return(NamedTuple):
    """Having searched with success, a user came back: with the ``same`` query or not."""

    user_id: str
    query_key: str | None
    known: datetime
    same: bool
    category: str | None  # what the user had engaged with (`category_key`)
    leaf: str | None  # what the user came back for
    delay: float  # days


class Transitions(NamedTuple):
    """All that one user's events teach, by table."""

    outcomes: list[Outcome]
    steps: list[Step]
    cycles: list[Cycle]
    returns: list[Return]


def transitions_of(events: Sequence[Event], products: Mapping[str, ProductFacts]) -> Transitions:
    """The transitions of one user.

    Args:
        events: All of the user's events, the oldest first.
        products: Facts of the products of the events.
    """
    if not events:
        return Transitions([], [], [], [])
    user = events[0].user_id
    searches = past_searches(events)
    successes = sorted(
        (search for search in searches if search.known is not None),
        key=lambda search: (search.known, search.event.at, search.event.event_id),
    )
    return Transitions(
        outcomes=[_outcome(search) for search in searches if search.known is not None],
        steps=[*_steps_after_success(user, successes, products), *_retries(user, searches)],
        cycles=list(_cycles(user, events, products)),
        returns=list(_returns(user, successes, products)),
    )


def _outcome(search: PastSearch) -> Outcome:
    event = search.event
    return Outcome(
        event.user_id,
        event.event_id,
        event.query_key,
        from_microseconds(search.known or 0),
        search.first_product,
        search.product_id,
    )


def _steps_after_success(
    user: str, successes: Sequence[PastSearch], products: Mapping[str, ProductFacts]
) -> Iterator[Step]:
    """From each success to the next ones, in other sessions."""
    for number, before in enumerate(successes):
        start = before.event
        leaf = leaf_of(before.product_id, products)
        for distance, after in enumerate(successes[number + 1 : number + 1 + MAX_STEPS], 1):
            end = after.event
            if end.session_id == start.session_id or end.at >= start.at + WITHIN_DAYS * DAY:
                continue
            known, delay = from_microseconds(after.known or 0), (end.at - start.at) / DAY
            sources = [f"c:{leaf}"] if leaf else []
            if start.query_key != end.query_key:
                sources += [f"q:{start.query_key}", f"p:{before.product_id}"]
            for source in sources:
                yield Step(user, source, end.query_key, known, ADJACENT // distance, delay)


def _retries(user: str, searches: Sequence[PastSearch]) -> Iterator[Step]:
    """From each search to the successes of its session that came before its own, if any."""
    sessions: dict[int, list[PastSearch]] = defaultdict(list)
    for search in searches:
        sessions[search.event.session_id].append(search)
    for session in sessions.values():
        for number, before in enumerate(session):
            for after in session[number + 1 : number + 1 + MAX_RETRIES]:
                if (
                    after.known is not None
                    and after.event.query_key != before.event.query_key
                    and (before.known is None or before.known > after.known)
                ):
                    yield Step(
                        user,
                        f"r:{before.event.query_key}",
                        after.event.query_key,
                        from_microseconds(after.known),
                        ADJACENT,
                        (after.event.at - before.event.at) / DAY,
                    )


def _cycles(
    user: str, events: Sequence[Event], products: Mapping[str, ProductFacts]
) -> Iterator[Cycle]:
    """The user's purchases by category, one a session."""
    purchases: dict[str, dict[int, int]] = defaultdict(dict)
    for event in events:
        if event.type == PURCHASE and (leaf := leaf_of(event.product_id, products)):
            purchases[leaf].setdefault(event.session_id, event.at)
    for leaf, sessions in purchases.items():
        times = sorted(sessions.values())
        yield Cycle(user, leaf, from_microseconds(times[0]), None)
        for earlier, later in pairwise(times):
            yield Cycle(user, leaf, from_microseconds(later), (later - earlier) / DAY)


def _returns(
    user: str, successes: Sequence[PastSearch], products: Mapping[str, ProductFacts]
) -> Iterator[Return]:
    """From each success to the first success of the next session that had one."""
    sessions: dict[int, list[PastSearch]] = {}
    for search in successes:
        sessions.setdefault(search.event.session_id, []).append(search)
    for session, next_session in pairwise(sessions.values()):
        back = next_session[0]
        for before in session:
            yield Return(
                user,
                before.event.query_key,
                from_microseconds(back.known or 0),
                before.event.query_key == back.event.query_key,
                category_key(before, products),
                leaf_of(back.first_product, products),
                (back.event.at - before.event.at) / DAY,
            )
