"""What training adds to prompting: one chat model with the same tools and turns, untrained.

    python tests/benchmarks/prompting.py SHOP --model smollm2-135m --tune 40 --limit 100 \\
        [--against smol-grpo] [--scenario own_only]

Every wording of the instructions and of the worked example is measured on validation cases; the one
with the most reward is then measured on test cases, beside policies that were trained from the same
model (``--against``) and memory's lines. So the control is the best prompt that was found, not the
first one. Prints a JSON document.
"""

from __future__ import annotations

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from qagent_mlx.environment.cases import evenly_spaced
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.environment.rewards import COMPONENTS, WEIGHTS, component_rewards, weighted_reward
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.metrics import score_case
from qagent_mlx.evaluate.report import evaluated_cases
from qagent_mlx.evaluate.suite import evaluation_suite
from qagent_mlx.policy.policy import Policy
from qagent_mlx.policy.registry import open_policy
from qagent_mlx.protocol import actions, codec
from qagent_mlx.shop.shop import Shop

METRICS = ("q_em", "i_hit@1", "cons@1", "row_hit@10", "own_words", "searches", "valid")
STOCK = (
    "\nA product marked out is sold out. Never recommend a search whose first product is out: "
    "search the next line, or write a narrower query, until a product in stock comes first."
)
EXAMPLES = {
    "points": (actions.INSTRUCTIONS, actions.WORKED_EXAMPLE),
    "writes": (actions.WRITING_INSTRUCTIONS, actions.WRITING_EXAMPLE),
}
# Name -> which example, and what is added to its instructions.
WORDINGS: dict[str, tuple[str, str]] = {
    "points": ("points", ""),
    "points, stock": ("points", STOCK),
    "writes": ("writes", ""),
    "writes, stock": ("writes", STOCK),
}


def wording(name: str) -> mock._patch_dict:
    """A context in which prompts are worded so, whether an agent writes or not."""
    example, added = WORDINGS[name]
    instructions, turns = EXAMPLES[example]
    changed = {"INSTRUCTIONS": instructions + added, "WORKED_EXAMPLE": turns}
    changed |= {f"WRITING_{key.removeprefix('WORKED_')}": v for key, v in changed.items()}
    return mock.patch.dict(codec.__dict__, changed)


def reward(environment: Environment, policy: Policy, limit: int, seed: int) -> float:
    """Mean reward of one sampled chain for each of some validation cases."""
    examples = evenly_spaced(environment.of_split("validation"), limit)
    runner = environment.rollout_runner(policy, policy.info.agent, guided=True)
    total = []
    for example, rollout in zip(
        examples, runner.run([e.task for e in examples], 1, (seed,)), strict=True
    ):
        rewards = component_rewards(environment.outcome(rollout, example.case), COMPONENTS)
        total.append(weighted_reward(rewards, WEIGHTS))
    return float(np.mean(total))


def measured(
    shop: Shop, policies: list[str], config: EvaluationConfig, split: SplitConfig
) -> dict[str, dict[str, float]]:
    """Percent of each metric on test cases, by the system's name."""
    suite = evaluation_suite(shop, policies, config, split)
    examples = evaluated_cases(suite.environment.of_split("test"), config)
    found = {}
    for system in suite.systems:
        rows = [
            score_case(suite.environment, e.case, ranking, e.profile.references)
            for e, ranking in zip(examples, system.rank(examples, config.k), strict=True)
        ]
        found[system.name] = {
            name: round(100 * float(np.mean([row[name] for row in rows])), 2) for name in METRICS
        }
        print(system.name, found[system.name], file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Tune on validation, measure on test."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shop", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--scenario", default="full")
    parser.add_argument("--tune", type=int, default=40, help="validation cases for each wording")
    parser.add_argument("--limit", type=int, default=100, help="test cases")
    parser.add_argument("--group", type=int, default=1, help="chains a test case")
    parser.add_argument("--against", nargs="*", default=[], help="policies that were trained")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    split = SplitConfig(scenario=given.scenario)
    config = EvaluationConfig("validation", limit=given.tune)
    with Shop.open(given.shop) as shop:
        environment = evaluation_suite(shop, [given.model], config, split).environment
        tuned, prompts = {}, set()
        for name in WORDINGS:
            with wording(name):
                policy = open_policy(shop, given.model)  # keeps the prompt that it began with
                prompts.add(tuple(policy.prompt))
                tuned[name] = reward(environment, policy, given.tune, given.seed)
            print(f"{name}: {tuned[name]:.3f}", file=sys.stderr, flush=True)
        assert len(prompts) == len(WORDINGS), "a wording did not reach the prompt"
        best = max(tuned, key=lambda name: tuned[name])
        config = EvaluationConfig(limit=given.limit, group=given.group, baselines=())
        found: dict[str, Any] = {}
        with wording(best):
            name = f"{given.model}, prompted ({best})"
            found[name] = measured(shop, [given.model], config, split)[given.model]
        baselines = replace(config, baselines=("top-line", "in-stock"))
        found |= measured(shop, given.against, baselines, split)
    print(json.dumps({"validation": tuned, "best": best, "test": found}))


if __name__ == "__main__":
    main()
