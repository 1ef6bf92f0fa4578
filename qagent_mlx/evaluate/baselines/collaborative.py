"""Baselines that learn from what other users searched and chose.

All are point-in-time: cases are answered in order of time, and counts grow along with it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from ..metrics import Ranking
from .search_log import EngagementLog, SearchLog, ranking, top_queries

if TYPE_CHECKING:
    from ...environment.environment import Example

RECENT = 10  # how many of a user's last products count
FADE = 0.85  # how much less each earlier one of them counts
NEIGHBOURS = 30  # products alike that are kept of each
KEPT = 30  # how many of a user's products new ones are paired with
ALPHA = 5.0  # smoothing of Swing, as in arXiv:2010.05525
SWING_USERS = 200  # of one product, the last ones


class CategoryPopular:
    """What is searched most for the category that the user engages with most.

    A query belongs to the categories of the products that were chosen under it.
    """

    name = "category-popular"

    def __init__(self, log: SearchLog, engaged: EngagementLog) -> None:
        self._log, self._engaged = log, engaged

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        log, engaged = self._log, self._engaged
        made = [Ranking(())] * len(examples)
        queries: dict[int, np.ndarray] = {}
        liked: defaultdict[str, Counter[int]] = defaultdict(Counter)
        done = 0
        for i, moment, counts in log.sweep(examples):
            end = engaged.before(moment)
            for place in range(done, end):
                category = int(engaged.categories[engaged.products[place]])
                if category < 0:
                    continue
                liked[engaged.users[place]][category] += engaged.weights[place]
                if engaged.queries[place] >= 0:
                    if category not in queries:
                        queries[category] = np.zeros(len(log.spellings))
                    queries[category][engaged.queries[place]] += 1
            done = end
            mine = liked.get(examples[i].case.user_id)
            scores = None
            if mine:
                top = min(mine, key=lambda c: (-mine[c], c))
                scores = queries.get(top)
            made[i] = ranking(log, top_queries(k, counts, scores))
        return made


class Markov:
    """What followed the user's last query, whoever searched it; a first-order chain."""

    name = "markov"

    def __init__(self, log: SearchLog) -> None:
        self._log = log

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        log = self._log
        made = [Ranking(())] * len(examples)
        after: defaultdict[int, Counter[int]] = defaultdict(Counter)
        last: dict[int, int] = {}
        done = 0
        for i, moment, counts in log.sweep(examples):
            end = log.before(moment)
            for user, query in zip(
                log.users[done:end].tolist(), log.queries[done:end].tolist(), strict=True
            ):
                if user in last:
                    after[last[user]][query] += 1
                last[user] = query
            done = end
            scores = np.zeros(len(log.spellings))
            source = last.get(log.user_numbers.get(examples[i].case.user_id, -1))
            if source is not None:
                for query, count in after[source].items():
                    scores[query] = count
            made[i] = ranking(log, top_queries(k, counts, scores))
        return made


class _ByProducts:
    """Products like those of the user, and the queries under which they are chosen."""

    name = ""

    def __init__(self, log: SearchLog, engaged: EngagementLog) -> None:
        self._log, self._engaged = log, engaged

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        log, engaged = self._log, self._engaged
        made = [Ranking(())] * len(examples)
        under: defaultdict[int, Counter[int]] = defaultdict(Counter)  # product -> its queries
        baskets: defaultdict[str, dict[int, None]] = defaultdict(dict)
        self._begin()
        done = 0
        for i, moment, counts in log.sweep(examples):
            end = engaged.before(moment)
            for place in range(done, end):
                product, query = int(engaged.products[place]), int(engaged.queries[place])
                if query >= 0:
                    under[product][query] += 1
                basket = baskets[engaged.users[place]]
                if product not in basket:
                    self._learn(engaged.users[place], list(basket), product)
                basket[product] = basket.pop(product, None)
            done = end
            self._turn(moment)
            scores = np.zeros(len(log.spellings))
            mine = list(reversed(baskets.get(examples[i].case.user_id, {})))
            for place, product in enumerate(mine[:RECENT]):
                for other, likeness in self._alike(product):
                    if other in mine:
                        continue
                    total = under[other].total()
                    for query, count in under[other].items():
                        scores[query] += FADE**place * likeness * count / total
            made[i] = ranking(log, top_queries(k, counts, np.round(scores, 12)))
        return made

    def _begin(self) -> None:
        raise NotImplementedError

    def _learn(self, user: str, basket: list[int], product: int) -> None:
        """Somebody chose a product for the first time."""
        raise NotImplementedError

    def _turn(self, moment: np.datetime64) -> None:
        """All that came before a moment has been learned."""

    def _alike(self, product: int) -> list[tuple[int, float]]:
        """The products most like one, the best first."""
        raise NotImplementedError


def _nearest(found: dict[int, float]) -> list[tuple[int, float]]:
    return sorted(found.items(), key=lambda item: (-round(item[1], 12), item[0]))[:NEIGHBOURS]


class ItemCF(_ByProducts):
    """Item-based collaborative filtering (cosine; active users count less), then queries."""

    name = "item-cf"

    def _begin(self) -> None:
        self._together: defaultdict[int, dict[int, float]] = defaultdict(dict)
        self._count: Counter[int] = Counter()

    def _learn(self, user: str, basket: list[int], product: int) -> None:
        self._count[product] += 1
        weight = 1.0 / float(np.log(2.0 + len(basket)))
        for other in basket[-KEPT:]:
            for a, b in ((product, other), (other, product)):
                self._together[a][b] = self._together[a].get(b, 0.0) + weight

    def _alike(self, product: int) -> list[tuple[int, float]]:
        count = self._count
        return _nearest(
            {
                other: weight / float(np.sqrt(count[product] * count[other]))
                for other, weight in self._together.get(product, {}).items()
            }
        )


class Swing(_ByProducts):
    """Swing (arXiv:2010.05525): two products are alike when pairs of users chose both and
    little else in common; then queries. What it knows is that of the start of the day.
    """

    name = "swing"

    def _begin(self) -> None:
        self._baskets: defaultdict[str, set[int]] = defaultdict(set)
        self._users: defaultdict[int, list[str]] = defaultdict(list)
        self._pending: list[tuple[str, int]] = []
        self._day: np.datetime64 | None = None
        self._known: dict[int, list[tuple[int, float]]] = {}

    def _learn(self, user: str, basket: list[int], product: int) -> None:
        self._pending.append((user, product))

    def _turn(self, moment: np.datetime64) -> None:
        day = moment.astype("datetime64[D]")
        if self._day is not None and day == self._day:
            return
        # What was pending came before this moment; likeness is computed anew a day.
        for user, product in self._pending:
            self._baskets[user].add(product)
            self._users[product].append(user)
        self._pending, self._day, self._known = [], day, {}

    def _alike(self, product: int) -> list[tuple[int, float]]:
        if product not in self._known:
            users = [u for u in self._users.get(product, []) if len(self._baskets[u]) > 1]
            found: defaultdict[int, float] = defaultdict(float)
            weight = {u: 1.0 / float(np.sqrt(len(self._baskets[u]))) for u in users}
            for u, v in combinations(users[-SWING_USERS:], 2):
                common = self._baskets[u] & self._baskets[v]
                if len(common) > 1:
                    for other in common:
                        if other != product:
                            found[other] += weight[u] * weight[v] / (ALPHA + len(common))
            self._known[product] = _nearest(found)
        return self._known[product]
