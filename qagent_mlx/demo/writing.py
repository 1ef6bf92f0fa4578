"""A scene of the story: the shop's query log is taken away, and the shipped writer recommends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..agent.types import Rollout
from ..environment.config import SplitConfig
from ..environment.environment import Environment, Example
from ..evaluate.comparisons import FIRST_LINE
from ..evaluate.config import EvaluationConfig
from ..evaluate.metrics import ROW
from ..evaluate.report import EvaluationReport
from ..evaluate.suite import evaluation_suite
from ..policy.registry import WRITER, resolve
from ..protocol.actions import Codec
from ..protocol.codec import load_codec
from ..shop.shop import Shop
from ..types import Case
from ..utils.text import query_key

SCENARIO: Final = "no_query_log"
BASELINES = (FIRST_LINE, "item-cf-title")  # pointing at memory's lines; the best other baseline
ROWS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class WrittenQuery:
    """A recommended query, and where it comes from.

    Attributes:
        own: No line of memory has it: the agent put it together from words that it read.
        new: Nobody ever typed it in this shop, by the log that the agent did not see.
        products: How many products its first page holds.
        engaged: Whether one of these is what the user then engaged with.
    """

    query: str
    own: bool
    new: bool
    products: int
    engaged: bool


@dataclass(frozen=True, slots=True)
class WrittenRow:
    """What was recommended in one test case."""

    case: Case
    queries: tuple[WrittenQuery, ...]


@dataclass(frozen=True, slots=True)
class WritingScene:
    """What the writer recommended without a query log, against rules and a baseline.

    Attributes:
        report: The evaluation, on the test cases of the scenario.
        rows: Every case's row of queries.
        chain: Text of a chain that recommends a query in its own words; empty if there is none.
        chain_query: That query.
    """

    report: EvaluationReport
    rows: tuple[WrittenRow, ...]
    chain: str = ""
    chain_query: str = ""

    @property
    def queries(self) -> list[WrittenQuery]:
        """All recommended queries."""
        return [query for row in self.rows for query in row.queries]

    @property
    def examples(self) -> list[WrittenRow]:
        """Rows worth a look.

        First those in which a query in the agent's own words led to an engagement, then those in
        which one that nobody had typed did, then those in which most queries did.
        """

        def worth(row: WrittenRow) -> tuple[bool, bool, int]:
            hits = [query for query in row.queries if query.engaged]
            return any(q.own for q in hits), any(q.new for q in hits), len(hits)

        return sorted(self.rows, key=worth, reverse=True)[:ROWS_SHOWN]


def writing_scene(shop: Shop, cases: int, seed: int) -> WritingScene:
    """Let the writer recommend to users of the shop without anybody's queries.

    Args:
        shop: The sample shop; the copy without a query log is made in its folder.
        cases: Test cases.
        seed: Of sampling and of the intervals.
    """
    config = EvaluationConfig(limit=cases, details=cases, baselines=BASELINES, seed=seed)
    suite = evaluation_suite(shop, [WRITER], config, SplitConfig(scenario=SCENARIO))
    report = suite.evaluate()
    rows = _rows(report, suite.environment, _typed(shop))
    chain, query = _chain(rows, suite.rollouts()[WRITER], load_codec(resolve(shop, WRITER)))
    return WritingScene(report, rows, chain, query)


def _typed(shop: Shop) -> set[str]:
    """The keys of all queries that anybody ever typed."""
    return {
        key
        for (key,) in shop.connection.execute(
            "SELECT DISTINCT query_key FROM events WHERE query_key IS NOT NULL"
        ).fetchall()
    }


def _rows(
    report: EvaluationReport, environment: Environment, typed: set[str]
) -> tuple[WrittenRow, ...]:
    def written(example: Example, query: str) -> WrittenQuery:
        case, key = example.case, query_key(query)
        found = environment.retrieve(query, case.as_of)
        return WrittenQuery(
            query,
            own=key not in {query_key(line) for line in example.profile.references},
            new=key not in typed,
            products=len(found),
            engaged=not set(case.products).isdisjoint(found),
        )

    return tuple(
        WrittenRow(example.case, tuple(written(example, q) for q in ranking.queries[:ROW]))
        for example, ranking in zip(report.examples, report.rankings[WRITER], strict=True)
    )


def _chain(
    rows: Sequence[WrittenRow], rollouts: Mapping[int, Sequence[Rollout]], codec: Codec
) -> tuple[str, str]:
    """A chain that recommends a query in its own words, and the query.

    One that led to an engagement, if there is any.
    """
    for engaged in (True, False):
        for row in rows:
            own = {query_key(q.query) for q in row.queries if q.own and q.engaged >= engaged}
            for rollout in rollouts.get(row.case.case_id, ()):
                if rollout.validated and rollout.query_key in own:
                    return codec.decode(rollout.tokens), rollout.query
    return "", ""
