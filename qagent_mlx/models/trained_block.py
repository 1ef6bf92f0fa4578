"""A block with adapters on a CPU: one function of MLX's tape, with its gradient written here.

MLX's tape keeps every array that it saw computed, and each function that is to keep less has to
copy what goes in and comes out. Where a whole block is one such function, only its ends are
copied, and what lies between is what the gradient needs and no more. The operations, and their
order, are those of `transformer_blocks`, so that results are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.lora import LoRALinear

from .checkpointing import custom_function, detach
from .cpu_kernels import Kept, swiglu, swiglu_gradient

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

KEPT_HIDDEN, KEPT_INNER = 8, 3  # tensors of these widths that a block keeps of each token

Attend = Callable[..., tuple[mx.array, mx.array, mx.array]]
"""(queries, keys, values, *context, kept=…), as projected -> output, and keys and values, which
others attend to."""


@dataclass(slots=True)
class AdaptedLinear:
    """A frozen linear layer with its adapter: ``x @ weight.T + bias + scale * x @ a @ b``."""

    weight: mx.array  # (out, in)
    bias: mx.array | None  # (out,)
    a: mx.array  # (in, rank)
    b: mx.array  # (rank, out)
    scale: float

    def __call__(self, x: mx.array) -> mx.array:
        """Of (..., in)."""
        output = x @ self.weight.T + (x @ self.a) @ (self.scale * self.b)
        return output if self.bias is None else output + self.bias

    def gradient(self, x: mx.array, by_output: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """By ``x``, ``a`` and ``b``."""
        by_rank = by_output @ (self.scale * self.b).T
        tokens, rows = x.reshape(-1, x.shape[-1]), by_output.reshape(-1, by_output.shape[-1])
        return (
            by_output @ self.weight + by_rank @ self.a.T,
            tokens.T @ by_rank.reshape(-1, by_rank.shape[-1]),
            self.scale * ((tokens @ self.a).T @ rows),
        )


@dataclass(frozen=True, slots=True)
class Places:
    """The tokens at which a last block is wanted, M in each row."""

    flat: mx.array  # (B * M,) of the flattened (B, N)

    def take(self, states: mx.array) -> mx.array:
        """(B, N, width) -> (B, M, width)."""
        width = states.shape[-1]
        taken = mx.take(states.reshape(-1, width), self.flat, axis=0)
        return taken.reshape(states.shape[0], -1, width)


def supported(layer: Any) -> bool:
    """Whether all projections of a block are plain layers whose adapters alone learn."""
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return all(map(_is_adapted, _projections(layer))) and not any(
        norm.trainable_parameters() for norm in norms
    )


def most_probabilities(width: int, inner: int) -> int:
    """Of a token's attention, in a block of these widths, that are kept for the gradient."""
    return (KEPT_HIDDEN * width + KEPT_INNER * inner) // 2


def _projections(layer: Any) -> list[Any]:
    return [
        getattr(layer.self_attn if name in PROJECTIONS[:4] else layer.mlp, name)
        for name in PROJECTIONS
    ]


def _is_adapted(module: Any) -> bool:
    if type(module) is not LoRALinear:
        return False
    dropped = module.dropout._p_1 < 1 and module.training
    plain = type(module.linear) is nn.Linear and not module.linear.trainable_parameters()
    return plain and not dropped


def run(
    layer: Any,
    hidden: mx.array,
    attend: Attend,
    context: tuple[mx.array, ...],
    places: Places | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """A block's output (B, N, width), and its keys and values.

    Args:
        layer: A block that is `supported`.
        hidden: (B, N, width).
        attend: The block's attention.
        context: What ``attend`` takes beside the block's own; a gradient reaches it.
        places: The tokens at which the block is wanted; all by default.
    """
    modules = _projections(layer)
    adapters = [array for module in modules for array in (module.lora_a, module.lora_b)]
    done: list[_Pass] = []
    count = len(context)

    @custom_function
    def block(*arrays: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        own = [detach(array) for array in arrays]
        linears = [
            AdaptedLinear(m.linear.weight, m.linear.get("bias"), own[at], own[at + 1], m.scale)
            for m, at in zip(modules, range(1 + count, len(own), 2), strict=True)
        ]
        forward = _Pass(layer, attend, places, linears, own[0], own[1 : 1 + count])
        done.append(forward)
        return forward.outputs

    @block.vjp
    def vjp(_primals: Any, cotangents: Any, _outputs: Any) -> Any:
        gradients = done.pop().gradients(*map(detach, cotangents))
        mx.eval(gradients)
        return tuple(map(detach, gradients))

    outputs: tuple[mx.array, mx.array, mx.array] = block(hidden, *context, *adapters)
    return outputs


class _Pass:
    """One pass through a block, with what its gradient needs."""

    def __init__(
        self,
        layer: Any,
        attend: Attend,
        places: Places | None,
        linears: list[AdaptedLinear],
        hidden: mx.array,
        context: list[mx.array],
    ) -> None:
        self._first, self._second = layer.input_layernorm, layer.post_attention_layernorm
        self._attend, self._places, self._linears = attend, places, linears
        self._hidden, self._context = hidden, context
        take = places.take if places else _as_it_is
        query, key, value, out, gate, up, down = linears
        # MLX keeps the graph of all that is computed while it takes a gradient: what is kept is
        # a copy, so that what it was computed from is freed.
        self._x = x = detach(self._first(hidden))
        self._chosen = detach(take(x)) if places else x
        self._projected = [detach(array) for array in (query(self._chosen), key(x), value(x))]
        self._kept: Kept | None = [] if self._keeps_probabilities(layer) else None
        attended, keys, values = attend(*self._projected, *context, kept=self._kept)
        self._attended = detach(attended)
        self._between = detach(take(hidden) + out(self._attended))
        self._y = detach(self._second(self._between))
        self._gate, self._up = detach(gate(self._y)), detach(up(self._y))
        self._product = detach(swiglu(self._gate, self._up))
        output = self._between + down(self._product)
        self.outputs = detach(output), detach(keys), detach(values)

    def _keeps_probabilities(self, layer: Any) -> bool:
        """Whether they are few beside all else that is kept; else they are computed again."""
        keys = self._x.shape[1] + (self._context[0].shape[2] if self._context else 0)
        width, inner = self._x.shape[-1], layer.mlp.up_proj.lora_b.shape[-1]
        return int(layer.self_attn.n_heads) * keys <= most_probabilities(width, inner)

    def gradients(
        self, by_output: mx.array, by_keys: mx.array, by_values: mx.array
    ) -> list[mx.array]:
        """By the hidden states, the context, and each adapter's two matrices."""
        query, key, value, out, gate, up, down = self._linears
        by_product, *of_down = map(detach, down.gradient(self._product, by_output))
        by_gate, by_up = swiglu_gradient(self._gate, self._up, by_product)
        by_y, *of_gate = gate.gradient(self._y, by_gate)
        by_y_too, *of_up = up.gradient(self._y, by_up)
        by_y = _of_norm(self._second, self._between, by_y + by_y_too)
        by_between, *of_both = map(detach, (by_output + by_y, *of_gate, *of_up))
        by_attended, *of_out = map(detach, out.gradient(self._attended, by_between))

        def attend(*arrays: mx.array) -> tuple[mx.array, ...]:
            return self._attend(*arrays, kept=self._kept)

        _, (by_queries, by_own_keys, by_own_values, *by_context) = mx.vjp(
            attend, [*self._projected, *self._context], [by_attended, by_keys, by_values]
        )
        mx.eval(by_queries, by_own_keys, by_own_values, by_context)
        by_chosen, *of_query = query.gradient(self._chosen, by_queries)
        by_x, *of_key = key.gradient(self._x, by_own_keys)
        by_x_too, *of_value = value.gradient(self._x, by_own_values)
        by_hidden = by_between
        if self._places:
            _, (by_chosen,) = mx.vjp(self._taken, [self._x], [by_chosen])
            _, (by_hidden,) = mx.vjp(self._taken, [self._hidden], [by_between])
        by_x = by_x_too + by_x + by_chosen
        by_hidden = by_hidden + _of_norm(self._first, self._hidden, by_x)
        adapters = [*of_query, *of_key, *of_value, *of_out, *of_both, *of_down]
        return [by_hidden, *by_context, *adapters]

    def _taken(self, states: mx.array) -> list[mx.array]:
        assert self._places
        return [self._places.take(states)]


def _as_it_is(states: mx.array) -> mx.array:
    return states


def _of_norm(norm: Any, x: mx.array, by_output: mx.array) -> mx.array:
    """The gradient of a norm by its input."""
    _, (by_input,) = mx.vjp(lambda x: [norm(x)], [x], [by_output])
    return by_input
