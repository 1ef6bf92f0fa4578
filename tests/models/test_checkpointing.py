"""What is computed again for the gradient gives the same values and gradients."""

import mlx.core as mx
import numpy as np
import pytest

from qagent_mlx.models.checkpointing import checkpoint, detach, lora_linear


def close(a, b):
    return np.allclose(np.array(a), np.array(b), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpointed_function_and_its_gradient(count):
    inputs = [mx.random.normal((3, 4)) for _ in range(count)]
    calls = []

    def function(*arrays):
        calls.append(1)
        return (mx.exp(sum(arrays)), arrays[0] * arrays[-1])

    def loss(run):
        return lambda *arrays: sum((x * x).sum() for x in run(*arrays))

    arguments = tuple(range(count))
    gradients = mx.grad(loss(lambda *a: checkpoint(function, *a)), arguments)(*inputs)
    assert len(calls) == 2  # forwards, and again for the gradient
    expected = mx.grad(loss(function), arguments)(*inputs)
    assert all(close(a, b) for a, b in zip(gradients, expected, strict=True))
    assert all(map(close, checkpoint(function, *inputs), function(*inputs)))


@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_layer_with_its_adapter_and_its_gradient(biased):
    shapes = (2, 3, 4), (4, 2), (2, 5)
    x, a, b = (mx.random.normal(shape) for shape in shapes)
    weight, bias = mx.random.normal((5, 4)), mx.random.normal((5,)) if biased else None

    def plain(x, a, b):
        output = x @ weight.T + 2.0 * (x @ a @ b)
        return output if bias is None else output + bias

    def checkpointed(x, a, b):
        return lora_linear(x, weight, bias, a, b, 2.0)

    assert close(checkpointed(x, a, b), plain(x, a, b))
    for gradient, expected in zip(
        mx.grad(lambda *v: mx.square(checkpointed(*v)).sum(), (0, 1, 2))(x, a, b),
        mx.grad(lambda *v: mx.square(plain(*v)).sum(), (0, 1, 2))(x, a, b),
        strict=True,
    ):
        assert close(gradient, expected)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_detached_array_is_equal_and_of_the_same_type(dtype):
    array = mx.random.normal((3,)).astype(dtype)
    assert detach(array).dtype == dtype
    assert mx.array_equal(detach(array), array)
