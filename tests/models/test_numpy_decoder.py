from __future__ import annotations

import copy

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from stoppers import Never

from qagent_mlx.agent.decode import Decoder
from qagent_mlx.agent.sequences import DecodingSequence
from qagent_mlx.models.numpy_decoder import NumpyDecoder
from qagent_mlx.policy.lora import LoraConfig


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
    light = NumpyDecoder.of(adapted.model, adapted.parameters)
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
            DecodingSequence(list(adapted.prompt), Never(), np.random.default_rng(seed), 4 + seed)
            for seed in (0, 1, 2, 0, 1)
        ]
        decoder = Decoder(adapted, use_numpy=light)
        batch, waiting = decoder.start(rows), None
        for again in (True, False):
            while batch.sequences:
                batch, halted = decoder.draw(batch)
                if halted.sequences and waiting is not None:
                    waiting.extend(halted)
                elif halted.sequences:
                    waiting = halted
                if batch.sequences:
                    decoder.advance(batch)
            if again:
                for row in waiting.sequences:
                    row.insert([17, 18, 19])
                batch, waiting = decoder.resume(waiting), None
        return rows

    for one, other in zip(decoded(False), decoded(True), strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_policy_in_half_precision_is_left_to_mlx(new_nano):
    policy = new_nano()[0]
    assert NumpyDecoder.of(policy.model, policy.parameters) is not None
    policy.model.set_dtype(mx.float16)
    assert NumpyDecoder.of(policy.model, policy.parameters) is None


def test_rows_that_share_a_long_context_part_meet_and_leave_and_keep_their_logits(adapted):
    light = NumpyDecoder.of(adapted.model, adapted.parameters)
    random = np.random.default_rng(2)

    def ids(count):
        return random.integers(5, 380, count).tolist()

    def put(cache, tokens, lengths):
        added = [ids(n) for n in lengths]
        found = light.logits(added, cache)
        for row, (own, more) in zip(found, zip(tokens, added, strict=True), strict=True):
            own += more
            np.testing.assert_allclose(row, exact(adapted, own), atol=2e-4)

    def chosen(cache, tokens, rows):
        made = copy.copy(cache)
        made.filter(np.array(rows))
        return made, [list(tokens[i]) for i in rows]

    cache, tokens = light.cache(4), [[] for _ in range(4)]
    put(cache, tokens, [60, 75, 3, 66])
    # Rows of three contexts, some of them several times: their contexts become shared prefixes.
    one, of_one = chosen(cache, tokens, [1, 0, 1, 1, 3])
    other, of_other = chosen(cache, tokens, [2, 3])
    assert one.prefixes is not None
    put(cache, tokens, [1, 2, 1, 5])  # where both came from goes on beside them
    put(one, of_one, [1] * 5)
    put(one, of_one, [4, 1, 30, 2, 7])
    put(other, of_other, [3, 1])
    left, of_left = chosen(one, of_one, [4, 2, 0])
    gone, of_gone = chosen(one, of_one, [1, 3])
    # The others' contexts are let go.
    assert gone.prefixes is not None and len(gone.prefixes.ids) == 2
    left.extend(gone)
    of_left += of_gone
    left.extend(other)
    of_left += of_other
    assert len(left.prefixes.ids) == 5  # the context that both sides have is there once
    fresh, of_fresh = light.cache(1), [[]]
    put(fresh, of_fresh, [50])
    left.extend(fresh)
    of_left += of_fresh
    for lengths in ([1] * 8, [2, 1, 9, 1, 1, 40, 3, 1], [1] * 8):
        put(left, of_left, lengths)
