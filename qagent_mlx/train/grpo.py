"""GRPO for a search agent, from top to bottom.

One step of `Trainer.step`:

1. take a batch of cases and roll out a group of G chains for each, all decoded together,
   with every search answered by the inventory as it was at the case's moment;
2. score each chain by component: format, tool, query, item, consistency;
3. turn rewards into advantages within each group (GDPO, GRPO or Dr. GRPO); groups in which
   all chains scored the same are dropped and counted;
4. maximise  min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) - beta * KL(policy | reference)
   over the tokens that the policy chose, averaged over tokens (arXiv:2402.03300,
   clip-higher and token averaging from arXiv:2503.14476).

Tokens that tools inserted carry no loss. Sampling is from the very distribution that is
scored (temperature 1), so the first ratio is 1. The reference is the same model with its
adapters switched off.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

from ..agent.rollout import Rollout
from ..errors import QAgentError
from ..policy.model import AgentConfig, LoraConfig, Policy
from ..policy.registry import derive
from ..shop import Shop
from . import checkpoint
from .advantages import ESTIMATORS, signal
from .batches import Batch, Chain, entropy, make_batch, micro_batches, token_logprobs
from .cases import SplitConfig
from .demonstrations import DemoConfig, Demonstrator
from .environment import Environment, Example, mean_reward
from .rewards import COMPONENTS, WEIGHTS, Component, score, total
from .runs import Run, free_name
from .supervised import batch_order


@dataclass(frozen=True)
class GrpoConfig:
    """All settings of a run, with the defaults that measured best (see README)."""

    steps: int = 100
    cases_per_step: int = 16
    group: int = 8
    learning_rate: float = 2e-4
    warmup: int = 5
    advantage: str = "dr_grpo"
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    clip_low: float = 0.2
    clip_high: float = 0.28
    beta: float = 0.02
    epochs: int = 1
    max_grad_norm: float = 1.0
    token_budget: int = 8192  # padded tokens of one micro-batch
    solvable: bool = True  # train on cases in which some line of memory was right
    seed: int = 0
    save_every: int = 25
    keep: int = 2
    logged_groups: int = 2  # groups a step whose chains are written to rollouts.jsonl
    measured: int = 100  # validation cases for the reward before and after
    lora: LoraConfig = field(default_factory=LoraConfig)

    def check(self) -> None:
        """Refuse settings that cannot train anything.

        Raises:
            QAgentError: names the setting and what it may be.
        """
        if self.advantage not in ESTIMATORS:
            raise QAgentError(
                f"--advantage {self.advantage}: choose one of {', '.join(ESTIMATORS)}"
            )
        if self.group < 2:
            raise QAgentError("--group must be at least 2: advantages compare chains in a group")
        if self.steps < 1 or self.cases_per_step < 1 or self.epochs < 1:
            raise QAgentError("steps, cases per step and epochs must be at least 1")
        unknown = sorted(set(self.weights) - set(COMPONENTS))
        if unknown and not any(self.weights.get(name) for name in COMPONENTS):
            raise QAgentError(f"no known reward has a weight; known are {', '.join(COMPONENTS)}")


class Trainer:
    """A policy that learns by GRPO in an environment."""

    def __init__(
        self,
        policy: Policy,
        environment: Environment,
        config: GrpoConfig,
        components: dict[str, Component] | None = None,
    ) -> None:
        config.check()
        self.policy, self.environment, self.config = policy, environment, config
        self.components = components or COMPONENTS
        self.weights = np.array([config.weights.get(n, 0.0) for n in self.components])
        self.optimizer = optim.AdamW(learning_rate=config.learning_rate, weight_decay=0.0)
        self.optimizer.init(policy.model.trainable_parameters())
        self.roller = environment.roller(policy, policy.info.agent)
        self.examples = environment.of_split("train")
        if config.solvable:
            # A case whose answer stands nowhere in memory gives every chain the same reward.
            demonstrator = Demonstrator(environment, policy, policy.info.agent, DemoConfig())
            self.examples = [example for example, _ in demonstrator.usable(self.examples)]
        if not self.examples:
            raise QAgentError("there is no training case to learn from; ingest a longer log")

    # ------------------------------------------------------------ one step

    def step(self, number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One step of GRPO; a function of the weights, the seed and the step's number.

        Returns:
            The step's metrics, and rows that describe some of its chains.
        """
        config = self.config
        began = time.perf_counter()
        chosen = batch_order(
            len(self.examples), min(config.cases_per_step, len(self.examples)),
            config.seed, number,
        )
        examples = [self.examples[i] for i in chosen]

        self.policy.model.eval()
        rollouts = self.roller.run([e.task for e in examples], config.group, (config.seed, number))
        rolled = time.perf_counter()

        rewards = self.rewards(rollouts, examples)
        advantages = ESTIMATORS[config.advantage](rewards, self.weights)
        alive = signal(rewards, self.weights)
        kept = [
            (rollout, float(advantage))
            for rollout, advantage, group_alive in zip(
                rollouts, advantages.reshape(-1), np.repeat(alive, config.group), strict=True
            )
            if group_alive
        ]
        update = self.update(kept, number) if kept else {}

        tokens = sum(len(r.tokens) for r in rollouts)
        seconds = time.perf_counter() - began
        weighted = rewards @ self.weights / max(self.weights.sum(), 1e-9)
        metrics: dict[str, Any] = {
            "step": number + 1,
            "reward": float(weighted.mean()),
            **{
                f"reward_{name}": float(rewards[..., i].mean())
                for i, name in enumerate(self.components)
            },
            "dropped_groups": int((~alive).sum()),
            "advantage_variance": float(advantages[alive].var()) if alive.any() else 0.0,
            "searches": float(np.mean([r.searches for r in rollouts])),
            "sampled_tokens": sum(sum(r.sampled) for r in rollouts),
            "tokens": tokens,
            **update,
            "rollout_seconds": rolled - began,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
        }
        return metrics, self._described(number, rollouts, examples, rewards, advantages)

    def rewards(self, rollouts: Sequence[Rollout], examples: Sequence[Example]) -> np.ndarray:
        """Rewards by component: (groups, G, components)."""
        group = len(rollouts) // len(examples)
        scored = [
            score(self.environment.outcome(rollout, examples[i // group].case), self.components)
            for i, rollout in enumerate(rollouts)
        ]
        flat = np.array([[row[name] for name in self.components] for row in scored])
        return flat.reshape(len(examples), group, len(self.components))

    def update(self, kept: Sequence[tuple[Rollout, float]], number: int) -> dict[str, float]:
        """Gradient steps on chains with their advantages."""
        config = self.config
        # Equal chains of a group have equal rewards and advantages: one is computed for all.
        copies = Counter((r.case, tuple(r.tokens), a) for r, a in kept)
        distinct = {(r.case, tuple(r.tokens), a): r for r, a in kept}
        rollouts = list(distinct.values())
        chains = [Chain(r.tokens, r.trained_mask, r.case) for r in rollouts]
        pieces = micro_batches(chains, config.token_budget)
        batches = [make_batch([chains[i] for i in piece]) for piece in pieces]
        advantages = np.array([a for _, _, a in distinct], dtype=np.float32)
        weights = np.array([copies[key] for key in distinct], dtype=np.float32)
        owners = [np.array(piece)[batch.row] for piece, batch in zip(pieces, batches, strict=True)]
        advantage = [mx.array(advantages[owner]) for owner in owners]
        weight = [mx.array(weights[owner]) for owner in owners]
        sampled = [
            mx.array(np.array(
                [v for i in piece for v in rollouts[i].sampled_logprobs], dtype=np.float32
            ))
            for piece in pieces
        ]
        count = int(sum(weights[owner].sum() for owner in owners))
        reference: list[mx.array] = []
        if config.beta:
            with self.policy.reference():
                for batch in batches:
                    value, _ = token_logprobs(self.policy, batch)
                    mx.eval(value)
                    reference.append(value)

        sums = dict.fromkeys(("loss", "kl", "entropy", "clipped"), 0.0)
        drift = 0.0
        norm = mx.array(0.0)
        for epoch in range(config.epochs):
            gradient: Any = None
            for i, batch in enumerate(batches):
                (loss, parts), grad = self._value_and_grad(
                    batch, advantage[i], weight[i] / count, sampled[i],
                    reference[i] if reference else None,
                )
                gradient = grad if gradient is None else tree_map(mx.add, gradient, grad)
                mx.eval(gradient, loss, parts)
                if epoch == 0:
                    drift = max(drift, float(parts["drift"]))
                for name in sums:
                    part = float(loss if name == "loss" else parts[name])
                    sums[name] += part / config.epochs
            if epoch == 0 and number == 0:
                self._check_first(drift, gradient)
            gradient, norm = optim.clip_grad_norm(gradient, config.max_grad_norm)
            self.optimizer.learning_rate = config.learning_rate * min(
                1.0, (number + 1) / max(1, config.warmup)
            )
            self.optimizer.update(self.policy.model, gradient)
            mx.eval(self.policy.model.trainable_parameters(), self.optimizer.state)
        return {**sums, "grad_norm": float(norm), "ratio_drift": drift}

    def _value_and_grad(
        self,
        batch: Batch,
        advantage: mx.array,
        weight: mx.array,
        sampled: mx.array,
        reference: mx.array | None,
    ) -> Any:
        """((loss, parts), gradient) of one micro-batch; all but ``batch`` is (tokens,).

        ``weight`` is a token's share in the average over all tokens of the step.
        """
        config = self.config

        def loss_of(model: nn.Module) -> tuple[mx.array, dict[str, mx.array]]:
            logprob, logits = token_logprobs(self.policy, batch)
            ratio = mx.exp(logprob - sampled)
            clipped = mx.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
            gain = mx.minimum(ratio * advantage, clipped * advantage)
            kl = mx.zeros_like(logprob)
            if reference is not None:
                # k3: unbiased, never negative (Schulman, 2020).
                kl = mx.exp(reference - logprob) - (reference - logprob) - 1
            parts = {
                "kl": (weight * kl).sum(),
                "entropy": (weight * entropy(mx.stop_gradient(logits))).sum(),
                "clipped": (weight * (clipped != ratio)).sum(),
                "drift": mx.abs(logprob - sampled).max(),
            }
            return -(weight * (gain - config.beta * kl)).sum(), parts

        return nn.value_and_grad(self.policy.model, loss_of)(self.policy.model)

    def _check_first(self, drift: float, gradient: Any) -> None:
        """No silent no-learning: what is wrong on the first step is wrong on all of them."""
        if drift > 0.05:
            raise QAgentError(
                f"the policy scores its own samples differently (log-probability off by "
                f"{drift:.3f}); use --dtype float32, or report this with the model's name"
            )
        norms = [float(mx.abs(g).max()) for g in dict(tree_flatten(gradient)).values()]
        if not norms or max(norms) == 0.0:
            raise QAgentError(
                "the first gradient is zero: nothing would be learned; check the adapter's "
                "layers (--lora-blocks) and the reward weights"
            )
        if not np.isfinite(norms).all():
            raise QAgentError("the first gradient is not finite; lower the learning rate")

    def _described(
        self,
        number: int,
        rollouts: Sequence[Rollout],
        examples: Sequence[Example],
        rewards: np.ndarray,
        advantages: np.ndarray,
    ) -> list[dict[str, Any]]:
        group = self.config.group
        rows = []
        for i, rollout in enumerate(rollouts[: self.config.logged_groups * group]):
            case = examples[i // group].case
            parts = rewards[i // group, i % group]
            rows.append(
                {
                    "step": number + 1,
                    "case_id": case.case_id,
                    "user": case.user_id,
                    "member": rollout.member,
                    "wanted": case.query,
                    "recommended": rollout.query,
                    "finish": rollout.finish,
                    "reward": total(
                        dict(zip(self.components, parts.tolist(), strict=True)),
                        self.config.weights,
                    ),
                    "rewards": dict(zip(self.components, parts.tolist(), strict=True)),
                    "advantage": float(advantages[i // group, i % group]),
                    "tokens": len(rollout.tokens),
                    "sampled_tokens": sum(rollout.sampled),
                    "chain": self.policy.codec.decode(rollout.tokens),
                }
            )
        return rows


# ---------------------------------------------------------------- a whole run


def train_grpo(
    shop: Shop,
    policy: str = "sft",
    name: str = "grpo",
    config: GrpoConfig | None = None,
    agent: AgentConfig | None = None,
    split: SplitConfig | None = None,
    run: str | None = None,
    environment: Environment | None = None,
    components: dict[str, Component] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a policy by GRPO and save it as ``policies/<name>``.

    The shop's database is only read at the start; afterwards it may be written to.

    Args:
        shop: With an index.
        policy: What to start from; it is also the reference.
        name: What the new policy is called; an older one of that name is replaced.
        config: All settings.
        agent: How chains run; by default as the parent policy's.
        split: Which cases are trained on.
        environment: Cases that are at hand already; made from the shop by default.
        run: Name of the run; ``name`` (with a number when taken) by default.
        components: Rewards by name; `rewards.COMPONENTS` by default.
        on_step: Called after each step with its metrics.

    Returns:
        run, policy, steps, reward_first, reward_last (mean weighted reward of sampled
        chains over the first and last tenth of the steps), seconds, tokens_per_s.
    """
    config = config or GrpoConfig()
    config.check()
    trained = derive(shop, policy, name, config.lora, config.seed)
    trained.info.agent = agent or trained.info.agent
    environment = environment or Environment.of_shop(
        shop, trained.codec, trained.info.agent, split
    )
    record = Run.create(
        shop, run or free_name(shop, name),
        {"kind": "grpo", "policy": name, "base": policy, "train": asdict(config),
         "agent": asdict(trained.info.agent), "catalog_version": shop.catalog_version,
         "rewards": list(components or COMPONENTS)},
    )
    environment.save(record.folder)
    shop.close()
    # The adapter's first values are random: a resumed run needs them too.
    trainer = Trainer(trained, environment, config, components)
    checkpoint.save(record.folder / "checkpoints", 0, trained, trainer.optimizer, {}, config.keep)
    return _run(shop, record, trainer, 0, on_step)


def resume_grpo(
    shop: Shop,
    run: str,
    steps: int | None = None,
    components: dict[str, Component] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Go on with a run from its last checkpoint, exactly as if it had never stopped.

    Args:
        shop: The run's shop; its database is not needed.
        run: The run's name.
        steps: Train up to this many steps instead of what the run was started with.
        components: Must be what the run was started with, when it used its own.
        on_step: Called after each step with its metrics.
    """
    record = Run.open(shop, run)
    stored = record.config
    if stored.get("kind") != "grpo":
        raise QAgentError(f"the run {run} is {stored.get('kind')}; only grpo runs resume")
    if sorted(stored["rewards"]) != sorted(components or COMPONENTS):
        raise QAgentError(
            f"the run {run} was started with the rewards {', '.join(stored['rewards'])}; "
            "give the same --reward again"
        )
    values = dict(stored["train"])
    lora = dict(values.pop("lora"))
    lora["keys"] = tuple(lora["keys"])
    if steps is not None:
        values["steps"] = steps
    config = GrpoConfig(**values, lora=LoraConfig(**lora))
    trained = derive(shop, stored["base"], stored["policy"], config.lora, config.seed)
    agent = dict(stored["agent"])
    agent["sections"] = tuple(agent["sections"])
    trained.info.agent = AgentConfig(**agent)
    environment = Environment.restore(record.folder, shop.path / "inventory", shop.config.search)
    if environment.search.index.manifest["catalog_version"] != stored["catalog_version"]:
        raise QAgentError(
            f"the catalog has changed since the run {run} began, so it cannot go on exactly; "
            "start a new run"
        )
    trainer = Trainer(trained, environment, config, components)
    state = checkpoint.restore(record.folder / "checkpoints", trained, trainer.optimizer)
    if state is None:
        raise QAgentError(f"the run {run} has no checkpoint yet; start it again")
    record.rewind(state["step"])
    return _run(shop, record, trainer, state["step"], on_step)


def _run(
    shop: Shop,
    record: Run,
    trainer: Trainer,
    first: int,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    config, policy = trainer.config, trainer.policy
    start = time.perf_counter()
    before = {k: mx.array(v) for k, v in policy.adapter().items()} if first == 0 else None
    for number in range(first, config.steps):
        metrics, chains = trainer.step(number)
        if number == 0 and before is not None and metrics.get("grad_norm"):
            _check_changed(before, policy)
        record.append("metrics", [metrics])
        record.append("rollouts", chains)
        if (number + 1) % config.save_every == 0 or number + 1 == config.steps:
            checkpoint.save(
                record.folder / "checkpoints", number + 1, policy, trainer.optimizer, {},
                config.keep,
            )
        if on_step is not None:
            on_step({**metrics, "steps": config.steps})
    policy.info.trained.append(
        {"stage": "grpo", "run": record.name, "config": asdict(config)}
    )
    policy.model.eval()
    policy.save(shop.folder("policies", policy.info.name))
    rows = list(record.rows("metrics"))
    tenth = max(1, len(rows) // 10)
    validation = trainer.environment.of_split("validation")[: config.measured]
    summary = {
        "run": record.name,
        "policy": policy.info.name,
        "steps": len(rows),
        "reward_first": float(np.mean([r["reward"] for r in rows[:tenth]])),
        "reward_last": float(np.mean([r["reward"] for r in rows[-tenth:]])),
        "validation_reward": mean_reward(
            trainer.environment, policy, validation, config.weights
        ),
        "dropped_groups": sum(r["dropped_groups"] for r in rows),
        "seconds": round(time.perf_counter() - start, 1),
        "tokens_per_s": round(sum(r["tokens"] for r in rows) / sum(r["seconds"] for r in rows)),
    }
    record.finish(summary)
    return summary


def _check_changed(before: dict[str, mx.array], policy: Policy) -> None:
    after = policy.adapter()
    if all(bool(mx.array_equal(before[name], after[name])) for name in before):
        raise QAgentError(
            "the first step changed no weight: nothing would be learned; raise the learning rate"
        )


