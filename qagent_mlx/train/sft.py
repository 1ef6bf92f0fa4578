"""SFT cold start: a LoRA adapter learns the protocol from demonstration chains."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import QAgentError
from ..policy.model import AgentConfig, LoraConfig
from ..policy.registry import derive
from ..shop import Shop
from .cases import SplitConfig
from .demonstrations import DemoConfig, Demonstrator
from .environment import Environment, mean_reward
from .rewards import WEIGHTS
from .runs import Run, free_name
from .supervised import FitConfig, fit


@dataclass(frozen=True)
class SftConfig:
    """How the cold start is done."""

    steps: int = 60
    batch_size: int = 32
    learning_rate: float = 5e-4
    compare: float = 0.1
    seed: int = 0
    measured: int = 100  # validation cases for the reward before and after
    lora: LoraConfig = field(default_factory=LoraConfig)


def train_sft(
    shop: Shop,
    policy: str = "base",
    name: str = "sft",
    config: SftConfig | None = None,
    agent: AgentConfig | None = None,
    split: SplitConfig | None = None,
    run: str | None = None,
    environment: Environment | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train an adapter on demonstrations and save it as ``policies/<name>``.

    Args:
        shop: With an index.
        policy: What to start from: a policy of the shop or a model folder.
        name: What the new policy is called; an older one of that name is replaced.
        config: Length and speed of training.
        agent: How chains run; by default as the base policy's.
        split: Which cases are trained on.
        environment: Cases that are at hand already; made from the shop by default.
        run: Name of the run; ``name`` by default.
        on_step: Called after each step with its numbers.

    Returns:
        run, policy, steps, reward_first, reward_last (mean greedy reward of validation
        cases before and after), seconds, tokens_per_s.
    """
    config = config or SftConfig()
    start = time.perf_counter()
    trained = derive(shop, policy, name, config.lora, config.seed)
    agent = agent or trained.info.agent
    trained.info.agent = agent
    environment = environment or Environment.of_shop(shop, trained.codec, agent, split)
    record = Run.create(
        shop, run or free_name(shop, name),
        {"kind": "sft", "policy": name, "base": policy, "train": asdict(config),
         "agent": asdict(agent), "cases": len(environment.of_split("train"))},
    )
    demonstrator = Demonstrator(
        environment, trained, agent,
        DemoConfig(compare=config.compare, noise=0.0, reachable=True),
    )
    usable = demonstrator.usable(environment.of_split("train"))
    if not usable:
        raise QAgentError(
            "no training case has a line in memory that was right; ingest a longer log"
        )
    validation = environment.of_split("validation")[: config.measured]
    before = mean_reward(environment, trained, validation, WEIGHTS)

    def note(row: dict[str, float]) -> None:
        record.append("metrics", [row])
        if on_step is not None:
            on_step(row)

    report = fit(
        trained,
        lambda i, step: demonstrator.chain(
            *usable[i], np.random.default_rng([config.seed, step, i]), i
        ),
        len(usable),
        FitConfig(
            config.steps, min(config.batch_size, len(usable)), config.learning_rate,
            warmup=10, seed=config.seed,
        ),
        note,
    )
    after = mean_reward(environment, trained, validation, WEIGHTS)
    trained.info.trained.append({"stage": "sft", "run": record.name, "config": asdict(config)})
    trained.save(shop.folder("policies", name))
    summary = {
        "run": record.name,
        "policy": name,
        "steps": config.steps,
        "reward_first": before,
        "reward_last": after,
        "loss_first": report["loss_first"],
        "loss_last": report["loss_last"],
        "seconds": round(time.perf_counter() - start, 1),
        "tokens_per_s": round(report["tokens"] / max(report["seconds"], 1e-9)),
    }
    record.finish(summary)
    return summary
