"""What sequences share is computed once; values and gradients are those of computing it apart."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from chat_model import GEMMA, other_folder
from mlx.utils import tree_flatten

from qagent_mlx.models import backend
from qagent_mlx.policy.batches import TrainingSequence, make_batch
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.scoring import (
    PreparedBatches,
    frozen_states,
    gradient,
    hidden_states,
    prepare,
    reference_logprobs,
    token_scores,
)


def test_starting_above_the_frozen_blocks_changes_neither_values_nor_gradients(new_nano):
    policy = new_nano()[0]
    policy.add_lora(LoraConfig(rank=4, blocks=1))
    for name, value in policy.adapter().items():
        if name.endswith("lora_b"):
            noise = mx.random.normal(value.shape, key=mx.random.key(3)) * 0.1
            policy.model.load_weights([(name, noise)], strict=False)
    random = np.random.default_rng(0)
    chains = []
    for group in range(2):
        prefix = random.integers(50, 300, 9).tolist()
        for _ in range(3):
            own = random.integers(50, 300, 6).tolist()
            chains.append(TrainingSequence(prefix + own, [False] * 9 + [True] * 6, group))
    batch = make_batch(chains)
    lower = frozen_states(policy, batch)
    assert lower is not None
    assert lower.block == policy.first_trained == len(policy.layers) - 1
    whole, _ = token_scores(policy, batch)
    parted, _ = token_scores(policy, batch, lower)
    assert np.allclose(np.array(whole), np.array(parted), atol=1e-6)
    with policy.reference():
        reference, _ = token_scores(policy, batch, lower)
    assert float(mx.abs(reference - parted).max()) > 1e-3

    def gradient(*given):
        loss = lambda model: token_scores(policy, batch, *given, differentiable=True)[0].sum()  # noqa: E731
        return dict(tree_flatten(nn.value_and_grad(policy.model, loss)(policy.model)[1]))

    ours, theirs = gradient(lower), gradient()
    for name, value in theirs.items():
        assert np.allclose(np.array(ours[name]), np.array(value), atol=1e-4), name


def test_a_model_that_is_trained_whole_has_no_frozen_part(new_nano):
    policy = new_nano()[0]
    batch = make_batch([TrainingSequence([60, 61, 62], [False, True, True], 0)])
    assert policy.first_trained == 0
    assert frozen_states(policy, batch) is None


def chains_of(seed=0, groups=3, members=4):
    """Random chains; those of a group share a beginning."""
    random = np.random.default_rng(seed)
    made = []
    for group in range(groups):
        prefix = random.integers(50, 300, int(random.integers(5, 20))).tolist()
        for _ in range(members):
            own = random.integers(50, 300, int(random.integers(2, 15))).tolist()
            trained = [False] * len(prefix) + (random.random(len(own)) < 0.5).tolist()
            trained[-1] = True
            made.append(TrainingSequence(prefix + own, trained, group))
    return made


def plain_logprobs(policy, chain):
    logits = policy.head(policy.backbone(mx.array([chain.tokens])))[0]
    logprobs = nn.log_softmax(logits, axis=-1)
    return [float(logprobs[t - 1, chain.tokens[t]]) for t, on in enumerate(chain.trained) if on]


def test_sharing_a_prefix_changes_no_log_probability(nano_policy):
    chains = chains_of()
    batch = make_batch(chains)
    values, _ = token_scores(nano_policy, batch)
    expected = [v for chain in chains for v in plain_logprobs(nano_policy, chain)]
    assert np.allclose(np.array(values), expected, atol=2e-5)
    assert batch.padded_tokens < sum(len(c.tokens) for c in chains) * 1.5


def test_sharing_a_prefix_changes_no_gradient(nano_policy):
    chains = chains_of(seed=1)
    alone = [TrainingSequence(c.tokens, c.trained, i) for i, c in enumerate(chains)]

    def gradient(some):
        batch = make_batch(some)
        loss = lambda model: token_scores(nano_policy, batch, differentiable=True)[0].sum()  # noqa: E731
        return dict(tree_flatten(nn.value_and_grad(nano_policy.model, loss)(nano_policy.model)[1]))

    shared, separate = gradient(chains), gradient(alone)
    for name, value in separate.items():
        scale = float(mx.abs(value).max()) + 1e-6
        assert float(mx.abs(shared[name] - value).max()) / scale < 1e-3, name


def test_the_head_runs_on_trained_positions_only(nano_policy):
    """Invariant 5."""
    seen = []
    head = nano_policy.head
    nano_policy.head = lambda hidden: seen.append(hidden.shape) or head(hidden)
    try:
        chains = chains_of()
        token_scores(nano_policy, make_batch(chains))
    finally:
        del nano_policy.head
    assert [shape[0] for shape in seen] == [sum(sum(c.trained) for c in chains)]


def test_hidden_states_of_a_lone_row_need_no_prefix(nano_policy):
    batch = make_batch([TrainingSequence([60, 61, 62], [False, True, True], 0)])
    assert batch.prefix.shape[1] == 0
    assert hidden_states(nano_policy, batch).shape[0] == 2


def test_tokens_predicted_inside_a_prefix_count_in_groups_of_any_size(nano_policy):
    random = np.random.default_rng(4)
    chains = []
    for group, members in enumerate((3, 1, 4)):
        prefix = random.integers(50, 300, 9 + group).tolist()
        inside = [False, True, *[False] * (len(prefix) - 3), True]
        for member in range(members):
            own = random.integers(50, 300, 3 + member).tolist()
            chains.append(TrainingSequence(prefix + own, inside + [member > 0] * len(own), group))
    batch = make_batch(chains)
    states = hidden_states(nano_policy, batch)
    assert states.shape[0] == sum(sum(c.trained) for c in chains)
    expected = [v for chain in chains for v in plain_logprobs(nano_policy, chain)]
    assert np.allclose(np.array(token_scores(nano_policy, batch)[0]), expected, atol=2e-5)


def test_the_last_block_feeds_forward_predicting_tokens_only(nano_policy, monkeypatch):
    seen = []
    real = backend.swiglu
    watched = lambda gate, up: seen.append(gate.shape) or real(gate, up)  # noqa: E731
    monkeypatch.setattr(backend, "swiglu", watched)
    chains = chains_of()
    batch = make_batch(chains)
    token_scores(nano_policy, batch)
    # The first token that a row may differ in is predicted by its prefix's last one.
    inside = np.array(batch.position) >= batch.prefix.size
    assert seen[-1][:2] == (len(chains), max(np.bincount(batch.sequence[inside])))
    assert seen[-2][:2] == tuple(batch.suffix.shape) != seen[-1][:2]


def test_a_model_that_runs_as_a_whole_shares_prefixes_too(tmp_path):
    policy = load_policy(other_folder(tmp_path / "gemma", GEMMA))
    policy.add_lora(LoraConfig(rank=4))
    assert not policy.by_blocks
    sequences = [
        TrainingSequence([t % 250 for t in s.tokens], s.trained, s.group) for s in chains_of(seed=3)
    ]
    alone = [TrainingSequence(s.tokens, s.trained, i) for i, s in enumerate(sequences)]
    shared, apart = (token_scores(policy, make_batch(s)).logprobs for s in (sequences, alone))
    assert np.allclose(np.array(shared), np.array(apart), atol=2e-5)


def test_a_gradient_is_the_weighed_sum_over_micro_batches(new_nano):
    policy = new_nano()[0]
    policy.add_lora(LoraConfig(rank=4))
    sequences = chains_of(seed=5)
    whole, parted = (prepare(policy, sequences, budget) for budget in (100_000, 50))
    assert len(whole.batches) == 1 and len(parted.batches) == 3

    def loss(index, scores):
        return -scores.logprobs.sum(), {"entropy": scores.entropies.sum()}

    calls = []
    one = gradient(policy, whole, loss)
    three = gradient(policy, parted, loss, factors=[2.0] * 3, interrupt=lambda: calls.append(1))
    assert len(calls) == 3
    assert sum(three.losses) == pytest.approx(one.losses[0], rel=1e-5)
    entropies = [float(parts["entropy"]) for parts in three.parts]
    assert sum(entropies) == pytest.approx(float(one.parts[0]["entropy"]), rel=1e-4)
    doubled, single = (dict(tree_flatten(result.total)) for result in (three, one))
    for name, value in single.items():
        assert np.allclose(np.array(doubled[name]), 2 * np.array(value), atol=1e-3), name
    assert gradient(policy, PreparedBatches(()), loss).total is None


def test_the_reference_is_scored_without_the_adapter(new_nano):
    policy = new_nano()[0]
    sequences = chains_of(seed=6)
    (expected,) = reference_logprobs(policy, prepare(policy, sequences, 100_000))
    policy.add_lora(LoraConfig(rank=4))
    noise = {k: mx.random.normal(v.shape) for k, v in policy.adapter().items()}
    policy.model.load_weights(list(noise.items()), strict=False)
    (reference,) = reference_logprobs(policy, prepare(policy, sequences, 100_000))
    assert np.allclose(np.array(reference), np.array(expected), atol=1e-5)
