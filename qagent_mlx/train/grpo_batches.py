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
    distinct, copies = _distinct(chains)
    rollouts = [chain.rollout for chain in distinct]
    trained = [sum(rollout.trained_mask[1:]) for rollout in rollouts]
    lengths = np.array(trained, dtype=np.float32)
    agent = policy.info.agent
    max_length = (agent.max_searches + MAX_TURNS_BEYOND_SEARCHES) * agent.turn_tokens
    # Weights are of the whole step: a group that is left out leaves its share to those like it,
    # and each worker computes its own groups.
    weights = token_weights(config.loss, np.maximum(lengths, 1), copies, max_length)
    factors = kept_groups(chains, config.thinning, (config.seed, number))
    weights *= np.array([factors.get(r.case, 0.0) for r in rollouts], dtype=np.float32)
    kept = np.array([i for i, r in enumerate(rollouts) if r.case in factors], dtype=np.intp)
    total_weight = float((weights[kept] * np.float64(lengths[kept])).sum())
    own = kept[world.local_groups([rollouts[i].case for i in kept])]
    sequences = [training_sequence(rollouts[i], automaton) for i in own]
    prepared = prepare(policy, sequences, micro_batch_tokens(policy, config.token_budget))
    reference = reference_logprobs(policy, prepared) if config.beta else None
    targets = []
    for index, item in enumerate(prepared.batches):
        members = own[item.sequences]  # (S,) the chains, one after the other in the batch's tokens
        targets.append(
            MicroBatchTargets(
                advantages=_joined([distinct[i].token_advantages for i in members]),
                weights=mx.array(weights[members[item.batch.sequence]]),
                sequence=mx.array(item.batch.sequence),
                lengths=mx.array(lengths[members]),
                sampled=_joined([rollouts[i].sampled_logprobs for i in members]),
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


def _distinct(chains: Sequence[CreditedChain]) -> tuple[list[CreditedChain], np.ndarray]:
    """Chains that differ, and how often each was sampled, float32."""
    keys = [(chain.rollout.case, chain.rollout.tokens, chain.actions) for chain in chains]
    copies = Counter(keys)
    distinct = dict(zip(keys, chains, strict=True))
    return list(distinct.values()), np.array([copies[key] for key in distinct], dtype=np.float32)


def _joined(values: Sequence[Sequence[float] | np.ndarray]) -> mx.array:
    """The values of one chain after another."""
    return mx.array(np.concatenate(values).astype(np.float32))


def training_sequence(rollout: Rollout, automaton: QueryAutomaton | None) -> TrainingSequence:
    """A chain as it is scored: its tokens, which of them carry loss, and what constrained them."""
    tokens, trained = list(rollout.tokens), rollout.trained_mask
    allowed = {}
    if automaton is not None:
        allowed = automaton.masks(tokens, trained, rollout.references)
    return TrainingSequence(tokens, trained, rollout.case, allowed)
