"""Every objective against numbers worked out by hand."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.train.losses import (
    CLIP_RANGES,
    MAX_RATIO,
    clipped_surrogate,
    importance_ratios,
    k3,
    overlong_penalty,
    token_weights,
)

# Two chains: one of 1 token, one of 3; advantages 2 and -1.
LENGTHS = np.array([1.0, 3.0])
ROW = np.array([0, 1, 1, 1])
ADVANTAGE = np.array([2.0, -1.0])


def objective(loss, ratio_logs, low, high, copies=(1, 1), most=4):
    share = token_weights(loss, LENGTHS, np.array(copies, dtype=float), most)
    sampled = mx.array(np.full(4, -1.0, dtype=np.float32))
    logprob = sampled + mx.array(np.array(ratio_logs, dtype=np.float32))
    ratio = importance_ratios(
        loss, logprob, sampled, mx.array(ROW), mx.array(LENGTHS.astype(np.float32))
    )
    gain, clipped = clipped_surrogate(ratio, mx.array(ADVANTAGE[ROW].astype(np.float32)), low, high)
    return float((mx.array(share[ROW].astype(np.float32)) * gain).sum()), np.array(clipped)


def test_grpo_averages_within_a_chain_and_then_over_chains():
    # Ratio 1 everywhere: (2 + (-1 -1 -1) / 3) / 2.
    assert objective("grpo", [0, 0, 0, 0], 0.2, 0.2)[0] == pytest.approx(0.5)


def test_dr_grpo_divides_by_a_constant_so_long_wrong_chains_cost_more():
    # (2 + (-1 -1 -1)) / (2 * 4).
    assert objective("dr_grpo", [0, 0, 0, 0], 0.2, 0.2)[0] == pytest.approx(-1 / 8)


def test_dapo_averages_over_all_tokens():
    # (2 - 3) / 4.
    assert objective("dapo", [0, 0, 0, 0], 0.2, 0.28)[0] == pytest.approx(-1 / 4)


def test_a_chain_that_came_twice_counts_twice():
    # GRPO: three chains, 2 + 2 - 1. DAPO: five tokens, 2 + 2 - 3.
    assert objective("grpo", [0, 0, 0, 0], 0.2, 0.2, (2, 1))[0] == pytest.approx(3 / 3)
    assert objective("dapo", [0, 0, 0, 0], 0.2, 0.2, (2, 1))[0] == pytest.approx(1 / 5)


def test_the_clip_is_pessimistic():
    log = math.log
    # A > 0, ratio 1.5: bound at 1.28. A < 0, ratio 1.5: not bound; ratio 0.5: bound at 0.8.
    value, clipped = objective("dapo", [log(1.5), log(1.5), log(0.5), 0], 0.2, 0.28)
    assert value == pytest.approx((2 * 1.28 - 1.5 - 0.8 - 1) / 4, abs=1e-6)
    assert clipped.tolist() == [1, 0, 1, 0]
    # A > 0, ratio 0.5: the loss sees all of it.
    assert objective("dapo", [log(0.5), 0, 0, 0], 0.2, 0.28)[0] == pytest.approx(-0.5)


def test_clip_higher_leaves_more_room_upwards():
    up = [math.log(1.25), 0, 0, 0]
    assert objective("dapo", up, *CLIP_RANGES["grpo"])[1][0] == 1
    assert objective("dapo", up, *CLIP_RANGES["dapo"])[1][0] == 0


def test_gspo_uses_the_geometric_mean_over_the_chain():
    # Logs of the long chain: .3, 0, -.6; their mean is -.1. The short chain's is .2.
    value, _ = objective("gspo", [0.2, 0.3, 0.0, -0.6], 10.0, 10.0)
    assert value == pytest.approx((2 * math.exp(0.2) - math.exp(-0.1)) / 2, abs=1e-6)
    low, high = CLIP_RANGES["gspo"]
    value, clipped = objective("gspo", [0.2, 0.3, 0.0, -0.6], low, high)
    assert value == pytest.approx((2 * (1 + high) - (1 - low)) / 2, abs=1e-6)
    assert clipped.tolist() == [1, 1, 1, 1]


def test_the_gradient_of_gspo_is_shared_by_the_tokens_of_a_chain():
    sampled = mx.zeros(4)

    def value(logprob):
        ratio = importance_ratios("gspo", logprob, sampled, mx.array(ROW), mx.array([1.0, 3.0]))
        return (mx.array([0.5, 1 / 6, 1 / 6, 1 / 6]) * ratio * mx.array([2.0, -1, -1, -1])).sum()

    gradient = np.array(mx.grad(value)(mx.zeros(4)))
    # d/dlogp of 1/2 * 2 * s and of 1/2 * -1 * s, each token moving log s by 1 / length.
    assert gradient == pytest.approx([1.0, -1 / 6, -1 / 6, -1 / 6], abs=1e-6)


def test_a_clipped_token_has_no_gradient():
    def value(logprob):
        gain, _ = clipped_surrogate(mx.exp(logprob), mx.array([1.0, 1.0]), 0.2, 0.28)
        return gain.sum()

    gradient = np.array(mx.grad(value)(mx.array([math.log(1.5), math.log(1.1)])))
    assert gradient == pytest.approx([0.0, 1.1], abs=1e-6)


def test_k3_by_hand():
    # Policy .5, reference .25: .5 - log .5 - 1.
    value = k3(mx.array([math.log(0.25)]), mx.array([math.log(0.5)]))
    assert float(value[0]) == pytest.approx(0.5 + math.log(2) - 1, abs=1e-6)


@given(st.floats(-5, 0), st.floats(-5, 0))
def test_k3_is_never_negative(a, b):
    assert float(k3(mx.array([a]), mx.array([b]))[0]) >= -1e-5


def test_overlong_shaping_by_hand():
    # L_max 20, L_cache 5: free up to 15, a fifth a token from there, whole from 20 on.
    lengths = np.array([3, 15, 16, 18, 20, 40])
    assert overlong_penalty(lengths, 20, 5) == pytest.approx([0, 0, -0.2, -0.6, -1, -1])


@given(
    st.sampled_from(["grpo", "dapo", "gspo"]),
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 8)), min_size=1, max_size=8),
)
def test_shares_make_one(loss, chains):
    lengths, copies = (np.array(c, dtype=float) for c in zip(*chains, strict=True))
    assert (token_weights(loss, lengths, copies, 100) * lengths).sum() == pytest.approx(1)


@given(st.floats(-12, 0), st.floats(-12, 0))
def test_k3_pulls_back_with_a_bounded_gradient(reference, logprob):
    """A token that the policy has given up and the reference has not must not make the step."""

    def value(b):
        return k3(mx.array(reference), b)

    ratio = math.exp(reference - logprob)
    gradient = float(mx.grad(value)(mx.array(logprob)))
    assert gradient == pytest.approx(1 - min(ratio, MAX_RATIO), abs=1e-3)
    if ratio < MAX_RATIO:
        assert float(value(mx.array(logprob))) == pytest.approx(
            ratio - math.log(ratio) - 1, abs=1e-4
        )
