"""Pretraining: a tokenizer and a small decoder, made from nothing but a shop's own data.

The new model learns whole demonstration chains, both what the agent says (all of it) and
what it reads (a share of it). Reading matters: with a loss on its own actions only, a model
from scratch does not learn to look at the results in any time that a CPU gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np

from ..agent.tools import SearchProducts, SearchRequest
from ..environment.cases import SplitConfig, build_cases, of_split
from ..environment.environment import Environment
from ..errors import QAgentError
from ..inventory.index import open_index
from ..memory.profile import count_words
from ..policy.policy import Policy
from ..policy.scoring import TrainingSequence
from ..policy.small_llama import new_policy, save_base
from ..protocol.actions import profile_text, results_text
from ..protocol.codec import ShopCodec, train_tokenizer
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from .demonstrations import DemoConfig, Demonstrator
from .fit import FitConfig, batch_order, fit, predicted_cost

T = TypeVar("T")


@dataclass(frozen=True)
class PretrainConfig:
    """Size of the model and how long it learns."""

    size: str = "tiny"
    vocab_size: int = 2048
    steps: int = 350
    batch_size: int = 32
    learning_rate: float = 1e-3  # at 3e-3 a tiny model does not learn to read results
    read: float = 0.3
    drop_lines: float = 0.15
    disguise: float = 0.5  # share of chains in other words, see `disguise`
    words: bool = False  # learn to write queries too, see `demonstrations`
    seed: int = 0


class _Words:
    """Stands in for a tokenizer while there is none: a token a word."""

    def count(self, texts: Sequence[str]) -> list[int]:
        return count_words(texts)


def _spread(cases: Sequence[T]) -> Sequence[T]:
    """Every so many of them, so that there are 3,000 at most."""
    return cases[:: max(1, len(cases) // 1500)]


def shop_texts(
    shop: Shop, environment: Environment, agent: AgentConfig, until: datetime
) -> list[str]:
    """What a shop's tokenizer is trained on: memory and results as the agent sees them,
    titles, categories, and the queries of the training time, which ends at ``until``.
    """
    tools = SearchProducts(environment.search, agent)
    texts = []
    for example in _spread(environment.of_split("train")):
        texts.append(profile_text(example.profile))
        requests = [
            SearchRequest(q, example.case.as_of, example.profile.context)
            for q in example.profile.references[:2]
        ]
        texts += [results_text(1, found.lines) for found in tools.run(requests)]
    texts += environment.search.catalog.titles
    texts += [c for c in environment.search.catalog.categories if c]
    rows = shop.connection.execute(
        "SELECT query FROM events WHERE type = 'search' AND ts < ? ORDER BY event_id", [until]
    ).fetchall()
    return texts + [query for (query,) in rows]


def pretrain(
    shop: Shop,
    name: str = "base",
    config: PretrainConfig | None = None,
    agent: AgentConfig | None = None,
    split: SplitConfig | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    on_cost: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train a new policy on a shop and save it as ``policies/<name>``.

    Args:
        shop: With products, events and an index.
        name: What the policy is called.
        config: Size and length of training.
        agent: How its chains run.
        split: Only cases of the training split are learned from.
        on_step: Called after each step with its numbers.
        on_cost: Called before the first step with what it will cost, measured on one batch
            (see `supervised.predicted_cost`).

    Raises:
        QAgentError: the shop's log holds too little to learn from, or a name is taken.
    """
    config, agent = config or PretrainConfig(), agent or AgentConfig()
    folder = shop.folder("policies", name)
    if folder.exists():
        raise QAgentError(f"the policy {name} exists; choose another --name or delete {folder}")
    start = time.perf_counter()
    index = open_index(shop)
    # Profiles take longest where a log is long, and no other split is learned from.
    train = of_split(build_cases(shop.connection, split, after=index.clicks_until), "train")
    words: Any = _Words()
    drafted = Environment.of_cases(shop, _spread(train), words, agent, index)
    texts = shop_texts(shop, drafted, agent, train[-1].as_of)
    tokenizer = train_tokenizer(texts, config.vocab_size)
    environment = Environment.of_cases(shop, train, ShopCodec(tokenizer), agent, index)
    policy, model_config = new_policy(tokenizer, config.size, name, config.seed)
    policy.info.agent = agent
    report = fit_pretraining(policy, environment, config, on_step, on_cost)
    policy.info.trained.append(
        {
            "stage": "pretrain",
            "config": asdict(config),
            "shop": shop.config.name,
            "cases": len(environment.of_split("train")),
            **report,
        }
    )
    save_base(policy, tokenizer, model_config, folder)
    return {
        "policy": name,
        "steps": config.steps,
        "parameters": policy.parameters,
        **report,
        "seconds": round(time.perf_counter() - start, 1),
        "tokens_per_s": round(report["tokens"] / max(report["seconds"], 1e-9)),
    }


def fit_pretraining(
    policy: Policy,
    environment: Environment,
    config: PretrainConfig,
    on_step: Callable[[dict[str, float]], None] | None = None,
    on_cost: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train all weights of a policy on demonstrations of the training split."""
    demonstrator = Demonstrator(
        environment,
        policy,
        policy.info.agent,
        DemoConfig(
            drop_lines=config.drop_lines,
            read=config.read,
            disguise=config.disguise,
            words=config.words,
        ),
    )
    usable = demonstrator.usable(environment.of_split("train"))
    if len(usable) < config.batch_size:
        raise QAgentError(
            f"only {len(usable)} training cases have a line in memory that was right; "
            "ingest a longer log"
        )

    def make(i: int, step: int) -> TrainingSequence:
        return demonstrator.chain(*usable[i], np.random.default_rng([config.seed, step, i]), i)

    if on_cost is not None:
        first = batch_order(len(usable), config.batch_size, config.seed, 0)
        on_cost(predicted_cost(policy, [make(i, 0) for i in first], config.steps))
    return fit(
        policy,
        make,
        len(usable),
        FitConfig(config.steps, config.batch_size, config.learning_rate, seed=config.seed),
        on_step,
    )
