"""The lines of each section of a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..protocol.escape import safe
from ..protocol.marks import ACTIVITY, AGES, OUTCOMES, POPULARITY, PROBABILITIES, Mark
from ..types import Line, UserContext
from ..utils.text import query_key, share_words
from .candidates import Candidates
from .repurchase import PRODUCT_DAYS
from .user_state import Interest, RecentProduct, UserState

TITLE_WORDS = 6  # of a product in a profile
BRANDED = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1))  # (rank of the brand, rank of the kind)
MAX_FILLED = 8  # queries up to which popular kinds of products fill up a profile
MAX_PRODUCTS = 8  # in a profile without queries of others

_GRAPH_LIMITS = {"category": 3, "brand": 3, "price": 1, "attribute": 2}  # interests of each kind
_WORDINGS = {
    "brand": Mark.NAMES_BRANDS,
    "attribute": Mark.NAMES_DETAILS,
    "plain": Mark.SHORT_QUERIES,
}


class _Shown(NamedTuple):
    """What a line tells of a candidate: some columns of `Candidates`."""

    query: str
    recency_rank: float
    last_outcome: float
    age: float
    bought_age: float
    neighbour_score: float
    source: str | None
    trend_share: float
    longer_share: float
    success: float


def query_lines(
    candidates: Candidates, probabilities: np.ndarray, most: int, typed: Mapping[str, str]
) -> list[Line]:
    """Lines with a query: the user's own, neighbours and trending ones, the most probable first.

    At most ``most`` lines; ``typed`` are the user's own queries by their keys, for the reasons.
    """
    order = np.argsort(-probabilities, kind="stable")[:most]
    columns = (getattr(candidates, name)[order].tolist() for name in _Shown._fields)
    lines = []
    for probability, shown in zip(
        probabilities[order].tolist(), map(_Shown, *columns), strict=True
    ):
        section = _section(shown)
        text = " ".join([safe(shown.query), *_marks(shown, probability)])
        # Sums differ in their last digits from run to run; what is equal must stay equal.
        score = round(probability, 12)
        reason = _reason(shown, section, typed)
        lines.append(Line(section, text, score, query=shown.query, reason=reason))
    return sorted(lines, key=lambda line: (-line.score, line.text))


def _section(shown: _Shown) -> str:
    """The section that says most of a query that comes from several sides."""
    section, most = "latest", 1.0 if _known(shown.recency_rank) else 0.0
    if shown.neighbour_score > most:  # never where it is NaN
        section, most = "neighbours", shown.neighbour_score
    return "trending" if shown.trend_share > most else section


def _marks(shown: _Shown, probability: float) -> list[str]:
    """The words behind a query; the last, beside the reference, says how probable it is."""
    marks: list[str] = []
    if _known(shown.recency_rank):
        marks += [OUTCOMES[int(shown.last_outcome)], AGES.word(shown.age)]
    elif _known(shown.bought_age):
        marks += [Mark.HAD, AGES.word(shown.bought_age)]
    if _known(shown.trend_share) and (popularity := POPULARITY.word(shown.trend_share)):
        growth = shown.trend_share / max(shown.longer_share, 1e-9)
        marks.append(popularity)
        if growth >= 1.5:
            marks.append(Mark.RISING)
        elif growth <= 0.6:
            marks.append(Mark.FADING)
    if shown.success < 0.2:
        marks.append(Mark.POOR)
    if word := PROBABILITIES.word(probability):
        marks.append(word)
    return marks


def _reason(shown: _Shown, section: str, typed: Mapping[str, str]) -> str:
    """Why a query is recommended, for people."""
    own = ""
    if _known(shown.recency_rank):
        vain = " and found nothing that suited" if shown.last_outcome == 0 else ""
        own = f"you searched it {_ago(shown.age)}{vain}"
    if section == "trending":
        return f"{shown.trend_share:.1%} of the shop's searches just now"
    if section == "neighbours":
        return "; ".join(filter(None, (_because(shown.source, typed), own)))
    return own


def _known(value: float) -> bool:
    return value == value  # not NaN


def _ago(days: float) -> str:
    if days < 1 / 24:
        return "just now"
    if days < 1.5:
        hours = round(days * 24)
        return "an hour ago" if hours == 1 else f"{hours} hours ago"
    return f"{days:.0f} days ago"


def _because(source: str | None, typed: Mapping[str, str]) -> str:
    """Why others searched a query, by the kind of its source (`user_state.Source`)."""
    kind, _, name = (source or "").partition(":")
    query = f"“{typed[name]}”" if name in typed else "what you searched"
    return {
        "c": f"what people look for after {name}",
        "q": f"what people search after {query}",
        "p": "what people search after a product that you chose",
        "r": f"what worked for people whose search for {query} had led nowhere",
    }.get(kind, "like you, others searched it")


def graph_lines(interests: Sequence[Interest]) -> list[Line]:
    """One line with the user's main interests."""
    parts = []
    for kind, most in _GRAPH_LIMITS.items():
        names = [safe(i.name) for i in interests if i.kind == kind and i.share >= 0.1][:most]
        if names:
            parts.append(" ".join(names))
    return [Line("graph", f"{Mark.LIKES} " + ", ".join(parts).lower(), 0.35)] if parts else []


def identity_lines(state: UserState) -> list[Line]:
    """One line on who the user is: how active, how they search, whom they are loyal to."""
    activity = state.activity
    if activity is None:
        return [Line("identity", str(Mark.NEW_USER), 0.2)]
    parts: list[str] = [ACTIVITY.word(activity.events)]
    kind = next(iter(state.wording), "")  # the most frequent
    if state.wording.get(kind, 0.0) >= 0.5:
        parts.append(_WORDINGS[kind])
    if activity.purchases >= 2:
        brands = [i.name for i in state.interests if i.kind == "brand" and i.share >= 0.6]
        parts += [f"{Mark.LOYAL} {safe(name).lower()}" for name in brands[:1]]
    if activity.purchase_gaps >= 2:
        parts.append(f"{Mark.BUYS_EVERY} {AGES.word(activity.purchase_gap or 0.0)}")
    parts.append(f"{Mark.AWAY} {AGES.word(activity.days_away)}")
    return [Line("identity", " ".join(parts), 0.25)]


def viewed_lines(products: Sequence[RecentProduct]) -> list[Line]:
    """The last product that the last session viewed and did not engage with."""
    for product in products:
        if product.in_last_session and not product.engaged and not product.bought:
            return [_product_line(product, Mark.VIEWED, 0.06)]
    return []


def product_lines(products: Sequence[RecentProduct]) -> list[Line]:
    """The products that the user looked at, liked or bought, the latest first.

    They stand where a profile has no queries of others: an agent can write from their titles.
    """
    lines = []
    for number, product in enumerate(products[:MAX_PRODUCTS]):
        mark = Mark.LIKED if product.engaged else Mark.VIEWED
        score = 0.06 * 0.8**number
        lines.append(_product_line(product, Mark.BOUGHT if product.bought else mark, score))
    return lines


def need_lines(
    categories: Sequence[str], interests: Sequence[Interest], has_queries: bool
) -> list[Line]:
    """Lines for the kinds of products that people with the same past came back for.

    They stand where a profile has no queries of others, behind those of the user if it
    ``has_queries``. The first name a kind with a brand that the user likes (`BRANDED`), the others
    a kind alone, from which an agent can write other queries.
    """
    first = 0.05 if has_queries else 0.5
    kinds = [name.lower() for name in categories]
    brands = [i.name.lower() for i in interests if i.kind == "brand"][:2]
    branded = [
        f"{brands[brand]} {kinds[kind]}"
        for brand, kind in BRANDED
        if brand < len(brands) and kind < len(kinds) and not share_words(brands[brand], kinds[kind])
    ]
    scores = [first * (1.1 - 0.02 * number) for number in range(len(branded))]
    scores += [first * 0.8**number for number in range(len(kinds))]
    return [
        Line(
            "neighbours",
            f"{safe(query)} {Mark.NEXT}",
            score,
            query=query,
            reason="what people like you came back for",
        )
        for query, score in zip([*branded, *kinds], scores, strict=True)
    ]


def popular_lines(kinds: Sequence[str], others: Sequence[Line]) -> list[Line]:
    """Lines for the kinds of products that the shop's users go for.

    As many as bring the queries of a profile whose ``others`` are little to `MAX_FILLED`, each
    below all of these.
    """
    known = {query_key(line.query) for line in others if line.query is not None}
    lowest = min((line.score for line in others if line.query is not None), default=0.5)
    fresh = [kind for kind in kinds if query_key(kind) not in known]
    return [
        Line(
            "trending",
            safe(kind),
            lowest * 0.8**number,
            query=kind,
            reason="what people go for in this shop of late",
        )
        for number, kind in enumerate(fresh[: max(0, MAX_FILLED - len(known))], 1)
    ]


def _product_line(product: RecentProduct, mark: Mark, score: float) -> Line:
    title = " ".join(safe(product.title).lower().split()[:TITLE_WORDS])
    return Line("latest", f"{mark} {title} {AGES.word(product.age)}", score)


def search_context(state: UserState, just_bought: tuple[str, ...] = ()) -> UserContext:
    """What marks products for this user at this moment, and keeps queries from the slate."""
    shares: dict[str, dict[str, float]] = {"brand": {}, "price": {}, "attribute": {}}
    for interest in state.interests:
        if interest.kind in shares:
            shares[interest.kind][interest.name.lower()] = round(interest.share, 3)
    return UserContext(
        brands=shares["brand"],
        prices=shares["price"],
        attributes=shares["attribute"],
        bought=tuple(p.product_id for p in state.recent_products if p.bought),
        seen=tuple(p.product_id for p in state.recent_products if not p.bought),
        just_bought=just_bought,
        just_bought_products=tuple(
            p.product_id for p in state.engaged_products if p.bought and p.age < PRODUCT_DAYS
        ),
    )
