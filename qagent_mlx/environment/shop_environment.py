"""A shop as an environment that anybody can use: no MLX, no policy of this package.

    environment = ShopEnvironment.open("shop")
    case = environment.cases("train")[0]
    messages = environment.reset(case)
    environment.step({"name": "fetch_memory", "arguments": {}}).observation
    environment.step({"name": "search", "arguments": {"query": "<r0>"}}).observation
    environment.step({"name": "recommend", "arguments": {"query": "<s1>"}}).rewards

Cases, profiles, search and rewards are those that this package's own policies are trained with, by
the same rules (`agent.chain`): time splits the cases, and nothing at or after a case's moment is
seen. `trl_adapter` and `verifiers_adapter` put it into these trainers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ..agent.chain import Chain
from ..agent.tools import SearchProducts
from ..agent.types import Rollout
from ..errors import QAgentError
from ..memory.profile import count_words
from ..memory.types import CountTokens
from ..protocol.actions import (
    INSTRUCTIONS,
    REQUEST,
    WORKED_EXAMPLE,
    WRITING_EXAMPLE,
    WRITING_INSTRUCTIONS,
    Action,
    parse_action,
)
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from ..types import Split
from ..utils.settings import check
from .config import SplitConfig
from .environment import Environment, Example
from .rewards import WEIGHTS, Component, component_rewards, weighted_reward
from .text_environment import Message, Step, Tool, ToolCall

TOOL_INSTRUCTIONS = """\
You suggest one search query to a shopper before they type. First call fetch_memory: it tells what \
the shopper did; its lines with <r0>, <r1>, ... are queries, the likeliest first. Then call search \
with a query, or with <r0> for the query of line 0, and look at what it finds. At last call \
recommend with the query that serves this shopper best; <s1> stands for the query of your first \
search. If a search finds only products that are out or too dear, search another line."""
OVER = "Your work is done."  # what trainers say behind the last step, which has no observation
_REFERENCE = re.compile(r"\s*<?([rs]\d{1,3})>?\s*")


def _tool(name: str, description: str, query: str = "") -> Tool:
    properties = {"query": {"type": "string", "description": query}} if query else {}
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = (
    _tool("fetch_memory", "Read what is known of the shopper."),
    _tool(
        "search",
        "Search the shop's products.",
        "The words to search, or <r0> for the query of memory's line 0.",
    ),
    _tool(
        "recommend",
        "Recommend a query to the shopper, which ends your work.",
        "The query to recommend, or <s1> for the query of your first search.",
    ),
)


@dataclass(frozen=True)
class _Data:
    """What all episodes share."""

    environment: Environment
    examples: Mapping[int, Example]
    search: SearchProducts
    agent: AgentConfig
    components: Mapping[str, Component] | None
    weights: Mapping[str, float]
    example: bool


class ShopEnvironment:
    """One episode at a time in a shop; see `text_environment.TextEnvironment`.

    Args:
        environment: Cases with their profiles, and the search.
        agent: How many searches a chain has, and what it is shown.
        components: Rewards by name; `rewards.COMPONENTS` by default.
        weights: Weights of the rewards; `rewards.WEIGHTS` by default.
        example: Whether an episode of written actions begins with a worked example, as it does for
            this package's own chat policies.
    """

    def __init__(
        self,
        environment: Environment,
        agent: AgentConfig | None = None,
        components: Mapping[str, Component] | None = None,
        weights: Mapping[str, float] | None = None,
        example: bool = False,
    ) -> None:
        agent = agent or AgentConfig()
        self._data = _Data(
            environment,
            {e.case.case_id: e for e in environment.examples},
            SearchProducts(environment.search, agent),
            agent,
            components,
            weights or WEIGHTS,
            example,
        )
        self._chain: Chain | None = None
        self._case = -1

    @classmethod
    def open(
        cls,
        shop: Shop | str | Path,
        agent: AgentConfig | None = None,
        split: SplitConfig | None = None,
        count: CountTokens = count_words,
        **options: Any,
    ) -> ShopEnvironment:
        """The environment of a shop, whose database is closed again where a path is given.

        Args:
            shop: With a log and an index.
            agent: As in the class.
            split: Which moments are cases, and how time splits them.
            count: Counts the tokens of texts, for the budget of profiles; words by default.
            options: ``components``, ``weights`` and ``example`` of the class.
        """
        agent = agent or AgentConfig()
        check(agent)
        if not isinstance(shop, Shop):
            with Shop.open(Path(shop)) as opened:
                return cls.open(opened, agent, split, count, **options)
        environment = Environment.of_shop(shop, _Counter(count), agent, split)
        return cls(environment, agent, **options)

    @property
    def tools(self) -> Sequence[Tool]:
        """Memory, search and recommendation, as functions with JSON schemas."""
        return TOOLS

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each reward component, by name."""
        return self._data.weights

    @property
    def agent(self) -> AgentConfig:
        """How many searches a chain has, and what it is shown."""
        return self._data.agent

    def cases(self, split: str) -> list[int]:
        """Numbers of the cases of a split, in order of time.

        Raises:
            QAgentError: there is no such split.
        """
        if split not in get_args(Split):
            known = ", ".join(get_args(Split))
            raise QAgentError(f"there is no split {split!r}; the splits are {known}")
        return [e.case.case_id for e in self._data.environment.of_split(split)]

    def fork(self) -> ShopEnvironment:
        """An environment for another episode at the same time, on the same data."""
        other = object.__new__(type(self))
        other._data, other._chain, other._case = self._data, None, -1
        return other

    def reset(self, case: int, tools: bool = False) -> list[Message]:
        """Begin an episode.

        Args:
            case: Of `cases`.
            tools: Whether the instructions are for calls of `tools`, rather than for actions that
                are written, such as ``<search>running shoes</search>``.

        Returns:
            A system message, a worked example where one is wanted, and the request.
        """
        if case not in self._data.examples:
            raise QAgentError(f"there is no case {case}; take one of cases('train')")
        example = self._data.examples[case]
        self._chain = Chain(self._data.agent, example.profile, example.case.as_of)
        self._case = case
        writes = self._data.agent.writes
        written = WRITING_INSTRUCTIONS if writes else INSTRUCTIONS
        turns = [("system", TOOL_INSTRUCTIONS if tools else written)]
        if self._data.example and not tools:
            turns += WRITING_EXAMPLE if writes else WORKED_EXAMPLE
        return [{"role": who, "content": text} for who, text in (*turns, ("user", REQUEST))]

    def step(self, action: str | ToolCall) -> Step:
        """Take a written action or a tool call; see `text_environment.TextEnvironment.step`.

        What is no action ends the episode, as it ends a chain of this package's policies.
        """
        chain = self._running()
        if chain.act(parse_action(action) if isinstance(action, str) else _called(action)):
            results = self._data.search.run([chain.request] if chain.request else [])
            return Step(chain.answer(results[0] if results else None))
        return self._ended(chain)

    def give_up(self) -> Step:
        """End the episode as it is, as a chain ends that breaks off."""
        chain = self._running()
        chain.finish = "length"
        return self._ended(chain)

    def _running(self) -> Chain:
        if self._chain is None or self._chain.finish:
            raise QAgentError("no episode runs; begin one with reset(case)")
        return self._chain

    def _ended(self, chain: Chain) -> Step:
        rewards = component_rewards(self._outcome(chain), self._data.components)
        return Step("", weighted_reward(rewards, self._data.weights), True, rewards)

    def _outcome(self, chain: Chain) -> Any:
        rollout = Rollout(
            self._case,
            0,
            tokens=(),
            prompt_length=0,
            sampled=(),
            logprobs=(),
            turns=tuple(chain.turns),
            query=chain.query,
            finish=chain.finish,
            repeated=chain.repeated,
            refused=chain.refused,
        )
        return self._data.environment.outcome(rollout, self._data.examples[self._case].case)


def _called(call: ToolCall) -> Action:
    """The action that a tool call means; ``invalid`` where it means none."""
    name, arguments = call.get("name"), call.get("arguments") or {}
    query = arguments.get("query") if isinstance(arguments, Mapping) else None
    if name == "fetch_memory":
        return Action("fetch")
    if name not in ("search", "recommend") or not isinstance(query, str):
        return Action("invalid", str(dict(call)))
    reference = _REFERENCE.fullmatch(query)
    if reference:
        return Action(name, reference=reference[1])
    return Action(name, text=query.strip())


@dataclass(frozen=True)
class _Counter:
    """Stands in for a codec, of which profiles need the count of tokens only."""

    count: CountTokens
