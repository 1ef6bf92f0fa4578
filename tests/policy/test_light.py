from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from stoppers import Never

from qagent_mlx.agent.decode import Decoder, Row
from qagent_mlx.policy.light import Light
from qagent_mlx.policy.model import LoraConfig


@pytest.fixture(scope="module")
def adapted(new_nano):
    """A policy whose adapters and norms all do something."""
    policy, _, _ = new_nano(3)
    policy.add_lora(LoraConfig(rank=4, scale=2.0))
    random = np.random.default_rng(0)
    changed = [
        (name, mx.array((0.2 * random.standard_normal(value.shape)).astype(np.float32)))
        for name, value in tree_flatten(policy.model.trainable_parameters())
    ]
    norms = [
        (name, mx.array((1 + 0.3 * random.standard_normal(value.shape)).astype(np.float32)))
        for name, value in tree_flatten(policy.model.parameters())
        if "norm" in name
    ]
    policy.model.load_weights([*changed, *norms], strict=False)
    policy.model.eval()
    return policy


def exact(policy, tokens):
    hidden = policy.backbone(mx.array([tokens]))
    return np.array(policy.head(hidden[:, -1]))[0]


def test_logits_are_those_of_the_policy_for_rows_of_any_length(adapted):
    light = Light.of(adapted)
    random = np.random.default_rng(1)
    rows = [random.integers(5, 380, n).tolist() for n in (1, 70, 7)]
    cache = light.cache(3)
    so_far = [[], [], []]
    for added in (rows, [[9], [8], [7]], [[4, 5, 6], [11] * 130, [12]]):
        found = light.logits(added, cache)
        so_far = [a + b for a, b in zip(so_far, added, strict=True)]
        for row, tokens in zip(found, so_far, strict=True):
            np.testing.assert_allclose(row, exact(adapted, tokens), atol=2e-4)
    cache.filter(mx.array([2, 0]))
    other = light.cache(1)
    light.logits([[5, 6]], other)
    cache.extend(other)
    found = light.logits([[1], [2], [3]], cache)
    for row, tokens in zip(found, ([*so_far[2], 1], [*so_far[0], 2], [5, 6, 3]), strict=True):
        np.testing.assert_allclose(row, exact(adapted, tokens), atol=2e-4)


def test_a_light_decoder_draws_the_same_tokens(adapted):
    def decoded(light):
        rows = [
            Row(list(adapted.prompt), Never(), np.random.default_rng(seed), 4 + seed)
            for seed in (0, 1, 2, 0, 1)
        ]
        decoder = Decoder(adapted, light=light)
        batch, waiting = decoder.start(rows), None
        for again in (True, False):
            while batch.rows:
                batch, halted = decoder.draw(batch)
                if halted.rows and waiting is not None:
                    waiting.extend(halted)
                elif halted.rows:
                    waiting = halted
                if batch.rows:
                    decoder.advance(batch)
            if again:
                for row in waiting.rows:
                    row.insert([17, 18, 19])
                batch, waiting = decoder.resume(waiting), None
        return rows

    for one, other in zip(decoded(False), decoded(True), strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_policy_in_half_precision_is_left_to_mlx(new_nano):
    policy = new_nano()[0]
    assert Light.of(policy) is not None
    policy.model.set_dtype(mx.float16)
    assert Light.of(policy) is None
