"""Scenarios: a shop as a merchant has it who lacks a part of what the log tells.

- ``full``: the shop as it is.
- ``no_query_log``: products, views, clicks, carts and purchases, and no word that anybody typed.
  Training knows what users engaged with; the test still asks for what they really typed.
- ``own_only``: nobody's queries reach anybody else, see `MemoryConfig.own_only`.
- ``new``: a share of the products, and the queries that mainly led to them, come up at the end of
  the log: before that nobody met them. The test asks for them.
- ``sold_out``: the test cases in which all that memory's first line shows is sold out.

What a scenario takes away is taken out of a copy of the database (`scenario_shop`), and index,
memory, ranker and baselines are made from the copy: they cannot look at what is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ..errors import QAgentError
from ..inventory.index import open_index
from ..inventory.search import HybridSearch, open_search
from ..inventory.stored_index import InventoryIndex
from ..memory.profile import Memory, count_words
from ..memory.ranker import MemoryRanker
from ..memory.sessions import engaged_sessions, successful_sessions
from ..memory.types import Moment
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from ..types import Case
from ..utils.settings import SettingError, check
from .cases import build_cases, build_untyped_cases, learning_from, numbered, of_split, start_of
from .config import SplitConfig
from .launch_search import LaunchSearch
from .scenario_shop import Launch, Part, open_part

NEW_DAYS = 14  # before the log's end: from then on new products are there
_ALL_LINES = 10_000  # tokens of a profile that leaves no line out
MAINLY = 0.5  # share of a query's engagements from which on it leads mainly to new products

_UNTYPED = """SELECT * REPLACE (NULL::VARCHAR AS query, NULL::VARCHAR AS query_key)
FROM events WHERE type <> 'search'"""
_WITHOUT_NEW = """SELECT * FROM events WHERE ts >= $launch
OR (product_id IS NULL OR NOT list_contains($products, product_id))
AND (query_key IS NULL OR NOT list_contains($queries, query_key))
AND (search_id IS NULL OR search_id NOT IN (
    SELECT event_id FROM events WHERE type = 'search' AND list_contains($queries, query_key)))"""
_NEW_QUERIES = """SELECT s.query_key
FROM events e JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
WHERE e.type IN ('click', 'cart', 'purchase') GROUP BY s.query_key
HAVING count(*) FILTER (list_contains($products, e.product_id)) > $mainly * count(*)"""


@dataclass(frozen=True)
class Scenario:
    """What a scenario leaves of a shop, and the cases that are asked in it.

    ``shop`` is the shop itself where nothing is taken away, and then ``name`` is empty; else it is
    the copy of that name.
    """

    shop: Shop
    index: InventoryIndex
    cases: list[Case]
    name: str = ""
    launch: Launch | None = None

    def open_search(self) -> HybridSearch:
        """The search of the shop, in which new products come up when they do."""
        return with_launch(open_search(self.shop, self.index), self.launch)


def with_launch(search: HybridSearch, launch: Launch | None) -> HybridSearch:
    """The search in which the products of a launch come up then."""
    return search if launch is None else LaunchSearch(search, launch)


def open_scenario(shop: Shop, split: SplitConfig | None = None) -> Scenario:
    """The shop and the cases of `SplitConfig.scenario`; indexes are built where they are missing.

    Raises:
        QAgentError: the log holds too few cases for the split, or none for the scenario.
    """
    split = split or SplitConfig()
    check(split)
    index = open_index(shop)
    if split.scenario == "no_query_log":
        return _no_query_log(shop, index, split)
    cases = build_cases(shop.connection, split, after=index.clicks_until)
    if split.scenario == "own_only" and not shop.config.memory.own_only:
        memory = replace(shop.config.memory, own_only=True)
        config = replace(shop.config, memory=memory)
        return _of_part(shop, Part("own_only", config, same_index=True), cases)
    if split.scenario == "new":
        return _new(shop, cases, index.clicks_until, split)
    if split.scenario == "sold_out":
        cases = _sold_out(shop, index, cases)
    return Scenario(shop, index, cases)


def _of_part(shop: Shop, part: Part, cases: Sequence[Case]) -> Scenario:
    copy = open_part(shop, part)
    return Scenario(copy, open_index(copy), list(cases), copy.path.name, part.launch)


def _no_query_log(shop: Shop, index: InventoryIndex, split: SplitConfig) -> Scenario:
    if split.learn_from == "searches":
        raise SettingError(
            "learn_from", "cannot be searches in the scenario no_query_log, which knows of none"
        )
    part = Part("no_query_log", shop.config, _UNTYPED)
    scenario = _of_part(shop, part, ())
    after = _latest(index.clicks_until, scenario.index.clicks_until)
    ((searches,),) = shop.connection.execute(
        "SELECT count(*) FROM events WHERE type = 'search'"
    ).fetchall()
    if not searches:
        sessions = engaged_sessions(scenario.shop.connection, after)
        return replace(scenario, cases=build_untyped_cases(sessions, split, str(shop.path)))
    typed = build_cases(shop.connection, split, after=index.clicks_until)
    # A session that goes on in the test counts with what it was before.
    sessions = engaged_sessions(scenario.shop.connection, after, start_of(typed, "test"))
    return replace(scenario, cases=learning_from(sessions, typed, split))


def _latest(*moments: datetime | None) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)


def _new(
    shop: Shop, cases: Sequence[Case], clicks_until: datetime | None, split: SplitConfig
) -> Scenario:
    products = shop.connection.execute("SELECT product_id FROM products ORDER BY 1").fetchall()
    chosen = tuple(product for (product,) in products if _is_new(product, split.new_share))
    values = {"products": list(chosen), "mainly": MAINLY}
    rows = shop.connection.execute(_NEW_QUERIES, values).fetchall()
    queries = {key for (key,) in rows}
    ((end,),) = shop.connection.execute("SELECT max(ts) FROM events").fetchall()
    moment = max(start_of(cases, "test"), end - timedelta(days=NEW_DAYS))
    test = [
        case
        for case in of_split(cases, "test")
        if case.as_of >= moment
        and (case.query_key in queries or not set(chosen).isdisjoint(case.products))
    ]
    if not test:
        raise SettingError(
            "new_share",
            f"{split.new_share} leaves no test case that asks for a new product; raise it",
        )
    kept = {"launch": moment, "products": list(chosen), "queries": sorted(queries)}
    part = Part("new", shop.config, _WITHOUT_NEW, kept, Launch(moment, chosen))
    scenario = _of_part(shop, part, ())
    after = _latest(clicks_until, scenario.index.clicks_until)
    sessions = successful_sessions(
        scenario.shop.connection,
        after,
        start_of(cases, "test"),
        any_outcome=split.learn_from == "searches",
    )
    learned = [case for case in cases if case.split != "test"] + test
    return replace(scenario, cases=learning_from(sessions, learned, split))


def _is_new(product: str, share: float) -> bool:
    """Whether a product is one of those taken for new: a share of all, the same ones always."""
    digest = hashlib.sha256(f"new {product}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def _sold_out(shop: Shop, index: InventoryIndex, cases: Sequence[Case]) -> list[Case]:
    """The cases without the test cases whose first line of memory shows something to be had."""
    test = of_split(cases, "test")
    ranker = MemoryRanker.of_shop(shop)
    memory = Memory(shop.connection, shop.config.memory, count_words, ranker)
    # The likeliest line, whatever a policy's tokens leave room for: the same cases for all.
    moments = [Moment(case.user_id, case.as_of) for case in test]
    profiles = memory.profiles(moments, budget=_ALL_LINES)
    lines = [p.references[0] if p.references else "" for p in profiles]
    search = open_search(shop, index)
    results = search.search(lines, AgentConfig().results_shown, [case.as_of for case in test])
    catalog = search.catalog
    kept = [
        case
        for case, hits in zip(test, results, strict=True)
        if hits
        and catalog.knows_stock_at(case.as_of)
        and not any(
            catalog.state_at(catalog.row_of[hit.product_id], case.as_of).in_stock for hit in hits
        )
    ]
    if not kept:
        raise QAgentError(
            "in no test case is all sold out that memory's first line shows; ingest products with "
            "the times at which their stock changed, or choose another scenario"
        )
    return numbered([*(case for case in cases if case.split != "test"), *kept])
