"""What mlx-lm's ``load_model`` and ``linear_to_lora_layers`` do, for a shop's own policies.

mlx-lm keeps both in modules that import transformers, which takes a second at every start
(see `utils.lazy_imports`). Here is the part of them that a small llama of plain float weights
with adapters on its linear layers needs; everything else goes to mlx-lm. The tests compare the
two, value by value.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from . import transformer_blocks

# Whatever asks for more than plain weights in the class's own layers.
_SPECIAL = (
    "quantization",
    "quantization_config",
    "text_config",
    "model_file",
    "quantize_activations",
)


def load_plain(folder: Path, config: dict[str, Any]) -> nn.Module | None:
    """A llama of plain weights from its folder; None when it is anything else.

    Raises:
        FileNotFoundError: it has no weights.
        ValueError: the weights do not fit the configuration.
    """
    if config.get("model_type") != "llama" or any(config.get(name) for name in _SPECIAL):
        return None
    if (folder / "hf_quant_config.json").exists():
        return None
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no model*.safetensors")
    weights: dict[str, mx.array] = {}
    for file in files:
        weights.update(mx.load(str(file)))  # type: ignore[arg-type]
    family = import_module("mlx_lm.models.llama")
    model: nn.Module = family.Model(family.ModelArgs.from_dict(config))
    model.eval()
    model.load_weights(list(model.sanitize(weights).items()), strict=True)
    return model


def add_adapters(model: nn.Module, last: int, rank: int, scale: float, dropout: float) -> bool:
    """Adapters on all linear layers of the last blocks; False when mlx-lm has to do it."""
    if not transformer_blocks.supported(model):
        return False
    for layer in model.layers[-max(last, 0) :]:
        adapted = []
        for name, module in layer.named_modules():
            if isinstance(module, (nn.Linear, nn.QuantizedLinear)):
                made = LoRALinear.from_base(module, rank, dropout, scale)  # type: ignore[arg-type]
                adapted.append((name, made))
        layer.update_modules(tree_unflatten(adapted))
    return True
