"""What one user's answer may hold: the shop's rules, and what the user wants no more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ..shop.shop import Shop
from ..types import Recommendation, Slate
from ..utils.stamps import utc_now
from ..utils.text import query_key, words
from .rules import NO_RULES, Rule, ShopRules, is_within, rules_of
from .wishes import wishes_of

PINNED = "pinned by the shop"
UNQUOTED = "from what you looked for"
_QUOTED = re.compile("“([^”]*)”")  # queries in reasons
CategoryOf = Callable[[str], str]  # a product's category path, empty for none


@dataclass(frozen=True, slots=True)
class Limits:
    """The rules that hold for an answer. It can be sent to other processes."""

    rules: ShopRules = NO_RULES
    unwanted: frozenset[str] = frozenset()  # query_keys that the user wants no more
    unwanted_categories: tuple[str, ...] = ()

    def allows(self, query: str) -> bool:
        """Whether a query may be recommended."""
        is_wanted = not self.unwanted or query_key(query) not in self.unwanted
        return is_wanted and self.rules.allows(query)

    def trim(self, item: Recommendation, category_of: CategoryOf) -> Recommendation | None:
        """A query with the products that it may show; None if it is not to be recommended."""
        if self is NO_LIMITS:
            return item if item.products else None
        products = tuple(p for p in item.products if self.rules.shows(item.query, p))
        if not products:
            return None
        path = category_of(products[0])
        if any(is_within(path, category) for category in self.unwanted_categories):
            return None
        if not self.rules.allows_category(path):
            return None
        reason = item.reason
        if not all(map(self.allows, _QUOTED.findall(reason))):
            reason = UNQUOTED  # it quotes what is not to be read here
        return replace(item, products=products, reason=reason)

    def pinned(self, slate: Slate, category_of: CategoryOf) -> list[tuple[int, str]]:
        """The positions and queries that are pinned in an answer, in order of position."""
        into = [category_of(item.products[0]) for item in slate if item.products]
        return [
            (pin.position, pin.query)
            for pin in self.rules.pins
            if self.allows(pin.query)
            and (not pin.category or any(is_within(path, pin.category) for path in into))
        ]


NO_LIMITS = Limits()


class LimitsBook:
    """The rules of a shop and the wishes of its users, as the shop holds them when they are read.

    Args:
        shop: Its wishes are read for each answer, its rules once.

    Attributes:
        has_wishes: Whether somebody has any; whoever stores one sets it.
    """

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._rules = rules_of(shop)
        self.has_wishes = bool(wishes_of(shop))
        self._current = NO_RULES
        self._good_from, self._good_until = datetime.max, datetime.min

    def rules_at(self, moment: datetime) -> ShopRules:
        """The rules that hold at a moment: the same object until another one holds or ends."""
        if not self._good_from <= moment < self._good_until:
            changes = sorted({*_changes(self._rules), datetime.min, datetime.max})
            self._good_until = next((t for t in changes if t > moment), datetime.max)
            self._good_from = max(t for t in changes if t <= moment)
            self._current = ShopRules.at(self._rules, moment)
        return self._current

    @property
    def good_until(self) -> datetime:
        """When other rules hold than those that `rules_at` gave last."""
        return self._good_until

    def limits(self, users: Sequence[str], moment: datetime | None = None) -> list[Limits]:
        """What the answers of users may hold at a moment; by default now (`shop_time`)."""
        if not (self._rules or self.has_wishes):
            return [NO_LIMITS] * len(users)
        rules = self.rules_at(moment or shop_time(self._shop))
        wishes = wishes_of(self._shop, list(users)) if self.has_wishes else []
        return [
            Limits(
                rules,
                frozenset(query_key(w.query) for w in wishes if w.user_id == user and w.query),
                tuple(w.category for w in wishes if w.user_id == user and w.category),
            )
            for user in users
        ]


def _changes(rules: Iterable[Rule]) -> Iterator[datetime]:
    """The moments at which rules begin to hold or end."""
    for rule in rules:
        yield from (moment for moment in (rule.starts, rule.ends) if moment is not None)


def with_pins(slate: Slate, pins: Sequence[tuple[int, Recommendation]], size: int) -> Slate:
    """A slate with queries put at their positions; what it held of them moves there."""
    pinned = {frozenset(words(item.query)) for _, item in pins}
    items = [item for item in slate if frozenset(words(item.query)) not in pinned]
    for position, item in pins:
        items.insert(position - 1, item)
    return tuple(items[:size])


def shop_time(shop: Shop) -> datetime:
    """Now, in UTC; in a simulated shop, which lives in a time of its own, the end of its log."""
    if shop.config.simulated is not None:
        return shop.end_of_log()
    return utc_now()
