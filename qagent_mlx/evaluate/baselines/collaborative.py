"""Item-based collaborative filtering: similar products, and the queries they are chosen under."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from ...environment.environment import Example
from ...types import Case
from .point_in_time import EngagementBaseline
from .search_log import SweepState

RECENT = 10  # the user's last products that similar ones are sought for
FADE = 0.85  # weight of each product against the one after it
NEIGHBOURS = 30  # most similar products of each product
PAIRED = 30  # the user's products that a new one is paired with
ALPHA = 5.0  # smoothing of Swing, as in arXiv:2010.05525
SWING_USERS = 200  # the last users of a product that are paired


class _ItemBased(EngagementBaseline):
    """Products similar to the user's own, and the queries under which those are chosen."""

    def _start(self, examples: Sequence[Example]) -> None:
        super()._start(examples)
        self._queries: defaultdict[int, Counter[int]] = defaultdict(Counter)  # of each product
        self._baskets: defaultdict[str, dict[int, None]] = defaultdict(dict)  # latest last

    def _learn(self, index: int) -> None:
        log = self.engagements
        user, product, query = log.users[index], int(log.products[index]), int(log.queries[index])
        if query >= 0:
            self._queries[product][query] += 1
        basket = self._baskets[user]
        if product not in basket:
            self._learn_pair(user, list(basket), product)
        basket[product] = basket.pop(product, None)

    def _scores(self, case: Case, state: SweepState) -> np.ndarray:
        """The queries of products similar to the user's last ones."""
        scores = np.zeros(len(self.log.spellings))
        own = list(reversed(self._baskets.get(case.user_id, {})))
        for position, product in enumerate(own[:RECENT]):
            for other, similarity in self._similar(product):
                if other in own:
                    continue
                total = self._queries[other].total()
                for query, count in self._queries[other].items():
                    scores[query] += FADE**position * similarity * count / total
        return np.round(scores, 12)

    def _learn_pair(self, user: str, basket: list[int], product: int) -> None:
        """Learn that a user chose a product for the first time, after those of the basket."""
        raise NotImplementedError

    def _similar(self, product: int) -> list[tuple[int, float]]:
        """The most similar products with their similarity, the best first."""
        raise NotImplementedError


class ItemCF(_ItemBased):
    """Cosine of products over users, active users counting less (arXiv:1301.7363)."""

    name = "item-cf"

    def _start(self, examples: Sequence[Example]) -> None:
        super()._start(examples)
        self._together: defaultdict[int, dict[int, float]] = defaultdict(dict)
        self._count: Counter[int] = Counter()

    def _learn_pair(self, user: str, basket: list[int], product: int) -> None:
        self._count[product] += 1
        weight = 1.0 / float(np.log(2.0 + len(basket)))
        for other in basket[-PAIRED:]:
            for a, b in ((product, other), (other, product)):
                self._together[a][b] = self._together[a].get(b, 0.0) + weight

    def _similar(self, product: int) -> list[tuple[int, float]]:
        count = self._count
        return _nearest(
            {
                other: weight / float(np.sqrt(count[product] * count[other]))
                for other, weight in self._together.get(product, {}).items()
            }
        )


class Swing(_ItemBased):
    """Swing (arXiv:2010.05525): products are similar when pairs of users chose both of them
    and little else in common. Similarities are computed anew each day.
    """

    name = "swing"

    def _start(self, examples: Sequence[Example]) -> None:
        super()._start(examples)
        self._products: defaultdict[str, set[int]] = defaultdict(set)  # of each user
        self._users: defaultdict[int, list[str]] = defaultdict(list)  # of each product
        self._pending: list[tuple[str, int]] = []
        self._day: np.datetime64 | None = None
        self._neighbours: dict[int, list[tuple[int, float]]] = {}

    def _observe(self, state: SweepState) -> None:
        super()._observe(state)
        day = state.moment.astype("datetime64[D]")
        if day == self._day:
            return
        for user, product in self._pending:
            self._products[user].add(product)
            self._users[product].append(user)
        self._pending, self._day, self._neighbours = [], day, {}

    def _learn_pair(self, user: str, basket: list[int], product: int) -> None:
        self._pending.append((user, product))

    def _similar(self, product: int) -> list[tuple[int, float]]:
        if product not in self._neighbours:
            users = [u for u in self._users.get(product, []) if len(self._products[u]) > 1]
            weight = {u: 1.0 / float(np.sqrt(len(self._products[u]))) for u in users}
            scores: defaultdict[int, float] = defaultdict(float)
            for u, v in combinations(users[-SWING_USERS:], 2):
                common = self._products[u] & self._products[v]
                if len(common) > 1:
                    for other in common - {product}:
                        scores[other] += weight[u] * weight[v] / (ALPHA + len(common))
            self._neighbours[product] = _nearest(scores)
        return self._neighbours[product]


def _nearest(similarities: Mapping[int, float]) -> list[tuple[int, float]]:
    ranked = sorted(similarities.items(), key=lambda item: (-round(item[1], 12), item[0]))
    return ranked[:NEIGHBOURS]
