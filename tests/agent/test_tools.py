"""What a search says of the products that it finds, for one user."""

from datetime import datetime

import numpy as np
import pytest

from qagent_mlx.agent.tools import SearchProducts, SearchRequest
from qagent_mlx.inventory.catalog import Catalog
from qagent_mlx.inventory.types import Ranking
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.types import Hit, UserContext

NOW = datetime(2026, 2, 1)
TITLES = ["Acme tent XK200 for two, green", "Bo tent", "Acme stove"]


class Clicks:
    """Half of all engagements were with the first product, 3 in 10 with the second."""

    def __init__(self, weight):
        self.weight = weight

    def ranking(self, key, moment):
        return Ranking(np.arange(3), np.array([0.5, 0.3, 0.2]) * self.weight)


class Engine:
    """Finds all products for every query, and counts its calls."""

    def __init__(self, weight=0.0):
        prices, in_stock = np.array([10.0, 20.0, 30.0]), np.array([True, False, True])
        brands, categories = ["Acme", "Bo", "Acme"], ["camping"] * 3
        ids = ["p0", "p1", "p2"]
        self.catalog = Catalog(ids, TITLES, brands, categories, prices, in_stock, [None] * 3)
        self.catalog.price_limits = [(15.0, 25.0)] * 3
        self.clicks = Clicks(weight)
        self.calls = []

    def search(self, queries, k=10, as_of=None, filters=None):
        self.calls.append(list(zip(queries, as_of, strict=True)))
        return [[Hit(p, 1.0) for p in self.catalog.ids] for _ in queries]


def lines(engine, context=None, **config):
    tool = SearchProducts(engine, AgentConfig(results_shown=3, **config))
    (result,) = tool.run([SearchRequest("tent", NOW, context or UserContext())])
    assert result.products == ("p0", "p1", "p2")
    return list(result.lines)


def test_a_line_has_a_short_title_and_a_price_band():
    assert lines(Engine()) == ["1 Acme tent for two $", "2 Bo tent $$ out", "3 Acme stove $$$"]


def test_a_chain_reads_of_the_first_products_and_is_rewarded_for_all():
    tool = SearchProducts(Engine(), AgentConfig(results_shown=2))
    (result,) = tool.run([SearchRequest("tent", NOW, UserContext())])
    assert result.products == ("p0", "p1", "p2")
    assert [line[0] for line in result.lines] == ["1", "2"]


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (UserContext(prices={"$": 0.25, "$$": 0.2}), ["$ fits", "$$ out", "$$$"]),
        (UserContext(brands={"acme": 0.15, "bo": 0.1}), ["$ brand", "$$ out", "$$$ brand"]),
        (UserContext(bought=("p0",), seen=("p0", "p2")), ["$ bought", "$$ out", "$$$ seen"]),
    ],
)
def test_marks_say_what_fits_the_user(context, expected):
    assert [line[line.index("$") :] for line in lines(Engine(), context)] == expected
    unmarked = lines(Engine(weight=9.0), context, marks=False)
    assert [line[line.index("$") :] for line in unmarked] == ["$", "$$ out", "$$$"]


def test_marks_say_what_others_engaged_with_where_enough_did():
    marks = [line[line.index("$") :] for line in lines(Engine(weight=2.0))]
    assert marks == ["$ chosen", "$$ often out", "$$$ often"]
    assert lines(Engine(weight=1.9)) == lines(Engine())


def test_equal_requests_are_searched_once():
    engine = Engine()
    tool = SearchProducts(engine, AgentConfig())
    other = UserContext(bought=("p0",))
    requests = [
        SearchRequest("tent", NOW, UserContext()),
        SearchRequest("lamp", NOW, UserContext()),
        SearchRequest("tent", NOW, other),
    ]
    first, _, third = tool.run(requests)
    assert engine.calls == [[("tent", NOW), ("lamp", NOW)]]
    assert first.products == third.products and first.lines != third.lines


def test_without_search_nothing_is_found():
    engine = Engine()
    tool = SearchProducts(engine, AgentConfig(search=False))
    results = tool.run([SearchRequest("tent", NOW, UserContext())] * 2)
    assert [(r.products, r.lines) for r in results] == [((), ()), ((), ())]
    assert not engine.calls
