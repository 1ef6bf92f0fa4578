"""Pretraining: a tokenizer and a small decoder, made from nothing but a shop's own data.

The new model learns whole demonstration chains, both what the agent writes (all of it) and
what it reads (a share of it). Reading matters: with a loss on its own actions only, a model
from scratch does not learn to look at the results in any time that a CPU gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from ..agent.tools import SearchProducts, SearchRequest
from ..environment.cases import of_split
from ..environment.config import SplitConfig
from ..environment.environment import Environment
from ..environment.scenarios import open_scenario
from ..errors import QAgentError
from ..memory.profile import count_words
from ..policy.batches import TrainingSequence
from ..policy.policy import Policy
from ..policy.registry import save_next
from ..policy.small_llama import new_policy, save_base
from ..protocol.actions import profile_text, results_text
from ..protocol.codec import ShopCodec, train_tokenizer
from ..protocol.config import AgentConfig
from ..runs.loop import OnStep
from ..shop.shop import Shop, check_name
from ..utils import settings
from .config import PretrainConfig
from .demonstrations import DemoConfig, Demonstrator, how_to_get_cases
from .fit import (
    FitConfig,
    FitReport,
    LikelihoodTrainer,
    TrainingCost,
    batch_order,
    fit,
    predicted_cost,
)

T = TypeVar("T")
OnCost = Callable[[TrainingCost], None]


@dataclass(frozen=True)
class PretrainReport(FitReport):
    """What came of a pretraining."""

    parameters: int
    cases: int  # of the training split


def pretrain(
    shop: Shop,
    name: str = "base",
    config: PretrainConfig | None = None,
    agent: AgentConfig | None = None,
    split: SplitConfig | None = None,
    on_step: OnStep | None = None,
    on_cost: OnCost | None = None,
) -> PretrainReport:
    """Train a new policy on a shop and save it as the next version of ``name``.

    Args:
        shop: With products, events and an index.
        name: What the policy is called.
        config: Size and length of training.
        agent: How its chains run.
        split: Only cases of the training split are learned from.
        on_step: Called after each step with its numbers.
        on_cost: Called before the first step with what the training will cost.

    Raises:
        QAgentError: the shop's log holds too little to learn from, or the name cannot be one.
    """
    config, agent = config or PretrainConfig(), agent or AgentConfig()
    settings.check(config)
    check_name(name, "policy")
    start = time.perf_counter()
    tokenizer, environment = _tokenizer_and_environment(shop, config, agent, split)
    policy, model_config = new_policy(tokenizer, config.size, name, config.seed)
    policy.info = replace(policy.info, agent=agent)
    trainer = pretraining(policy, environment, config)
    if on_cost is not None:
        first = batch_order(trainer.count, config.batch_size, config.seed, 0)
        sequences = [trainer.make_sequence(i, 0) for i in first]
        on_cost(predicted_cost(policy, sequences, config.steps))
    report = fit(trainer, on_step)
    cases = len(environment.of_split("train"))
    policy.info = policy.info.with_stage(
        stage="pretrain",
        config=asdict(config),
        shop=shop.config.name,
        cases=cases,
        demonstrated=report.demonstrated,
        loss_first=report.loss_first,
        loss_last=report.loss_last,
        seconds=report.seconds,
        tokens=report.tokens,
    )
    version = save_next(
        shop, policy, lambda folder: save_base(policy, tokenizer, model_config, folder)
    )
    seconds = round(time.perf_counter() - start, 1)
    total = {
        "seconds": seconds,
        "parameters": policy.parameters,
        "version": version,
        "cases": cases,
    }
    return PretrainReport(**report.to_dict() | total)


def pretraining(
    policy: Policy, environment: Environment, config: PretrainConfig
) -> LikelihoodTrainer:
    """Trains all weights of a policy on demonstrations of the training split."""
    demo = DemoConfig(
        drop_lines=config.drop_lines, read=config.read, disguise=config.disguise, words=config.words
    )
    demonstrator = Demonstrator(environment, policy, policy.info.agent, demo)
    targets = demonstrator.targets(environment.of_split("train"))
    if len(targets) < config.batch_size:
        raise QAgentError(
            f"only {len(targets)} training cases have a relevant line in memory; "
            f"{how_to_get_cases(policy.info.agent)}"
        )

    def make_sequence(index: int, step: int) -> TrainingSequence:
        random = np.random.default_rng([config.seed, step, index])
        return demonstrator.demonstrate(targets[index], random, index)

    fit_config = FitConfig(config.steps, config.batch_size, config.learning_rate, seed=config.seed)
    return LikelihoodTrainer(policy, make_sequence, len(targets), fit_config)


class _WordCounter:
    """Stands in for a codec while there is no tokenizer: a token a word."""

    def count(self, texts: Sequence[str]) -> list[int]:
        return count_words(texts)


def _tokenizer_and_environment(
    shop: Shop, config: PretrainConfig, agent: AgentConfig, split: SplitConfig | None
) -> tuple[Tokenizer, Environment]:
    """A tokenizer of the shop's texts, and the training cases as it reads them."""
    scenario = open_scenario(shop, split)
    # Profiles take longest where a log is long, and no other split is learned from.
    train = of_split(scenario.cases, "train")
    counter: Any = _WordCounter()
    draft = Environment.of_scenario(scenario, thinned(train), counter, agent)
    texts = shop_texts(scenario.shop, draft, agent, train[-1].as_of)
    tokenizer = train_tokenizer(texts, config.vocab_size)
    return tokenizer, Environment.of_scenario(scenario, train, ShopCodec(tokenizer), agent)


def shop_texts(
    shop: Shop, environment: Environment, agent: AgentConfig, until: datetime
) -> list[str]:
    """What a shop's tokenizer is trained on.

    Memory and results as the agent sees them, titles, categories, and the queries of the
    training time, which ends at ``until`` (where they may reach others than who typed them).
    """
    tools = SearchProducts(environment.search, agent)
    texts = []
    for example in thinned(environment.of_split("train")):
        profile, as_of = example.profile, example.case.as_of
        texts.append(profile_text(profile))
        requests = [SearchRequest(q, as_of, profile.context) for q in profile.references[:2]]
        texts += [results_text(1, results.lines) for results in tools.run(requests)]
    texts += environment.search.catalog.titles
    texts += [c for c in environment.search.catalog.categories if c]
    if shop.config.memory.own_only:
        return texts
    queries = shop.connection.execute(
        "SELECT query FROM events WHERE type = 'search' AND ts < ? ORDER BY event_id", [until]
    ).fetchall()
    return texts + [query for (query,) in queries]


def thinned(cases: Sequence[T]) -> Sequence[T]:
    """Evenly spaced cases, less than 3,000 of them."""
    return cases[:: max(1, len(cases) // 1500)]
