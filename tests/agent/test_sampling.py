"""Drawing tokens: by the distribution, and from a stream for each sequence."""

import mlx.core as mx
import numpy as np
import pytest

from qagent_mlx.agent import sampling
from qagent_mlx.agent.sampling import sample
from qagent_mlx.agent.sequences import DecodingSequence


def sequence(seed=None):
    stream = None if seed is None else np.random.Generator(np.random.Philox(key=seed))
    return DecodingSequence([], None, stream, 1)


@pytest.fixture(params=["cpu", "gpu"])
def device(request, monkeypatch):
    """Both ways to draw; MLX's runs on any device."""
    monkeypatch.setattr(sampling, "device_name", lambda: request.param)


@pytest.mark.usefixtures("device")
def test_samples_follow_the_distribution():
    """The sampler draws each id as often as its probability says."""
    sequences = [sequence(i) for i in range(4000)]
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = mx.broadcast_to(mx.log(mx.array(probabilities)), (4000, 4))
    ids, logprobs = sample(logits, sequences, range(len(sequences)))
    frequencies = np.bincount(ids, minlength=4) / 4000
    assert np.allclose(frequencies, probabilities, atol=0.03)
    assert np.allclose(logprobs, np.log(probabilities)[ids], atol=1e-5)


@pytest.mark.usefixtures("device")
def test_a_draw_depends_on_its_own_stream_and_context_only():
    logits = mx.random.normal((3, 50), key=mx.random.key(0))
    contexts = [0, 0, 1, 2, 2, 2]
    ids, logprobs = sample(logits, [sequence(i) for i in range(6)], contexts)
    for i, context in enumerate(contexts):
        alone = sample(logits[context : context + 1], [sequence(i)], [0])
        assert alone[0] == [ids[i]]
        assert alone[1] == pytest.approx([logprobs[i]], abs=1e-6)


@pytest.mark.usefixtures("device")
def test_without_a_stream_the_likeliest_token_is_taken():
    logits = mx.array([[0.0, 3.0, 1.0], [2.0, 0.0, -1.0]])
    ids, logprobs = sample(logits, [sequence(), sequence()], [0, 1])
    assert ids == [1, 0]
    assert logprobs == pytest.approx((logits - mx.logsumexp(logits, -1, keepdims=True)).max(-1))


@pytest.mark.usefixtures("device")
def test_what_is_impossible_is_never_drawn():
    logits = mx.array([[-np.inf, 0.0, -np.inf, 0.0, -np.inf]])
    ids, _ = sample(logits, [sequence(i) for i in range(500)], [0] * 500)
    assert set(ids) == {1, 3}
