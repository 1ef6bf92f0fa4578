"""GRPO for a search agent, from top to bottom.

One step of `Trainer.step`:

1. take a batch of cases and roll out a group of G chains for each, all decoded together,
   with every search answered by the inventory as it was at the case's moment; with dynamic
   sampling, more cases take the place of groups whose chains all scored the same;
2. score each chain by component: format, tool, query, item, consistency, and your own;
3. turn rewards into advantages within each group (GDPO, GRPO or Dr. GRPO, see `advantages`);
   groups in which all chains scored the same are dropped and counted;
4. maximise  min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) - beta * KL(policy | reference)
   over the tokens that the policy chose, weighed as GRPO, Dr. GRPO, DAPO or GSPO do
   (see `losses`), for one or several epochs over the same chains.

Tokens that tools inserted carry no loss. Sampling is from the very distribution that is
scored (temperature 1), so the first ratio is 1 (in half precision by taking the scorer's word for
what the chance was). The reference is the same model with its adapters switched off.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from shlex import quote
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

from ..agent.episode import MAX_TURNS_BEYOND_SEARCHES
from ..agent.types import Rollout
from ..distributed import world
from ..distributed.stop_signal import Stopped, StopRequested, StopSignal
from ..environment.cases import SplitConfig
from ..environment.environment import Environment, Example, evaluate_policy
from ..environment.rewards import COMPONENTS, Component, component_rewards, weighted_reward
from ..errors import QAgentError
from ..policy.policy import Policy
from ..policy.registry import derive
from ..policy.scoring import (
    FrozenStates,
    TrainingBatch,
    TrainingSequence,
    frozen_states,
    make_batch,
    token_logprobs,
)
from ..policy.shared_prompt import SharedPrompt
from ..protocol.config import AgentConfig
from ..runs import checkpoint
from ..runs.run import Run, free_name, policy_origin, run_lock, run_names
from ..shop.shop import Shop
from ..utils.runtime import release_memory
from .advantages import ESTIMATORS, non_constant_groups
from .batches import micro_batches
from .config_files import merged
from .demonstrations import DemoConfig, Demonstrator
from .early_stopping import BestEvaluation
from .fit import batch_order
from .grpo_config import GrpoConfig, _check_weights
from .losses import clipped_surrogate, importance_ratios, k3, overlong_penalty, token_weights
from .memory_estimate import check_memory, grpo_bytes, micro_tokens
from .monitors import Alarm, AlarmConfig, AlarmStop, Monitor

DRIFT = 0.05  # log-probability by which sampler and scorer may differ in the first update
ROUNDED_DRIFT = 1.0  # the same in half precision, where single unlikely tokens differ much


@dataclass
class MicroBatch:
    """A micro-batch of chains and what its loss needs; (tokens,) are its trained tokens."""

    batch: TrainingBatch
    advantage: mx.array  # (tokens,)
    weight: (
        mx.array
    )  # a token's share in the objective of the step (`losses.token_weights`), (tokens,)
    length: mx.array  # trained tokens of each chain, (rows,)
    sampled: mx.array  # the decoder's log-probabilities, (tokens,)
    # What ratios are taken to, (tokens,). In half precision a decoder's and a scorer's numbers
    # differ by more than a step should change: None, until the first pass over the chains says.
    old: mx.array | None
    lower: FrozenStates | None  # of the blocks below the first adapter
    reference: mx.array | None = None  # the reference's log-probabilities, (tokens,)


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
        _check_weights(config, self.components)
        self.weights = np.array([config.weights.get(n, 0.0) for n in self.components])
        self.stop = StopSignal()
        self.opening: SharedPrompt | None = None  # of the last step's chains
        self.checked = False  # whether a gradient of this run was looked at
        self.world = world.current_world()
        self.optimizer = optim.AdamW(learning_rate=config.learning_rate, weight_decay=0.0)
        self.optimizer.init(policy.model.trainable_parameters())
        self.runner = environment.rollout_runner(policy, policy.info.agent)
        self.examples = environment.of_split("train")
        if config.solvable:
            # A case whose answer no chain meets gives every chain the same reward.
            agent = policy.info.agent
            demo = DemoConfig(reachable=agent.search)
            found = Demonstrator(environment, policy, agent, demo).usable(self.examples)
            self.examples = [example for example, _ in found]
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
        weights = self.weights_of(number)
        self.policy.model.eval()
        rollouts, examples, rewards = self.sample(number, weights)
        rolled = time.perf_counter()
        self.stop.check(None if self.world.size > 1 else self.world)

        scores, counted = self.shaped(rewards, weights, rollouts)
        advantages = ESTIMATORS[config.advantage](scores, counted)
        alive = non_constant_groups(scores, counted)
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
        weighted = rewards @ weights / max(weights.sum(), 1e-9)
        metrics: dict[str, Any] = {
            "step": number + 1,
            "reward": float(weighted.mean()),
            **{
                f"reward_{name}": float(rewards[..., i].mean())
                for i, name in enumerate(self.components)
            },
            **{
                f"weight_{name}": float(weight)
                for name, weight in zip(self.components, weights, strict=True)
                if name in config.curriculum
            },
            "recommended": float(np.mean([r.finish == "recommended" for r in rollouts])),
            "groups": len(examples),
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
        return metrics, self._described(number, rollouts, examples, rewards, advantages, weights)

    def weights_of(self, number: int) -> np.ndarray:
        """The weight of each component in a step: (components,)."""
        now = self.config.weights_at(number) if self.config.curriculum else {}
        changing = self.config.curriculum
        return np.array(
            [
                now[name] if name in changing else weight
                for name, weight in zip(self.components, self.weights, strict=True)
            ]
        )

    def sample(
        self, number: int, weights: np.ndarray
    ) -> tuple[list[Rollout], list[Example], np.ndarray]:
        """Roll out the step's cases; with dynamic sampling, more of them for groups that said
        nothing (arXiv:2503.14476). Which ones is a function of the seed and the step alone.

        Returns:
            Rollouts by group, the case of each group, rewards (groups, G, components).
        """
        config = self.config
        count = min(config.cases_per_step, len(self.examples))
        order = batch_order(len(self.examples), count, config.seed, number)
        rollouts, rewards = self._rolled(order, (config.seed, number), 0)
        for again in range(1, config.dynamic_sampling + 1):
            scores, counted = self.shaped(rewards, weights, rollouts)
            missing = count - int(non_constant_groups(scores, counted).sum())
            rest = sorted(set(range(len(self.examples))) - set(order))
            if not missing or not rest:
                break
            self.stop.check(None if self.world.size > 1 else self.world)
            draw = np.random.default_rng([config.seed, number, again])
            more = [int(i) for i in draw.permutation(rest)[:missing]]
            rolled, scored = self._rolled(more, (config.seed, number, again), len(order))
            rollouts, rewards = rollouts + rolled, np.concatenate([rewards, scored])
            order += more
        return rollouts, [self.examples[i] for i in order], rewards

    def _rolled(
        self, order: Sequence[int], seed: tuple[int, ...], before: int
    ) -> tuple[list[Rollout], np.ndarray]:
        # Every worker rolls out some of the cases; then all know all chains.
        mine = self.world.local_indices(len(order))
        examples = [self.examples[order[i]] for i in mine]
        rollouts = self.runner.run([e.task for e in examples], self.config.group, seed, None, mine)
        rewards = self.world.all_gather_rows(self.rewards(rollouts, examples), mine, len(order))
        # Groups are numbered through the rounds of a step.
        rollouts = [
            replace(r, case=r.case + before) for r in world.gather_rollouts(self.world, rollouts)
        ]
        return rollouts, rewards

    def shaped(
        self, rewards: np.ndarray, weights: np.ndarray, rollouts: Sequence[Rollout]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and weights with DAPO's punishment of overlong chains as one more component."""
        config = self.config
        if not config.overlong_tokens:
            return rewards, weights
        lengths = np.array([sum(r.sampled) for r in rollouts]).reshape(rewards.shape[:2])
        cache = min(config.overlong_cache, config.overlong_tokens)
        penalty = overlong_penalty(lengths, config.overlong_tokens, cache)
        return (
            np.concatenate([rewards, penalty[..., None]], axis=-1),
            np.append(weights, config.overlong_weight),
        )

    def rewards(self, rollouts: Sequence[Rollout], examples: Sequence[Example]) -> np.ndarray:
        """Rewards by component: (groups, G, components)."""
        group = self.config.group
        scored = [
            component_rewards(
                self.environment.outcome(rollout, examples[i // group].case), self.components
            )
            for i, rollout in enumerate(rollouts)
        ]
        flat = np.array([[row[name] for name in self.components] for row in scored])
        return flat.reshape(len(examples), group, len(self.components))

    def update(self, kept: Sequence[tuple[Rollout, float]], number: int) -> dict[str, float]:
        """Gradient steps on chains with their advantages."""
        config = self.config
        release_memory()  # what the rollouts' caches took
        pieces = self._pieces(kept)
        opening = self.opening
        sums = dict.fromkeys(("loss", "kl", "entropy", "clipped"), 0.0)
        drift = 0.0
        norm = mx.array(0.0)
        for epoch in range(config.epochs):
            gradient: Any = None
            begun = opening.computed() if opening else []
            mx.eval(begun)
            for piece in pieces:
                if epoch == 0:
                    self.stop.check(None if self.world.size > 1 else self.world)
                (loss, parts), grad = self._value_and_grad(piece, begun)
                gradient = grad if gradient is None else tree_map(mx.add, gradient, grad)
                mx.eval(gradient, loss, parts)
                if piece.old is None:
                    piece.old = parts["logprob"]
                if epoch == 0:
                    drift = max(drift, float(parts["drift"]))
                for name in sums:
                    part = float(loss if name == "loss" else parts[name])
                    sums[name] += part / config.epochs
            if opening and gradient is not None:
                gradient = tree_map(mx.add, gradient, opening.answer())
            if gradient is None:  # all of the step's groups went to other workers
                gradient = tree_map(mx.zeros_like, self.policy.model.trainable_parameters())
            gradient = self.world.all_reduce(gradient)
            drift = self.world.all_reduce_max(drift)
            if not self.checked:
                self._check_first(drift, gradient)
                self.checked = True
            gradient, norm = optim.clip_grad_norm(gradient, config.max_grad_norm)
            if not np.isfinite(float(norm)):
                raise QAgentError(
                    f"the gradient of step {number + 1} is not finite; the weights are those of "
                    "the step before; lower --learning-rate and start again"
                )
            self.optimizer.learning_rate = config.rate(number)
            self.optimizer.update(self.policy.model, gradient)
            mx.eval(self.policy.model.trainable_parameters(), self.optimizer.state)
        del pieces, gradient
        release_memory()
        totals = dict(zip(sums, self.world.all_reduce_scalars(*sums.values()), strict=True))
        return {**totals, "grad_norm": float(norm), "ratio_drift": drift}

    def _pieces(self, kept: Sequence[tuple[Rollout, float]]) -> list[MicroBatch]:
        """This worker's chains in micro-batches, with all that does not change in the update."""
        config = self.config
        # Equal chains of a group have equal rewards and advantages: one is computed for all.
        copies = Counter((r.case, tuple(r.tokens), a) for r, a in kept)
        distinct = {(r.case, tuple(r.tokens), a): r for r, a in kept}
        rollouts = list(distinct.values())
        chains = [TrainingSequence(list(r.tokens), r.trained_mask, r.case) for r in rollouts]
        advantages = np.array([a for _, _, a in distinct], dtype=np.float32)
        lengths = np.array([sum(chain.trained[1:]) for chain in chains], dtype=np.float32)
        counts = np.array([copies[key] for key in distinct], dtype=np.float32)
        agent = self.policy.info.agent
        most = (agent.max_searches + MAX_TURNS_BEYOND_SEARCHES) * agent.turn_tokens
        share = token_weights(config.loss, np.maximum(lengths, 1), counts, most)
        # Shares are of the whole step; from here on each worker computes its own groups.
        own = self.world.local_groups([chain.group for chain in chains])
        rollouts, chains = [rollouts[i] for i in own], [chains[i] for i in own]
        advantages, lengths, share = advantages[own], lengths[own], share[own]
        # What all groups begin with (a chat model's instructions) is computed once for them.
        self.opening = opening = SharedPrompt.of(self.policy, chains, self.opening)
        if opening:
            chains = [opening.cut(chain) for chain in chains]
        made = []
        for places in micro_batches(chains, micro_tokens(self.policy, config.token_budget)):
            batch = make_batch([chains[i] for i in places])
            owner = np.array(places)[batch.row]
            sampled = mx.array(
                np.array(
                    [v for i in places for v in rollouts[i].sampled_logprobs], dtype=np.float32
                )
            )
            made.append(
                MicroBatch(
                    batch,
                    mx.array(advantages[owner]),
                    mx.array(share[owner]),
                    mx.array(lengths[np.array(places)]),
                    sampled,
                    old=sampled if self.policy.precise else None,
                    lower=frozen_states(self.policy, batch, opening.below if opening else None),
                )
            )
        if config.beta:
            with self.policy.reference():
                begin = opening.reference() if opening else None
                for piece in made:
                    piece.reference, _ = token_logprobs(
                        self.policy, piece.batch, piece.lower, gradient=False, begin=begin
                    )
                    mx.eval(piece.reference)
        return made

    def _value_and_grad(self, piece: MicroBatch, begun: Sequence[tuple[mx.array, mx.array]]) -> Any:
        """((loss, parts), gradient) of one micro-batch.

        ``begun`` is the opening's keys and values, whose slope goes back to it.
        """
        config, model, opening = self.config, self.policy.model, self.opening
        low, high = config.clip
        row = mx.array(piece.batch.row)

        def loss_of(parameters: Any, begun: Any) -> tuple[mx.array, dict[str, mx.array]]:
            model.update(parameters)
            begin = opening.begin(begun) if opening else None
            logprob, entropy = token_logprobs(self.policy, piece.batch, piece.lower, begin=begin)
            now = mx.stop_gradient(logprob)
            old = now if piece.old is None else piece.old
            ratio = importance_ratios(config.loss, logprob, old, row, piece.length)
            gain, clipped = clipped_surrogate(ratio, piece.advantage, low, high)
            reference, weight = piece.reference, piece.weight
            kl = mx.zeros_like(logprob) if reference is None else k3(reference, logprob)
            parts = {
                "kl": (weight * kl).sum(),
                "entropy": (weight * entropy).sum(),
                "clipped": (weight * clipped).sum(),
                "drift": mx.abs(now - piece.sampled).max(),
                "logprob": now,
            }
            return -(weight * (gain - config.beta * kl)).sum(), parts

        given = model.trainable_parameters(), list(begun)
        if not opening:
            return mx.value_and_grad(loss_of)(*given)
        value, (gradient, slope) = mx.value_and_grad(loss_of, (0, 1))(*given)
        opening.ask(slope)
        return value, gradient

    def _check_first(self, drift: float, gradient: Any) -> None:
        """No silent no-learning: what is wrong with the first update is wrong with all of them."""
        if drift > (DRIFT if self.policy.precise else ROUNDED_DRIFT):
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
        weights: np.ndarray,
    ) -> list[dict[str, Any]]:
        group = self.config.group
        now = dict(zip(self.components, weights.tolist(), strict=True))
        rows = []
        for i, rollout in enumerate(rollouts[: self.config.logged_groups * group or None]):
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
                    "reward": weighted_reward(
                        dict(zip(self.components, parts.tolist(), strict=True)), now
                    ),
                    "rewards": dict(zip(self.components, parts.tolist(), strict=True)),
                    "advantage": float(advantages[i // group, i % group]),
                    "tokens": len(rollout.tokens),
                    "sampled_tokens": sum(rollout.sampled),
                    "searches": rollout.searches,
                    "chain": self.policy.codec.decode(rollout.tokens),
                }
            )
        return rows

    def evaluate(self) -> dict[str, float]:
        """Greedy chains on validation cases: see `environment.evaluate_policy`."""
        config = self.config
        cases = self.environment.of_split("validation")[: config.measured]
        self.policy.model.eval()
        weights = config.weights_at(config.steps - 1)
        return evaluate_policy(self.environment, self.policy, cases, weights, self.components)


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
    about: dict[str, Any] | None = None,
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
        on_step: Called after each step with its metrics, the planned ``steps``, and the
            texts of ``alarms`` that rang.
        about: What else to keep in the run's config: a preset's name, reward files.

    Returns:
        run, policy, steps, reward_first, reward_last (mean weighted reward of sampled
        chains over the first and last tenth of the steps), seconds, tokens_per_s,
        validation_reward, best_step and best_value (None without evaluations).

    Raises:
        QAgentError: a setting or a check fails; `AlarmStop` when an alarm stopped the run and
            `Stopped` when SIGTERM or Ctrl-C did, each after a checkpoint was written.
    """
    config = config or GrpoConfig()
    config.check()
    trained = derive(shop, policy, name, config.lora, config.seed)
    trained.info.agent = agent or trained.info.agent
    environment = environment or Environment.shared(
        shop, lambda: Environment.of_shop(shop, trained.codec, trained.info.agent, split)
    )
    # The adapter's first values are random: a resumed run needs them too.
    trainer = Trainer(trained, environment, config, components)
    estimate = grpo_bytes(trained, config)
    warning = check_memory(estimate * trainer.world.local_size(), config.alarms)
    trainer.world.assert_equal(f"policies {policy}", trained.info.base_fingerprint)
    if not trainer.world.is_main_process:
        return _run(shop, trainer.world.silent_run(shop), trainer, 0, on_step)
    run = run or free_name(name, run_names(shop))
    with run_lock(shop, run):
        record = Run.prepare(
            shop,
            run,
            {
                "kind": "grpo",
                "policy": name,
                **policy_origin(shop, policy, trained),
                "train": asdict(config),
                "agent": asdict(trained.info.agent),
                "split": asdict(split or SplitConfig()),
                "catalog_version": shop.catalog_version,
                "rewards": list(components or COMPONENTS),
                "memory_bytes": estimate,
                **(about or {}),
            },
        )
        environment.save(record.folder)
        shop.close()
        checkpoint.save(record.folder / "checkpoints", 0, trained, trainer.optimizer, {})
        record.commit()
        trainer.world.announce(record)
        if warning:
            record.append("alarms", [asdict(Alarm("memory", "warn", 0, warning))])
        return _run(shop, record, trainer, 0, on_step)


def resume_grpo(
    shop: Shop,
    run: str,
    steps: int | None = None,
    components: dict[str, Component] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    alarms: AlarmConfig | None = None,
) -> dict[str, Any]:
    """Go on with a run from its last checkpoint, exactly as if it had never stopped.

    Args:
        shop: The run's shop; its database is not needed.
        run: The run's name.
        steps: Train up to this many steps instead of what the run was started with; from then
            on they are what it plans.
        components: Must be what the run was started with, when it used its own.
        on_step: Called after each step with its metrics.
        alarms: Other alarms than the run was started with; they change no number.

    Raises:
        QAgentError: what the run began from has changed, or it cannot be read.
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
    config: GrpoConfig = merged(GrpoConfig(), stored["train"], f"the run {run}")
    config = replace(config, steps=steps or config.steps, alarms=alarms or config.alarms)
    trained = derive(shop, stored["base"], stored["policy"], config.lora, config.seed)
    record.require_base(trained)
    trained.info.agent = merged(AgentConfig(), stored["agent"], f"the run {run}")
    environment = Environment.resume(shop, record.folder, stored["catalog_version"])
    trainer = Trainer(trained, environment, config, components)
    if not trainer.world.is_main_process:
        silent = trainer.world.silent_run(shop)
        state = checkpoint.restore(silent.folder / "checkpoints", trained, trainer.optimizer)
        trainer.world.assert_equal("checkpoints", checkpoint.identity(state, trained))
        return _run(shop, silent, trainer, silent.step, on_step)
    with run_lock(shop, run):
        state = checkpoint.restore(record.folder / "checkpoints", trained, trainer.optimizer)
        if state is None:
            raise QAgentError(f"the run {run} has no checkpoint left; start a new one")
        if config.steps < state["step"]:
            raise QAgentError(
                f"--steps {config.steps}: the run {run} has made {state['step']} steps already"
            )
        record.go_on(state["step"], asdict(config))
        trainer.world.announce(record, state["step"])
        trainer.world.assert_equal("checkpoints", checkpoint.identity(state, trained))
        return _run(shop, record, trainer, state["step"], on_step)


def _run(
    shop: Shop,
    record: Run | world.SilentRun,
    trainer: Trainer,
    first: int,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    config, policy = trainer.config, trainer.policy
    start = time.perf_counter()
    places = record.folder / "checkpoints"
    if trainer.world.is_main_process:
        checkpoint.clear(places)
    watch, best = Monitor(config.alarms), BestEvaluation(config.best_by, config.stop_after)
    earlier = list(record.rows("metrics"))
    watch.replay(earlier)
    best.replay(earlier)
    trainer.checked = any("grad_norm" in row for row in earlier)
    before = None if trainer.checked else {k: mx.array(v) for k, v in policy.adapter().items()}
    done = first

    trainer.world.barrier()  # from here on the first worker adds rows and checkpoints

    def save(state: dict[str, Any]) -> None:
        if trainer.world.is_main_process:
            checkpoint.save(places, done, policy, trainer.optimizer, state, config.keep)

    with StopSignal() as trainer.stop:
        while done < config.steps and not best.exhausted:
            try:
                trainer.stop.check(trainer.world)
                metrics, chains = trainer.step(done)
            except StopRequested:
                save({})
                raise Stopped(
                    f"stopped by {trainer.stop.name} after step {done}, which is saved; go on "
                    f"with: qagent train grpo --resume --run {record.name} --shop "
                    f"{quote(str(shop.path))}",
                    trainer.stop.number,
                ) from None
            if before is not None and metrics.get("grad_norm"):
                _check_changed(before, policy)
                before = None
            done += 1
            state: dict[str, Any] = {}
            if config.eval_every and (done % config.eval_every == 0 or done == config.steps):
                found = trainer.evaluate()
                metrics.update({f"eval_{name}": value for name, value in found.items()})
                state = {"value": found[config.best_by]}
            record.append("metrics", [metrics])
            record.append("rollouts", chains)
            rang = watch.look(metrics)
            record.append("alarms", [asdict(alarm) for alarm in rang])
            best.take(metrics)
            stopping = [alarm for alarm in rang if alarm.action == "stop"]
            due = done % config.save_every == 0 or done == config.steps
            if due or state or stopping or best.exhausted:
                save(state)
            if on_step is not None:
                on_step({**metrics, "steps": config.steps, "alarms": [a.reason for a in rang]})
            if stopping:
                raise _rang(stopping[0], record)
    if best.step and best.step != done:
        place = checkpoint.best(places) if trainer.world.is_main_process else None
        if place is not None:
            checkpoint.restore_weights(place, policy)
        policy.model.update(trainer.world.broadcast(policy.model.trainable_parameters()))
    validation = trainer.evaluate()
    policy.info.trained.append(
        {"stage": "grpo", "run": record.name, "config": asdict(config), "step": best.step or done}
    )
    policy.model.eval()
    if not trainer.world.is_main_process:
        return {}
    policy.save(shop.folder("policies", policy.info.name))
    rows = list(record.rows("metrics"))
    tenth = max(1, len(rows) // 10)
    summary = {
        "run": record.name,
        "policy": policy.info.name,
        "steps": len(rows),
        "reward_first": float(np.mean([r["reward"] for r in rows[:tenth]])),
        "reward_last": float(np.mean([r["reward"] for r in rows[-tenth:]])),
        "validation_reward": validation["reward"],
        "validation": validation,
        "best_step": best.step or None,
        "best_value": best.value if best.step else None,
        "stopped_early": done < config.steps,
        "dropped_groups": sum(r["dropped_groups"] for r in rows),
        "seconds": round(time.perf_counter() - start, 1),
        "tokens_per_s": round(sum(r["tokens"] for r in rows) / sum(r["seconds"] for r in rows)),
    }
    record.finish(summary)
    return summary


def _rang(alarm: Alarm, record: Run | world.SilentRun) -> AlarmStop:
    return AlarmStop(
        f"the run {record.name} was stopped at step {alarm.step} by its alarm {alarm.name}: "
        f"{alarm.reason}. Step {alarm.step} is saved; to go on all the same: qagent train grpo "
        f"--resume --run {record.name} --alarm {alarm.name}=warn"
    )


def _check_changed(before: dict[str, mx.array], policy: Policy) -> None:
    after = policy.adapter()
    if all(bool(mx.array_equal(before[name], after[name])) for name in before):
        raise QAgentError(
            "the first update changed no weight: nothing would be learned; raise the learning rate"
        )
