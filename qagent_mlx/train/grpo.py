"""GRPO for a search agent, from top to bottom.

One step of `GrpoTrainer.step`:

1. take a batch of cases (by default those whose answer memory offers, `GrpoConfig.solvable`) and
   roll out a group of G chains for each, all decoded together, with every search answered by the
   inventory as it was at the case's moment; with dynamic sampling, more cases take the place of
   groups that teach nothing;
2. score each chain by component: format, tool, query, item, consistency, and your own; with
   ``row``, by what it adds to the best of so many chains of its group;
3. turn rewards into advantages within each group (Dr. GRPO's by default, or GRPO's or GDPO's, see
   `advantages`), and with ``step_credit`` compare actions in the same state, too (GiGPO's, see
   `step_credit`); groups whose advantages are all 0 are dropped and counted, and a step without
   any other changes nothing, not even the optimizer; with ``thinning``, of groups with small
   advantages a random part stands for all;
4. maximise  min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) - beta * KL(policy | reference)
   over the tokens that the policy chose, averaged as DAPO does by default, or as GRPO, Dr. GRPO or
   GSPO do (see `losses`): one optimizer step over all of them, or ``epochs`` such steps.

Tokens that tools inserted carry no loss. Sampling is from the very distribution that is scored
(temperature 1), so in full precision the first ratio is 1. The reference is the same model with
its adapters switched off, and stays what it is. Runs, checkpoints and evaluations are the concern
of `runs.loop`; `grpo_run.train_grpo` begins a training.

Whoever comes from another trainer may miss: averages are over the chains of groups with a signal,
so a dropped group makes no step smaller (elsewhere it counts with advantages of 0, and its KL,
too); chains of a step are not split into several optimizer steps; there is no dropout and no
weight decay.

Shapes: C cases in a step, G chains in a group, R reward components, T trained tokens of a
micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ..agent.types import Rollout
from ..distributed.world import current_world, gather_rollouts
from ..environment.cases import evenly_spaced
from ..environment.environment import Environment, Example, evaluate_policy
from ..environment.rewards import COMPONENTS, Component, component_rewards
from ..policy import scoring
from ..policy.policy import Policy
from ..policy.scoring import Scores
from ..runs.loop import Algorithm, Interrupt, StepResult, never
from ..utils.runtime import release_memory
from .advantages import ESTIMATORS, differs, has_signal, row_gains
from .demonstrations import training_examples
from .fit import batch_order, update_weights
from .groups import CreditedChain, Groups, ScoredGroups
from .grpo_batches import MicroBatchTargets, training_batches
from .grpo_config import GrpoConfig
from .losses import clipped_surrogate, importance_ratios, k3, overlong_penalty
from .step_credit import action_advantages


class GrpoTrainer(Algorithm):
    """Trains a policy by GRPO in an environment.

    Args:
        policy: With an adapter. Switched off, it leaves the reference: the policy that training
            begins from, whose own adapter is merged into the weights (see `registry.derive`).
        environment: Cases, inventory, and what users then did.
        config: All settings.
        components: Rewards by name; `rewards.COMPONENTS` by default.
    """

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
        config.check_weights(self.components)
        self.world = current_world()
        self.optimizer = optim.AdamW(learning_rate=config.learning_rate, weight_decay=0.0)
        self.optimizer.init(policy.model.trainable_parameters())
        self.open_environment()

    def open_environment(self) -> None:
        """Take what runs chains, and the cases to learn from."""
        environment, policy = self.environment, self.policy
        self.runner = environment.rollout_runner(policy, policy.info.agent)
        self.examples = training_examples(environment, policy, self.config.solvable)

    def step(self, number: int, interrupt: Interrupt = never) -> StepResult:
        """Take one step of GRPO; the state of policy and optimizer and the number determine it."""
        config, start = self.config, time.perf_counter()
        self.policy.model.eval()  # no dropout, here or in the update: it would change the ratio
        component_weights = self.component_weights(number)  # R
        groups = self.sample(number, component_weights, interrupt)  # C groups of G chains
        rollout_seconds = time.perf_counter() - start
        interrupt()
        scored = self.score(groups, component_weights)
        chains = scored.training_chains()
        update = self.update(chains, number, interrupt) if chains else {}
        metrics = {"step": number + 1, **scored.metrics(config.curriculum), **update}
        seconds = time.perf_counter() - start
        metrics |= {
            "rollout_seconds": rollout_seconds,
            "seconds": seconds,
            "tokens_per_s": metrics["tokens"] / seconds,
        }
        return StepResult(
            metrics, scored.records(number + 1, self.policy.codec, config.logged_groups)
        )

    def component_weights(self, number: int) -> dict[str, float]:
        """The weight of each reward component in a step."""
        weights = self.config.weights_at(number)
        return {name: weights.get(name, 0.0) for name in self.components}

    def sample(
        self, number: int, weights: dict[str, float], interrupt: Interrupt = never
    ) -> Groups:
        """Roll out the step's cases, which the seed and the step's number determine.

        Dynamic sampling (arXiv:2503.14476) adds cases for groups without a signal.
        """
        config, estimator = self.config, ESTIMATORS[self.config.advantage]
        count = min(config.cases_per_step, len(self.examples))
        cases = batch_order(len(self.examples), count, config.seed, number)
        groups = self.rollouts(cases, (config.seed, number))
        for attempt in range(1, config.dynamic_sampling + 1):
            signal = has_signal(estimator(*self.shaped_rewards(groups, weights)))
            missing = count - int(signal.sum())
            unused = sorted(set(range(len(self.examples))) - set(cases))
            if not missing or not unused:
                break
            interrupt()
            random = np.random.default_rng([config.seed, number, attempt])
            more = [int(i) for i in random.permutation(unused)[:missing]]
            groups = groups.extended(self.rollouts(more, (config.seed, number, attempt)))
            cases += more
        return groups

    def rollouts(self, cases: Sequence[int], seed: tuple[int, ...]) -> Groups:
        """A group of chains for each case; every worker rolls out some cases for all of them."""
        group = self.config.group
        own = self.world.local_indices(len(cases))
        examples = [self.examples[cases[i]] for i in own]
        rollouts = self.runner.run([e.task for e in examples], group, seed, numbers=own)
        rewards = [self.rewards(r, examples[i // group]) for i, r in enumerate(rollouts)]
        return Groups(
            [self.examples[i] for i in cases],
            gather_rollouts(self.world, rollouts),
            self.world.all_gather_rows(
                np.array(rewards).reshape(len(own), group, len(self.components)), own, len(cases)
            ),
        )

    def rewards(self, rollout: Rollout, example: Example) -> list[float]:
        """R rewards of one chain."""
        outcome = self.environment.outcome(rollout, example.case)
        return list(component_rewards(outcome, self.components).values())

    def shaped_rewards(
        self, groups: Groups, weights: dict[str, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards (C, G, R) and weights (R,) as advantages are made of them.

        A penalty of overlong chains adds a component. For rows there are two instead of all: a
        chain's weighted reward, and what it adds to a row.
        """
        config, values = self.config, np.array(list(weights.values()))
        rewards = groups.rewards
        if config.overlong_tokens:
            penalty = overlong_penalty(
                groups.sampled_tokens, config.overlong_tokens, config.overlong_cache
            )
            rewards = np.concatenate([rewards, penalty[..., None]], axis=-1)
            values = np.append(values, config.overlong_weight)
        if config.row > 1:
            totals = rewards @ values  # (C, G)
            rewards = np.stack([totals, row_gains(totals, config.row)], axis=-1)
            values = np.array([1 - config.row_share, config.row_share])
        return rewards, values

    def score(self, groups: Groups, weights: dict[str, float]) -> ScoredGroups:
        """The groups of a step with the advantages of their chains and of their actions."""
        estimator = ESTIMATORS[self.config.advantage]
        shaped = self.shaped_rewards(groups, weights)  # (C, G, R) and (R,)
        advantages = estimator(*shaped)  # (C, G)
        actions = action_advantages(
            groups.rollouts, advantages, shaped, estimator, self.config.step_credit
        )
        return ScoredGroups(groups, weights, advantages, actions, differs(*shaped))

    def update(
        self, chains: Sequence[CreditedChain], number: int, interrupt: Interrupt = never
    ) -> dict[str, float]:
        """Take an optimizer step for each epoch over chains with their advantages.

        Returns:
            ``loss`` is the objective's; ``kl``, ``entropy`` and ``clipped`` are means over tokens,
            weighted as in the objective, and over epochs. ``grad_norm`` is the largest epoch's
            before clipping, ``ratio_drift`` how far the log-probability of a token is from that
            with which it was sampled, at most, before the first optimizer step.
        """
        config, policy = self.config, self.policy
        release_memory()  # what the rollouts' caches took
        batches = training_batches(
            policy, config, chains, number, self.world, self.runner.automaton
        )
        # In half precision the decoder's and the scorer's log-probabilities differ by more than
        # a step should change: there, ratios are taken to the first pass over the chains.
        old = [b.sampled for b in batches.targets] if policy.precise else None
        totals = dict.fromkeys(("loss", "kl", "entropy", "clipped"), 0.0)
        drift = norm = 0.0
        self.optimizer.learning_rate = config.learning_rate_at(number)
        for epoch in range(config.epochs):
            loss = partial(self.loss, batches.targets, old)
            result = scoring.gradient(
                policy, batches.prepared, loss, interrupt=never if epoch else interrupt
            )
            old = old or [parts["logprobs"] for parts in result.parts]
            if epoch == 0:
                drift = max((float(parts["drift"]) for parts in result.parts), default=0.0)
                drift = self.world.all_reduce_max(drift)
            for value, parts in zip(result.losses, result.parts, strict=True):
                for name in totals:
                    totals[name] += float(value if name == "loss" else parts[name]) / config.epochs
            norm = max(norm, update_weights(self, result.total, config.max_grad_norm, number))
        groups, weight = batches.groups, batches.weight
        del batches, result
        release_memory()
        sums = dict(zip(totals, self.world.all_reduce_scalars(*totals.values()), strict=True))
        # The weights of Dr. GRPO's tokens do not sum to 1, nor do those of a part of the groups.
        means = {name: sums[name] / weight for name in ("kl", "entropy", "clipped")}
        checks = {"grad_norm": norm, "ratio_drift": drift, "trained_groups": groups}
        return {**sums, **means, **checks}

    def loss(
        self,
        targets: Sequence[MicroBatchTargets],
        old: Sequence[mx.array] | None,
        index: int,
        scores: Scores,
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """The negative objective of one micro-batch, and its parts; all arrays are (T,)."""
        batch, config = targets[index], self.config
        logprobs = mx.stop_gradient(scores.logprobs)
        ratio = importance_ratios(
            config.loss,
            scores.logprobs,
            old[index] if old else logprobs,
            batch.sequence,
            batch.lengths,
        )
        surrogate, clipped = clipped_surrogate(ratio, batch.advantages, *config.clip)
        kl = mx.zeros_like(ratio)
        if batch.reference is not None:
            kl = k3(batch.reference, scores.logprobs)
        return -(batch.weights * (surrogate - config.beta * kl)).sum(), {
            "kl": (batch.weights * kl).sum(),
            "entropy": (batch.weights * scores.entropies).sum(),
            "clipped": (batch.weights * clipped).sum(),
            "drift": mx.abs(logprobs - batch.sampled).max(),
            "logprobs": logprobs,
        }

    def evaluate(self) -> dict[str, float]:
        """Means over greedy chains on validation cases, see `environment.evaluate_policy`."""
        cases = evenly_spaced(self.environment.of_split("validation"), self.config.measured)
        self.policy.model.eval()
        weights = self.config.weights_at(self.config.steps - 1)
        return evaluate_policy(self.environment, self.policy, cases, weights, self.components)
