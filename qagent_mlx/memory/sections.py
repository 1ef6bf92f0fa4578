"""The lines of each section of a profile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..protocol.escape import safe
from ..protocol.marks import ACTIVITY, AGES, OUTCOMES, POPULARITY, PROBABILITIES, Mark
from ..types import Line
from .user_state import UserState


def _query_lines(
    candidates: Mapping[str, np.ndarray], chances: np.ndarray, keep: int, typed: Mapping[str, str]
) -> list[Line]:
    """Lines with a query: the user's own, neighbours, and trending ones, likeliest first.

    A query that comes from several sides is one line, in the section that says most of it.
    The last mark, beside the reference, says how likely the query is wanted next. ``typed`` has
    the user's own queries by their keys, for the reasons.
    """
    order = np.argsort(-chances, kind="stable")[:keep]
    made: list[Line] = []
    for chance, query, back, last, age, had_age, next_score, source, share, longer, success in zip(
        chances[order].tolist(), *(candidates[name][order].tolist() for name in _SHOWN), strict=True
    ):
        own, follows, trends = back == back, next_score == next_score, share == share  # or NaN
        section, most = "latest", 1.0 if own else 0.0
        if follows and next_score > most:
            section, most = "neighbours", next_score
        if trends and share > most:
            section, most = "trending", share
        marks, why = list[str](), ""
        if own:
            marks += [OUTCOMES[int(last)], AGES.word(age)]
            why = f"you searched it {_ago(age)}" + (
                " and found nothing that suited" if last == 0 else ""
            )
        elif had_age == had_age:
            marks += [Mark.HAD, AGES.word(had_age)]
        if section == "neighbours":
            why = _because(source, typed) + (f"; {why}" if why else "")
        if trends and (popularity := POPULARITY.word(share)):
            marks.append(popularity)
            growth = share / max(longer, 1e-9)
            if growth >= 1.5:
                marks.append(Mark.RISING)
            elif growth <= 0.6:
                marks.append(Mark.FADING)
        if section == "trending":
            why = f"{share:.1%} of the shop's searches just now"
        if success < 0.2:
            marks.append(Mark.POOR)
        word = PROBABILITIES.word(chance)
        text = " ".join([safe(query), *marks, *([word] if word else [])])
        # Sums differ in their last digits from run to run; what is equal must stay equal.
        made.append(Line(section, text, round(chance, 12), query=query, reason=why))
    return sorted(made, key=lambda line: (-line.score, line.text))


# What a line tells of a candidate.
_SHOWN = (
    "query",
    "back",
    "last",
    "age",
    "had_age",
    "next_score",
    "source",
    "share",
    "longer_share",
    "success",
)


def _graph_lines(nodes: Sequence[Sequence[Any]]) -> list[Line]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    limits = {"category": 3, "brand": 3, "price": 1, "attribute": 2}
    for kind, node, _, share in nodes:
        if kind in limits and len(by_kind[kind]) < limits[kind] and share >= 0.1:
            by_kind[kind].append(safe(node))
    parts = [" ".join(by_kind[kind]) for kind in limits if by_kind[kind]]
    return [Line("graph", f"{Mark.LIKES} " + ", ".join(parts).lower(), 0.35)] if parts else []


_WORDINGS = {
    "brand": Mark.NAMES_BRANDS,
    "attribute": Mark.NAMES_DETAILS,
    "plain": Mark.SHORT_QUERIES,
}


def _identity_lines(state: UserState) -> list[Line]:
    if not state.identity:
        return [Line("identity", str(Mark.NEW_USER), 0.2)]
    events, _, purchases, away, gap, gaps = state.identity[0]
    parts = [ACTIVITY.word(events)]
    kind, share = max(((k, s) for k, s in state.wording), key=lambda item: item[1], default=("", 0))
    if share >= 0.5:
        parts.append(_WORDINGS[kind])
    brands = [(node, share) for kind, node, _, share in state.nodes if kind == "brand"]
    loyal = next((node for node, share in brands if share >= 0.6 and purchases >= 2), None)
    if loyal:
        parts.append(f"{Mark.LOYAL} {safe(loyal).lower()}")
    if gaps >= 2:
        parts.append(f"{Mark.BUYS_EVERY} {AGES.word(gap)}")
    parts.append(f"{Mark.AWAY} {AGES.word(away)}")
    return [Line("identity", " ".join(parts), 0.25)]


def _seen_lines(products: Sequence[Sequence[Any]]) -> list[Line]:
    """What the last session looked at without searching for it."""
    made: list[Line] = []
    for _, bought, title, _leaf, age, in_last, engaged in products:
        if in_last and not engaged and not bought and len(made) < 1:
            shown = " ".join(safe(title).lower().split()[:6])
            made.append(Line("latest", f"{Mark.VIEWED} {shown} {AGES.word(age)}", 0.06))
    return made


def _context(state: UserState) -> dict[str, Any]:
    """What the search tool needs to mark products for this user, at this moment."""
    shares: dict[str, dict[str, float]] = {"brand": {}, "price": {}, "attribute": {}}
    for kind, node, _, share in state.nodes:
        if kind in shares:
            shares[kind][node.lower()] = round(share, 3)
    return {
        "brands": shares["brand"],
        "prices": shares["price"],
        "attributes": shares["attribute"],
        "bought": [p[0] for p in state.products if p[1]],
        "seen": [p[0] for p in state.products if not p[1]],
    }


def _ago(days: float) -> str:
    if days < 1 / 24:
        return "just now"
    if days < 1.5:
        return f"{days * 24:.0f} hours ago"
    return f"{days:.0f} days ago"


def _because(source: str | None, typed: Mapping[str, str]) -> str:
    kind, _, name = (source or "").partition(":")
    query = f"“{typed[name]}”" if name in typed else "what you searched"
    return {
        "c": f"what people look for after {name}",
        "q": f"what people search after {query}",
        "p": "what people search after a product that you chose",
        "r": f"what worked for people whose search for {query} had led nowhere",
    }.get(kind, "like you, others searched it")
