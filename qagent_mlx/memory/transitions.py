"""What one user's events tell the shop: searches that led somewhere, and what followed what.

Nothing of it hangs on other users, so new events of some replace the traces of these alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .event_log import PURCHASE, Event, ProductFacts, time_of
from .user_state import PastSearch, category_of, leaf_of, searches

APART = 3  # a success leads to the next ones, so many at most
WITHIN = 45 * 86400_000_000  # microseconds until then, at most
FURTHER = 12  # how many searches after one that led nowhere may show how its session went on
WHOLE = 6  # the closeness of the next success; in sixths, so that sums are exact in any order

_DAY = 86400e6  # microseconds


@dataclass(slots=True)
class Transitions:
    """Rows of the tables of the same names (see `tables.TRACES`)."""

    outcomes: list[tuple[Any, ...]] = field(default_factory=list)
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    cycles: list[tuple[Any, ...]] = field(default_factory=list)
    returns: list[tuple[Any, ...]] = field(default_factory=list)


def transitions_of(events: Sequence[Event], goods: Mapping[str, ProductFacts]) -> Transitions:
    """The traces of one user.

    Args:
        events: All of the user's, the oldest first.
        goods: Of the products of the events.
    """
    made = Transitions()
    if not events:
        return made
    asked = searches(events)
    user = events[0].user_id
    for search in asked:
        if search.known is not None:
            event = search.event
            made.outcomes.append(
                (
                    event.event_id,
                    user,
                    event.session_id,
                    time_of(event.at),
                    event.query_key,
                    time_of(search.known),
                    search.first_product,
                    search.product_id,
                )
            )
    known = sorted(
        (s for s in asked if s.known is not None),
        key=lambda s: (s.known, s.event.at, s.event.event_id),
    )
    made.steps = [(user, *step) for step in (*_after_success(known, goods), *_after_none(asked))]
    made.cycles = [(user, *cycle) for cycle in _cycles(events, goods)]
    made.returns = [(user, *one) for one in _returns(known, goods)]
    return made


def _after_success(
    known: Sequence[PastSearch], goods: Mapping[str, ProductFacts]
) -> list[tuple[Any, ...]]:
    """Having done ``source``, a user searched with success, one to three searches later."""
    made = []
    for n, before in enumerate(known):
        one = before.event
        leaf = leaf_of(before.product_id, goods)
        for apart in range(1, APART + 1):
            if n + apart >= len(known):
                break
            after = known[n + apart]
            other = after.event
            if other.session_id == one.session_id or other.at >= one.at + WITHIN:
                continue
            delay = (other.at - one.at) / _DAY
            step = (other.query_key, time_of(after.known or 0), WHOLE // apart, delay)
            if leaf:
                made.append((f"c:{leaf}", *step))
            if one.query_key != other.query_key:
                made.append((f"q:{one.query_key}", *step))
                made.append((f"p:{before.product_id}", *step))
    return made


def _after_none(asked: Sequence[PastSearch]) -> list[tuple[Any, ...]]:
    """What led nowhere, and how the same session went on."""
    sessions: dict[int, list[PastSearch]] = defaultdict(list)
    for search in asked:
        sessions[search.event.session_id].append(search)
    made = []
    for visit in sessions.values():
        for n, before in enumerate(visit):
            for after in visit[n + 1 : n + 1 + FURTHER]:
                if (
                    after.known is not None
                    and after.event.query_key != before.event.query_key
                    and (before.known is None or before.known > after.known)
                ):
                    made.append(
                        (
                            f"r:{before.event.query_key}",
                            after.event.query_key,
                            time_of(after.known),
                            WHOLE,
                            (after.event.at - before.event.at) / _DAY,
                        )
                    )
    return made


def _cycles(events: Sequence[Event], goods: Mapping[str, ProductFacts]) -> list[tuple[Any, ...]]:
    """How long after a purchase the user bought something of the same category again."""
    visits: dict[str, dict[int, int]] = defaultdict(dict)
    for event in events:
        if event.type == PURCHASE and (leaf := leaf_of(event.product_id, goods)):
            visits[leaf].setdefault(event.session_id, event.at)
    made: list[tuple[Any, ...]] = []
    for leaf, sessions in visits.items():
        times = sorted(sessions.values())
        made.append((leaf, time_of(times[0]), None))
        made += [(leaf, time_of(now), (now - last) / _DAY) for last, now in pairwise(times)]
    return made


def _returns(
    known: Sequence[PastSearch], goods: Mapping[str, ProductFacts]
) -> list[tuple[Any, ...]]:
    """Of each success but those of the last such session: what the user came back for.

    That is the first success of the next session that had one.
    """
    visits: dict[int, list[PastSearch]] = {}
    for search in known:
        visits.setdefault(search.event.session_id, []).append(search)
    made = []
    for now, then in pairwise(visits.values()):
        back = then[0]
        leaf = leaf_of(back.first_product, goods)
        for before in now:
            made.append(
                (
                    before.event.query_key,
                    time_of(back.known or 0),
                    before.event.query_key == back.event.query_key,
                    category_of(before, goods),
                    leaf,
                    (back.event.at - before.event.at) / _DAY,
                )
            )
    return made
