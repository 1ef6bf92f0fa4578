"""A shop in TRL's GRPOTrainer: its tools, its cases and its rewards.

    environment = ShopEnvironment.open("shop")
    trainer = GRPOTrainer(
        model,
        train_dataset=Dataset.from_list(rows(environment, "train")),
        environment_factory=factory(environment),
        args=GRPOConfig(…),
    )

TRL calls the public methods of an environment as tools and scores an episode with ``get_reward``.
Nothing of TRL is imported here; the model's chat template must know tools.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .shop_environment import OVER, ShopEnvironment
from .text_environment import Step


class ShopTools:
    """One episode as TRL sees it; its docstrings are what the model reads of the tools."""

    def __init__(self, environment: ShopEnvironment) -> None:
        self._environment = environment
        self._ended: Step | None = None

    def reset(self, case: int, **_row: Any) -> None:
        """Begin an episode of a case, which a row of the data set names."""
        self._environment.reset(case, tools=True)
        self._ended = None

    def fetch_memory(self) -> str:
        """Read what is known of the shopper.

        Returns:
            The shopper's memory; its lines with <r0>, <r1>, ... are queries, the likeliest first.
        """
        return self._call("fetch_memory")

    def search(self, query: str) -> str:
        """Search the shop's products.

        Args:
            query: The words to search, or <r0> for the query of memory's line 0.

        Returns:
            The first products that are found.
        """
        return self._call("search", query=query)

    def recommend(self, query: str) -> str:
        """Recommend a query to the shopper, which ends your work.

        Args:
            query: The query to recommend, or <s1> for the query of your first search.

        Returns:
            That the work is done.
        """
        return self._call("recommend", query=query)

    def get_reward(self) -> float:
        """The reward of the episode, in [0, 1]; of one that did not end, as one that broke off."""
        if self._ended is None:
            self._ended = self._environment.give_up()
        return self._ended.reward

    def _call(self, name: str, **arguments: str) -> str:
        if self._ended is not None:
            return OVER
        step = self._environment.step({"name": name, "arguments": arguments})
        if not step.done:
            return step.observation
        self._ended = step
        return OVER


def factory(environment: ShopEnvironment) -> Callable[[], ShopTools]:
    """``environment_factory`` of GRPOTrainer: each call makes an environment for one episode."""
    return lambda: ShopTools(environment.fork())


def rows(environment: ShopEnvironment, split: str) -> list[dict[str, Any]]:
    """The rows of a data set: a prompt for each case of a split, and the case's number."""
    other = environment.fork()
    return [
        {"prompt": other.reset(case, tools=True), "case": case} for case in environment.cases(split)
    ]
