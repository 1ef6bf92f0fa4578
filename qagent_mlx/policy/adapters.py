"""LoRA adapters of a model: add, merge and load them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from ..errors import QAgentError
from ..models import transformer_blocks
from .lora import LoraConfig


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Put new adapters on a model's last blocks, as mlx-lm does.

    mlx-lm's own function stands in a module that imports transformers, which takes a second.
    Here is what it does with all linear layers of a llama; everything else goes to mlx-lm.
    """
    layers = model.layers
    last = len(layers) if config.blocks < 0 else min(config.blocks, len(layers))
    if config.keys or not transformer_blocks.supported(model):
        from mlx_lm.tuner.utils import linear_to_lora_layers

        keys = {"keys": list(config.keys)} if config.keys else {}
        parameters = {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}
        linear_to_lora_layers(model, last, {**parameters, **keys})
        return
    for layer in layers[len(layers) - last :]:
        adapted = [
            (name, LoRALinear.from_base(module, config.rank, config.dropout, config.scale))  # type: ignore[arg-type]
            for name, module in layer.named_modules()
            if isinstance(module, (nn.Linear, nn.QuantizedLinear))
        ]
        layer.update_modules(tree_unflatten(adapted))


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights that they belong to; the model computes the same.

    Quantised layers with an adapter come out unquantised: rounding the sum again would make
    another model than the one that was trained.
    """
    adapted = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_a")]
    fused = [(n, m.fuse(dequantize=True)) for n, m in adapted]
    if fused:
        model.update_modules(tree_unflatten(fused))
        mx.eval(model.parameters())


def load_adapter(model: nn.Module, weights: dict[str, mx.array], where: str) -> None:
    """Put stored adapter weights in place; every name and shape must fit.

    Raises:
        QAgentError: the weights belong to another model, listing what does not fit.
    """
    own = dict(tree_flatten(model.trainable_parameters()))
    wrong = sorted(set(own) ^ set(weights))
    wrong += [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if wrong:
        raise QAgentError(
            f"{where}: the adapter does not fit the model ({len(wrong)} tensors, first "
            f"{wrong[0]}); train it again on this base"
        )
    model.load_weights(list(weights.items()), strict=False)
    mx.eval(model.parameters())
