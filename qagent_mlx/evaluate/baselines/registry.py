"""The baselines by name: recommenders that need no policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from heapq import nlargest
from itertools import chain, zip_longest

from ...agent.slate import SlateFiller, SlateRequest, aggregate_rollouts
from ...environment.environment import Environment, Example
from ...errors import QAgentError
from ...inventory.encoders.encoder import Encoder
from ...inventory.search import HybridSearch, open_search
from ...shop.shop import Shop
from ...utils.text import query_key, share_words
from ..metrics import Ranking, System
from .collaborative import ItemCF, Swing
from .popularity import CategoryPopular, Popular, RepeatLast, Trending
from .product_log import ProductLog
from .product_queries import BrandCategory, Category, LastViewed, NextCategory, NextProduct
from .sasrec import SasRec
from .search_log import EngagementLog, SearchLog, moment_of
from .text_similarity import BM25Similarity, DenseSimilarity
from .transitions import CoOccurrence, Markov

DEPTH = 2000  # of a baseline's queries that are looked at where only a user's own may be named


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
    def own_only(self) -> bool:
        """Whether nobody's queries may reach anybody else."""
        return self._shop.config.memory.own_only

    @cached_property
    def products(self) -> ProductLog:
        """The shop's events with products."""
        return ProductLog.of_shop(self._shop)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the shop's index, which learned from nothing after the first case."""
        return self.search.index.encoder

    @cached_property
    def search(self) -> HybridSearch:
        """The shop's search, as it was at any moment."""
        if self._environment is None:
            return open_search(self._shop)
        return self._environment.search


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


class ShownLines:
    """Memory's lines as they are served without an agent (`agent.slate`): what is sold out, or was
    bought just now, comes behind."""

    name = "in-stock"

    def __init__(self, search: HybridSearch) -> None:
        self._catalog, self._filler = search.catalog, SlateFiller(search)

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        requests = [
            SlateRequest(
                aggregate_rollouts((), example.profile),
                example.case.as_of,
                k,
                example.profile.context,
                self._catalog.knows_stock_at(example.case.as_of),
            )
            for example in examples
        ]
        slates = self._filler.fill(requests)
        return [Ranking(tuple(item.query for item in slate)) for slate in slates]


class Mixed:
    """Memory's lines and queries of products by turns: what an agent that writes has to beat."""

    name = "mixed"

    def __init__(self, first: System, second: System) -> None:
        self._systems = first, second

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        rankings = []
        for pair in zip(*(s.rank(examples, k) for s in self._systems), strict=True):
            turns = chain.from_iterable(zip_longest(*(ranking.queries for ranking in pair)))
            row: dict[str, str] = {}
            for query in turns:
                if query is not None:
                    row.setdefault(query_key(query), query)
            rankings.append(Ranking(tuple(row.values())[:k]))
        return rankings


class BrandLines:
    """The brands that the user likes most before memory's first lines: a rule that writes.

    Two brands and three lines make a row of five; where a line names the brand it stays as it is.
    """

    name = "brand-lines"

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        rankings = []
        for example in examples:
            profile = example.profile
            lines = list({query_key(query): query for query in profile.references}.values())
            weights = profile.context.brands
            brands = nlargest(2, weights, key=lambda brand: (weights[brand], brand))
            composed = [with_brand(b, line) for b in brands for line in lines[: max(3, k - 2)]]
            row = {query_key(query): query for query in (*composed, *lines)}
            rankings.append(Ranking(tuple(row.values())[:k]))
        return rankings


def with_brand(brand: str, query: str) -> str:
    """A query with a brand before it, unless it names one of its words already."""
    return query if share_words(brand, query) else f"{brand} {query}"


class OwnQueries:
    """What is left of a baseline where nobody's queries may reach anybody else."""

    def __init__(self, system: System, log: SearchLog) -> None:
        self.name = system.name
        self._system, self._log = system, log

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """The baseline's queries that the user typed before, then the user's other queries."""
        deep = max(k, min(len(self._log.spellings), DEPTH))
        rankings = []
        for example, ranking in zip(examples, self._system.rank(examples, deep), strict=True):
            case = example.case
            latest = self._log.last_queries(case.user_id, moment_of(case.as_of), DEPTH)
            own = {query_key(text): text for text in latest.values()}
            first = {key: own[key] for q in ranking.queries if (key := query_key(q)) in own}
            rankings.append(Ranking(tuple((first | own).values())[:k]))
        return rankings


# Those that name queries of the log.
OF_QUERIES: dict[str, Callable[[BaselineData], System]] = {
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
}
# Those that need no query log.
OF_PRODUCTS: dict[str, Callable[[BaselineData], System]] = {
    "category": lambda data: Category(data.products),
    "brand-category": lambda data: BrandCategory(data.products),
    "last-viewed": lambda data: LastViewed(data.products),
    "item-cf-title": lambda data: NextProduct(data.products),
    "next-category": lambda data: NextCategory(data.products),
}
BASELINES = {
    **OF_QUERIES,
    **OF_PRODUCTS,
    "top-line": lambda data: MemoryRankerBaseline(),
    "in-stock": lambda data: ShownLines(data.search),
    "mixed": lambda data: Mixed(MemoryRankerBaseline(), NextProduct(data.products)),
    "brand-lines": lambda data: BrandLines(),
}
UNTRAINED = tuple(name for name in BASELINES if name != "sasrec")  # they answer at once


def untrained(data: BaselineData) -> list[str]:
    """The baselines that answer at once, and can answer from this data."""
    return [name for name in UNTRAINED if len(data.log.times) or name not in OF_QUERIES]


def open_baseline(name: str, data: BaselineData) -> System:
    """A baseline as the shop lets it be.

    Raises:
        QAgentError: it needs a query log, and there is none.
    """
    if name not in OF_QUERIES:
        return BASELINES[name](data)
    if not len(data.log.times):
        raise QAgentError(
            f"the baseline {name} names queries of the log, and nobody's are known here; those "
            f"that need none are {', '.join(OF_PRODUCTS)}"
        )
    system = BASELINES[name](data)
    return OwnQueries(system, data.log) if data.own_only else system
