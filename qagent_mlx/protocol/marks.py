"""The words in which profiles and search results describe users, queries and products.

Marks are the agent's vocabulary and not the shop's: they mean the same in every shop. Memory
writes them into the lines of a profile, the search tool behind the products that it shows, and
delexicalised demonstrations keep them while every other word is replaced.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum


class Mark(str, Enum):
    """A word or fixed phrase of a profile line or a search result."""

    # How long ago something happened (`AGES`)
    NOW = "now"
    TODAY = "today"
    DAYS = "days"
    WEEK = "week"
    WEEKS = "weeks"
    MONTH = "month"
    OLD = "old"
    # What came of the user's last search of a query (`OUTCOMES`)
    UNMET = "unmet"
    LIKED = "liked"
    CARTED = "carted"
    BOUGHT = "bought"  # also: a product that the user has bought
    # A query of a profile
    HAD = "had"  # the user bought something of its category
    WARM = "warm"  # its share of the shop's searches just now (`POPULARITY`)
    HOT = "hot"
    TOP = "top"
    RISING = "rising"  # its share against that of the longer window
    FADING = "fading"
    POOR = "poor"  # few searches of it led to an engagement
    MAYBE = "maybe"  # how probably the user searches it next (`PROBABILITIES`)
    LIKELY = "likely"
    SURELY = "surely"
    # The user
    LIKES = "likes"
    NEXT = "next"  # what people with the same past came back for
    NEW_USER = "new user"
    LIGHT = "light"  # events so far (`ACTIVITY`)
    REGULAR = "regular"
    HEAVY = "heavy"
    NAMES_BRANDS = "names brands"  # the usual wording of the user's queries
    NAMES_DETAILS = "names details"
    SHORT_QUERIES = "short queries"
    LOYAL = "loyal"
    BUYS_EVERY = "buys every"
    AWAY = "away"
    VIEWED = "viewed"
    # A product of a search result
    CHEAP = "$"  # its price band within its category (`shop.price_bands`)
    MIDDLE = "$$"
    DEAR = "$$$"
    FITS = "fits"  # the user's usual price band
    BRAND = "brand"  # a brand that the user has chosen before
    SEEN = "seen"
    CHOSEN = "chosen"  # most who asked the same before engaged with it
    OFTEN = "often"  # many did
    OUT = "out"  # sold out
    # In place of lines
    NOTHING_KNOWN = "nothing known"
    NONE = "none"

    def __str__(self) -> str:
        return self.value


MARK_WORDS = frozenset(word for mark in Mark for word in mark.split())


@dataclass(frozen=True, slots=True)
class Scale:
    """Bins of a number with a word each: ``words[i]`` stands for values below ``limits[i]``,
    and the last word, one more than there are limits, for all others."""

    limits: tuple[float, ...]
    words: tuple[str, ...]

    def word(self, value: float) -> str:
        """The word of the bin that a value falls in."""
        return self.words[bisect_right(self.limits, value)]


AGES = Scale(  # days
    (0.1, 1.5, 4.0, 9.0, 18.0, 45.0),
    (Mark.NOW, Mark.TODAY, Mark.DAYS, Mark.WEEK, Mark.WEEKS, Mark.MONTH, Mark.OLD),
)
OUTCOMES = (Mark.UNMET, Mark.LIKED, Mark.CARTED, Mark.BOUGHT)
POPULARITY = Scale((0.004, 0.015, 0.04), ("", Mark.WARM, Mark.HOT, Mark.TOP))
PROBABILITIES = Scale((0.07, 0.15, 0.3), ("", Mark.MAYBE, Mark.LIKELY, Mark.SURELY))
ACTIVITY = Scale((12, 60), (Mark.LIGHT, Mark.REGULAR, Mark.HEAVY))
