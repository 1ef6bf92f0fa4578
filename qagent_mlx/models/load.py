"""Load a model folder into an mlx-lm model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import QAgentError
from ..protocol.codec import AnyCodec, load_codec, speaks_tags
from ..utils.atomic_files import read_json
from ..utils.runtime import device_name
from .fast_load import load_plain

MOST_BLOCKS = 1000
DTYPES = ("float32", "bfloat16", "float16", "4bit", "stored")
QLORA_GROUP = 64  # weights that share a scale, where a model is quantised at loading


def load_model_folder(folder: Path, dtype: str = "") -> tuple[nn.Module, AnyCodec]:
    """An mlx-lm model and its codec.

    Args:
        folder: Holds config.json, tokenizer.json and model*.safetensors. No code in it is run.
        dtype: One of `DTYPES`; see `set_precision`.

    Raises:
        QAgentError: something is missing or damaged.
    """
    if not (folder / "config.json").exists():
        raise QAgentError(f"{folder} is no model folder: it has no config.json")
    config = read_json(folder / "config.json", f"the model {folder}")
    if not isinstance(config, dict):
        raise QAgentError(f"{folder}: config.json holds no object; pull the model again")
    if config.get("model_file"):
        raise QAgentError(f"{folder} brings its own model code, which is never run")
    _check_depth(folder, config)
    try:
        own = isinstance(config, dict) and speaks_tags(folder)
        model = load_plain(folder, config) if own else None
        if model is None:
            from mlx_lm.utils import load_model

            model, config = load_model(folder)
    except FileNotFoundError as error:
        raise QAgentError(f"{folder} has no model*.safetensors; pull the model again") from error
    except (
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        AttributeError,
        ArithmeticError,
        IndexError,
        AssertionError,
        RecursionError,
        OSError,
    ) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise QAgentError(f"{folder}: the model cannot be loaded: {line}") from error
    model = set_precision(model, dtype)
    model.eval()
    mx.eval(model.parameters())
    return model, load_codec(folder, config.get("eos_token_id"))


def _check_depth(folder: Path, config: dict[str, Any]) -> None:
    """Weights of a wrong size are refused by name; blocks are made one by one, so count first."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key, value in part.items():
            counted = "layers" in str(key) and isinstance(value, (int, float))
            if counted and not value <= MOST_BLOCKS:
                raise QAgentError(
                    f"{folder}: config.json says {key} {str(value)[:20]}, which no model has"
                )


def set_precision(model: nn.Module, dtype: str = "") -> nn.Module:
    """The model with its weights in a precision that suits the device, or the one asked for.

    Args:
        model: As it was stored, quantised or not.
        dtype: ``float32``, ``bfloat16`` and ``float16`` undo a quantisation; ``4bit`` keeps
            one or makes one; ``stored`` changes nothing. By default float32 on a CPU, whose
            matrix products are slow in all others, and what is stored on a GPU.

    Raises:
        QAgentError: there is no such precision.
    """
    cpu = device_name() == "cpu"
    wanted = dtype or ("float32" if cpu else "stored")
    if wanted not in DTYPES:
        raise QAgentError(f"--dtype {wanted}: choose one of {', '.join(DTYPES)}")
    if wanted == "stored":
        return model
    quantized = any(hasattr(m, "scales") for _, m in model.named_modules())
    if wanted == "4bit":
        # Scales and what is not quantised stay in a type that the device computes well in.
        model.set_dtype(mx.float32 if cpu else mx.bfloat16)
        if not quantized:
            nn.quantize(model, QLORA_GROUP, 4, class_predicate=_quantizable)
        return model
    # Scales change type first: so a float32 weight is the stored one exactly.
    model.set_dtype(getattr(mx, wanted))
    if not quantized:
        return model
    from mlx_lm.utils import dequantize_model

    return dequantize_model(model)


def _quantizable(_name: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % QLORA_GROUP == 0
