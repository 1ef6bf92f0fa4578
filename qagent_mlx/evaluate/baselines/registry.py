"""The baselines by name: recommenders that need no policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from ...environment.environment import Environment, Example
from ...inventory.encoders.encoder import Encoder
from ...inventory.index import open_index
from ...shop.shop import Shop
from ...utils.text import query_key
from ..metrics import Ranking, System
from .collaborative import ItemCF, Swing
from .popularity import CategoryPopular, Popular, RepeatLast, Trending
from .sasrec import SasRec
from .search_log import EngagementLog, SearchLog
from .text_similarity import BM25Similarity, DenseSimilarity
from .transitions import CoOccurrence, Markov


class BaselineData:
    """The data of a shop that baselines are built from, each read at its first use.

    An ``environment`` gives the encoder of the shop's index, which it has open already.
    """

    def __init__(self, shop: Shop, environment: Environment | None = None) -> None:
        self._shop, self._environment = shop, environment

    @cached_property
    def log(self) -> SearchLog:
        """The shop's searches."""
        return SearchLog.of_shop(self._shop)

    @cached_property
    def engagements(self) -> EngagementLog:
        """The shop's clicks, carts and purchases."""
        return EngagementLog.of_shop(self._shop, self.log)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the shop's index, which learned from nothing after the first case."""
        if self._environment is None:
            return open_index(self._shop).encoder
        return self._environment.search.index.encoder


class MemoryRankerBaseline:
    """What a policy has to beat: a profile's queries in order, which the memory ranker chose."""

    name = "top-line"

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        rankings = []
        for example in examples:
            distinct: dict[str, str] = {}
            for query in example.profile.references:
                distinct.setdefault(query_key(query), query)
            rankings.append(Ranking(tuple(distinct.values())[:k]))
        return rankings


BASELINES: dict[str, Callable[[BaselineData], System]] = {
    "popular": lambda data: Popular(data.log),
    "trending": lambda data: Trending(data.log),
    "repeat-last": lambda data: RepeatLast(data.log),
    "category-popular": lambda data: CategoryPopular(data.log, data.engagements),
    "markov": lambda data: Markov(data.log),
    "co-occurrence": lambda data: CoOccurrence(data.log),
    "item-cf": lambda data: ItemCF(data.log, data.engagements),
    "swing": lambda data: Swing(data.log, data.engagements),
    "bm25": lambda data: BM25Similarity(data.log, data.engagements),
    "dense": lambda data: DenseSimilarity(data.log, data.engagements, data.encoder),
    "sasrec": lambda data: SasRec(data.log),
    "top-line": lambda data: MemoryRankerBaseline(),
}
UNTRAINED = tuple(name for name in BASELINES if name != "sasrec")  # they answer at once
