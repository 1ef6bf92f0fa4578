import mlx.core as mx
import numpy as np
import pytest

from qagent_mlx.models import backend
from qagent_mlx.models.sampling import constrain, sample
from qagent_mlx.protocol.grammar import MIN_P


@pytest.fixture(params=[True, False])
def device(request, monkeypatch):
    """Both ways to draw; MLX's runs on any device."""
    monkeypatch.setattr(backend, "on_cpu", lambda: request.param)


def streams_of(*seeds):
    return [None if s is None else np.random.Generator(np.random.Philox(key=s)) for s in seeds]


@pytest.mark.usefixtures("device")
def test_samples_follow_the_distribution():
    """The sampler draws each id as often as its probability says, by numpy and by MLX."""
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = mx.broadcast_to(mx.log(mx.array(probabilities)), (4000, 4))
    ids, logprobs = sample(logits, streams_of(*range(4000)), range(4000))
    seen = np.bincount(ids, minlength=4) / 4000
    assert np.allclose(seen, probabilities, atol=0.03)
    assert np.allclose(logprobs, np.log(probabilities)[ids], atol=1e-5)


@pytest.mark.usefixtures("device")
def test_a_draw_depends_on_its_own_stream_and_context_only():
    logits = mx.random.normal((3, 50), key=mx.random.key(0))
    contexts = [0, 0, 1, 2, 2, 2]
    ids, logprobs = sample(logits, streams_of(*range(6)), contexts)
    for i, context in enumerate(contexts):
        alone = sample(logits[context : context + 1], streams_of(i), [0])
        assert alone[0] == [ids[i]]
        assert alone[1] == pytest.approx([logprobs[i]], abs=1e-6)


@pytest.mark.usefixtures("device")
def test_without_a_stream_the_likeliest_token_of_the_context_is_taken():
    logits = mx.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    logits = mx.log(logits) + 2
    ids, logprobs = sample(logits, streams_of(None, None, None), [1, 0, 1])
    assert ids == [0, 1, 0]
    assert np.allclose(np.exp(logprobs), [0.6, 0.7, 0.6], atol=1e-5)


@pytest.mark.usefixtures("device")
def test_what_is_impossible_is_never_drawn():
    logits = mx.array([[-np.inf, 0.0, -np.inf, 0.0, -np.inf]])
    ids, _ = sample(logits, streams_of(*range(500)), [0] * 500)
    assert set(ids) == {1, 3}


def test_logits_keep_their_order_where_allowed_and_lose_the_long_tail():
    logits = mx.array([[0.0, 1.0, 1.0 + np.log(MIN_P) - 0.1, 5.0, 9.0]] * 2)
    mask = np.array([True, True, True, False])
    first, second = np.array(constrain(logits, [mask, None], [MIN_P, MIN_P]))
    assert np.isneginf(first).tolist() == [False, False, True, True, True]
    assert np.array_equal(second, np.array(logits)[1])


@pytest.mark.parametrize("length", [0, 3])
def test_a_vocabulary_padded_by_the_model_is_never_drawn_from(length):
    logits = mx.zeros((1, 4 + length))
    mask = np.array([True] * 4)
    assert np.isfinite(np.array(constrain(logits, [mask], [0.0]))).sum() == 4
