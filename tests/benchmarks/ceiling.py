"""How far a policy could come: a boosted-tree ranker over all that an agent can look at.

    pip install lightgbm
    python tests/benchmarks/ceiling.py SHOP [--test-from 2011-10-12] [--seeds 5] [--abtest]

For each case all lines of the profile are searched, as no chain could, and a ranker learns from
the cases before the test split which line to recommend. ``order`` takes the first line, ``in
stock`` the first whose first product is not sold out. The rankers see:

- ``read``: what an agent reads: each line's place and marks, and the marks of its first products;
- ``numbers``: also what stands behind it: the chance as a number, the features of a line's worth,
  the scores of the search, and how long ago the user took the first products.

A ranker is trained for the right query (``q_em``) and for query and product at once (``cons@1``),
and scored by both. The intervals are 95 % bootstrap intervals over cases, of the mean over seeds.

``--abtest`` asks fresh shoppers of a simulated shop instead: what they do with the choices of the
ranker for ``cons@1`` (treatment) and of the one for ``q_em`` (control), both of ``read``. It bounds
what a reward for query and product can gain over one for the query alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import lightgbm
import numpy as np

from qagent_mlx.agent.tools import SearchProducts, SearchRequest, SearchResult
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment, Example
from qagent_mlx.evaluate.abtest import MakeSystem, abtest
from qagent_mlx.evaluate.config import AbConfig
from qagent_mlx.evaluate.metrics import Ranking
from qagent_mlx.evaluate.significance import bootstrap
from qagent_mlx.evaluate.suite import SystemFactory
from qagent_mlx.memory.loader import MemoryLoader
from qagent_mlx.memory.ranking_features import feature_tables
from qagent_mlx.memory.types import Moment
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.protocol.marks import AGES, OUTCOMES, Mark
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import query_key

MARKS = (
    *(*OUTCOMES, Mark.HAD, *AGES.words, Mark.TOP, Mark.HOT, Mark.WARM, Mark.RISING, Mark.FADING),
    *(Mark.POOR, Mark.SURELY, Mark.LIKELY, Mark.MAYBE),
)
SEEN = (
    *(Mark.FITS, Mark.BRAND, Mark.BOUGHT, Mark.SEEN, Mark.CHOSEN, Mark.OFTEN, Mark.OUT),
    *(Mark.CHEAP, Mark.MIDDLE, Mark.DEAR),
)
SHOWN = 3  # products of each line
TREES: dict[str, Any] = {
    "objective": "binary",
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "verbose": -1,
    "num_threads": 1,
}
ROUNDS = 150


class Lines:
    """One case: a row for each line of its profile that has a query."""

    def __init__(self, example: Example, found: Sequence[SearchResult], behind: np.ndarray) -> None:
        """``behind`` holds, for each line, what an agent does not read."""
        case, lines = example.case, [x for x in example.profile.lines if x.query is not None]
        self.split = case.split
        self.right = np.array([query_key(x.query or "") == case.query_key for x in lines], bool)
        self.hit = np.array([bool(f.products) and f.products[0] in case.products for f in found])
        marks = [set(x.text[len(x.query or "") :].split()) for x in lines]
        shown = [[set(text.split()) for text in f.lines[:SHOWN]] for f in found]
        self.out = np.array(
            ["out" in products[0] if products else True for products in shown], bool
        )
        self.read = np.array(
            [
                [
                    place,
                    len(products),
                    self.out[:place].sum(),
                    *(mark in own for mark in MARKS),
                    *(
                        mark in product
                        for product in (products + [set()] * SHOWN)[:SHOWN]
                        for mark in SEEN
                    ),
                ]
                for place, (own, products) in enumerate(zip(marks, shown, strict=True))
            ],
            dtype=float,
        ).reshape(len(lines), -1)
        # What can be known of a line without a search.
        self.alone = np.hstack([self.read[:, :1], self.read[:, 3 : 3 + len(MARKS)]])
        chance = np.array([[x.score] for x in lines]).reshape(len(lines), 1)
        self.numbers = np.hstack([self.read, behind, chance]) if lines else self.read


def cases_of(shop: Shop, split: SplitConfig) -> list[Lines]:
    """All cases with what can be seen of each line."""
    environment = SystemFactory(
        shop, lambda codec, agent: Environment.of_shop(shop, codec, agent, split)
    ).environment
    return lines_of(shop, environment)


def lines_of(shop: Shop, environment: Environment) -> list[Lines]:
    """The cases of an environment with what can be seen of each line."""
    search = SearchProducts(environment.search, AgentConfig(results_shown=SHOWN))
    examples = environment.examples
    memories = MemoryLoader(shop.connection, shop.config.memory).load(
        [Moment(e.case.user_id, e.case.as_of) for e in examples]
    )
    tables = feature_tables([memory.candidates for memory in memories])
    made = []
    for example, memory, table in zip(examples, memories, tables, strict=True):
        queries = example.profile.references
        moment = example.case.as_of
        found = search.run([SearchRequest(q, moment, example.profile.context) for q in queries])
        place = {key: i for i, key in enumerate(memory.candidates.query_key)}
        knows = {product.product_id: product.age for product in memory.state.engaged_products}
        # As many as the tool asks for: these answers are remembered.
        hits = environment.search.search(queries, 10, [moment] * len(queries))
        behind = np.hstack(
            [
                table[[place[query_key(q)] for q in queries]],
                _padded([[h.score for h in some] for some in hits]),
                _padded([[knows.get(h.product_id, 999.0) for h in some] for some in hits]),
            ]
        )
        made.append(Lines(example, found, behind))
    return made


def _padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array([[*row, *[0.0] * SHOWN][:SHOWN] for row in rows]).reshape(len(rows), SHOWN)


def outcome(cases: Sequence[Lines], choices: Sequence[int]) -> np.ndarray:
    """q_em, i_hit@1 and cons@1 of each case: (cases, 3)."""
    return np.array(
        [
            (c.right[i], c.hit[i], c.right[i] and c.hit[i]) if len(c.right) else (0, 0, 0)
            for c, i in zip(cases, choices, strict=True)
        ],
        dtype=float,
    )


def ranker(learn: Sequence[Lines], sees: str, wanted: str, seed: int) -> Callable[[Lines], int]:
    """What tells which line of a case to take; learned from other cases."""
    filled = [c for c in learn if len(c.right)]
    rows = np.vstack([getattr(c, sees) for c in filled])
    target = np.concatenate([c.right & c.hit if wanted == "cons@1" else c.right for c in filled])
    trees = lightgbm.train(
        {**TREES, "seed": seed}, lightgbm.Dataset(rows, target.astype(int)), ROUNDS
    )
    return lambda case: int(np.argmax(trees.predict(getattr(case, sees)))) if len(case.right) else 0


class Ranker:
    """A ranker as a system that recommends one query."""

    def __init__(self, name: str, choose: Callable[[Lines], int], looked: Sequence[Lines]) -> None:
        """``looked`` holds what can be seen of each example that it is asked about, in order."""
        self.name, self._choose, self._looked = name, choose, looked

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """The query of the line that the ranker takes."""
        choices = [self._choose(lines) for lines in self._looked]
        return [
            Ranking(tuple(example.profile.references[choice : choice + 1]))
            for example, choice in zip(examples, choices, strict=True)
        ]


def ranker_system(name: str, choose: Callable[[Lines], int], looked: list[Lines]) -> MakeSystem:
    """A ranker as a system of an A/B test; ``looked`` is filled by the first one that is asked."""

    def make(own: Shop, environment: Environment) -> Ranker:
        if not looked:
            looked.extend(lines_of(own, environment))
        return Ranker(name, choose, looked)

    return make


def asked(shop: Shop, learn: Sequence[Lines], seeds: int) -> None:
    """The simulated A/B test of the two rankers, once a seed."""
    print("| seed | CTR | guided CVR | orders | the same at |\n|--:|--:|--:|--:|--:|")
    looked: list[Lines] = []  # both arms ask about the same moments of the same shoppers, each seed
    for seed in range(seeds):
        arms = {
            wanted: ranker_system(wanted, ranker(learn, "read", wanted, seed), looked)
            for wanted in ("q_em", "cons@1")
        }
        report = abtest(shop, *arms, AbConfig(k=1), systems=arms)
        cells = [
            f"{100 * r.lift:+.1f} % [{100 * r.lo:+.1f}, {100 * r.hi:+.1f}], p {r.p:.3f}"
            for r in (report.rates[name] for name in ("ctr", "cvr", "orders"))
        ]
        print(f"| {seed} | {' | '.join(cells)} | {report.identical:.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shop")
    parser.add_argument("--test-from", default="", help="ISO time; the last fifth without it")
    parser.add_argument("--seeds", type=int, default=5, help="rankers of each kind")
    parser.add_argument("--abtest", action="store_true", help="ask fresh shoppers instead")
    arguments = parser.parse_args()
    with Shop.open(arguments.shop) as shop:
        cases = cases_of(shop, SplitConfig(test_from=arguments.test_from))
        learn = [c for c in cases if c.split != "test"]
        if arguments.abtest:
            return asked(shop, learn, arguments.seeds)
    test = [c for c in cases if c.split == "test"]
    print(f"{len(learn)} cases to learn from, {len(test)} test cases\n")
    print("| chosen by | q_em | i_hit@1 | cons@1 | cons@1 by seed |\n|---|--:|--:|--:|---|")

    def row(name: str, made: Sequence[np.ndarray]) -> None:
        mean = np.mean(made, axis=0)
        cells = []
        for column in mean.T:
            i = bootstrap(column)
            cells.append(f"{100 * i.mean:.1f} [{100 * i.lo:.1f}, {100 * i.hi:.1f}]")
        seeds = ", ".join(f"{100 * one[:, 2].mean():.1f}" for one in made)
        print(f"| {name} | {' | '.join(cells)} | {seeds} |", flush=True)

    row("order", [outcome(test, [0] * len(test))])
    # argmin: the first that is not out, or the first at all
    stocked = [int(np.argmin(c.out)) if len(c.out) else 0 for c in test]
    row("in stock", [outcome(test, stocked)])
    for sees in ("read", "numbers"):
        for wanted in ("q_em", "cons@1"):
            made = []
            for seed in range(arguments.seeds):
                choose = ranker(learn, sees, wanted, seed)
                made.append(outcome(test, [choose(case) for case in test]))
            row(f"{sees}, for {wanted}", made)
    best = [int(np.argmax(2 * (c.right & c.hit) + c.right)) if len(c.right) else 0 for c in test]
    row("the answer, where it is a line", [outcome(test, best)])


if __name__ == "__main__":
    main()
