"""From sampled chains to the micro-batches of a GRPO update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..agent.chain import MAX_TURNS_BEYOND_SEARCHES
from ..agent.types import Rollout
from ..distributed.world import World
from ..policy.batches import TrainingSequence
from ..policy.policy import Policy
from ..policy.scoring import PreparedBatches, prepare, reference_logprobs
from ..protocol.query_automaton import QueryAutomaton
from .advantages import chances
from .groups import CreditedChain
from .grpo_config import GrpoConfig
from .losses import token_weights
from .memory_estimate import micro_batch_tokens

THINNING = 0x7417  # tells this use of a step's seed from others


@dataclass(frozen=True, slots=True)
class MicroBatchTargets:
    """What the loss of a micro-batch needs beside log-probabilities: S chains, T trained tokens."""

    advantages: mx.array  # (T,)
    weights: mx.array  # (T,) in the objective of the whole step, see `losses.token_weights`
    sequence: mx.array  # (T,) index of the chain that a token belongs to
    lengths: mx.array  # (S,) trained tokens of each chain
    sampled: mx.array  # (T,) log-probabilities with which tokens were sampled
    reference: mx.array | None  # (T,) log-probabilities under the reference; None without KL


@dataclass(frozen=True, slots=True)
class UpdateBatches:
    """The micro-batches of an update, and the targets of each."""

    prepared: PreparedBatches
    targets: list[MicroBatchTargets]
    groups: int  # that are trained on, by all workers together
    weight: float  # of all tokens of the step, by all workers together


def training_batches(
    policy: Policy,
    config: GrpoConfig,
    chains: Sequence[CreditedChain],
    number: int,
    world: World,
    automaton: QueryAutomaton | None = None,
) -> UpdateBatches:
    """This worker's micro-batches of a step's chains, which come with their advantages.

    Equal chains of a group have equal advantages: one is computed for all of them. Groups that
    `kept_groups` leaves out are not computed at all. What the ``automaton`` constrained while
    chains were sampled is scored under the same masks.
    """
    factors = kept_groups(chains, config.thinning, (config.seed, number))
    copies = Counter(map(_identity, chains))
    distinct = {_identity(chain): chain for chain in chains}
    trained = [sum(chain.rollout.trained_mask[1:]) for chain in distinct.values()]
    lengths = np.array(trained, dtype=np.float32)
    counts = np.array([copies[key] for key in distinct], dtype=np.float32)
    agent = policy.info.agent
    max_length = (agent.max_searches + MAX_TURNS_BEYOND_SEARCHES) * agent.turn_tokens
    weights = token_weights(config.loss, np.maximum(lengths, 1), counts, max_length)
    # Weights are of the whole step; from here on what is left out is left out, and each worker
    # computes its own groups.
    is_kept = np.array([c.rollout.case in factors for c in distinct.values()], dtype=bool)
    kept = [chain for chain in distinct.values() if chain.rollout.case in factors]
    rollouts = [chain.rollout for chain in kept]
    sequences = [training_sequence(rollout, automaton) for rollout in rollouts]
    factor = np.array([factors[rollout.case] for rollout in rollouts], dtype=np.float32)
    weights, lengths = weights[is_kept] * factor, lengths[is_kept]
    total_weight = float((weights * np.float64(lengths)).sum())
    own = world.local_groups([s.group for s in sequences])
    budget = micro_batch_tokens(policy, config.token_budget)
    prepared = prepare(policy, [sequences[i] for i in own], budget)
    reference = reference_logprobs(policy, prepared) if config.beta else None
    targets = []
    for index, item in enumerate(prepared.batches):
        members = np.array(own)[item.sequences]  # (S,)
        member = members[item.batch.sequence]  # (T,)
        sampled = [v for i in members for v in rollouts[i].sampled_logprobs]
        advantages = np.concatenate([kept[i].token_advantages for i in members])
        targets.append(
            MicroBatchTargets(
                advantages=mx.array(advantages.astype(np.float32)),
                weights=mx.array(weights[member]),
                sequence=mx.array(item.batch.sequence),
                lengths=mx.array(lengths[members]),
                sampled=mx.array(np.array(sampled, dtype=np.float32)),
                reference=reference[index] if reference else None,
            )
        )
    return UpdateBatches(prepared, targets, len(factors), total_weight)


def kept_groups(
    chains: Sequence[CreditedChain], noise: float, seed: Sequence[int]
) -> dict[int, float]:
    """The groups to train on, drawn by their `chances`: case -> how much more it weighs."""
    sizes: dict[int, float] = {}
    for chain in chains:
        case = chain.rollout.case
        sizes[case] = sizes.get(case, 0.0) + chain.advantage**2
    chance = chances(np.sqrt(np.array(list(sizes.values()))), noise)
    drawn = np.random.default_rng([*seed, THINNING]).random(len(sizes)) < chance
    return {
        case: 1 / float(share)
        for case, share, keep in zip(sizes, chance, drawn, strict=True)
        if keep
    }


def _identity(chain: CreditedChain) -> tuple[int, tuple[int, ...], tuple[float, ...]]:
    return chain.rollout.case, chain.rollout.tokens, chain.actions


def training_sequence(rollout: Rollout, automaton: QueryAutomaton | None) -> TrainingSequence:
    """A chain as it is scored: its tokens, which of them carry loss, and what constrained them."""
    tokens, trained = list(rollout.tokens), rollout.trained_mask
    allowed = {}
    if automaton is not None:
        allowed = automaton.masks(tokens, trained, rollout.references)
    return TrainingSequence(tokens, trained, rollout.case, allowed)
