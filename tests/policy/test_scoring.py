"""Blocks below the adapter are computed once, for policy and reference alike."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from qagent_mlx.policy.batches import TrainingSequence, make_batch
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.scoring import frozen_states, token_scores


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
        loss = lambda model: token_scores(policy, batch, *given, gradient=True)[0].sum()  # noqa: E731
        return dict(tree_flatten(nn.value_and_grad(policy.model, loss)(policy.model)[1]))

    ours, theirs = gradient(lower), gradient()
    for name, value in theirs.items():
        assert np.allclose(np.array(ours[name]), np.array(value), atol=1e-4), name


def test_a_model_that_is_trained_whole_has_no_frozen_part(new_nano):
    policy = new_nano()[0]
    batch = make_batch([TrainingSequence([60, 61, 62], [False, True, True], 0)])
    assert policy.first_trained == 0
    assert frozen_states(policy, batch) is None
