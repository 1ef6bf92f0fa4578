"""Load a model folder into an mlx-lm model."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import QAgentError
from ..protocol.codec import AnyCodec, is_shop_tokenizer, load_codec
from ..utils.atomic_files import read_json
from ..utils.runtime import release_mlx_with_thread
from ..utils.settings import SettingError
from . import backend
from .known_models import PRECISIONS

MAX_LAYERS = 1000
QLORA_GROUP = 64  # weights that share a scale, where a model is quantised at loading

# What MLX and mlx-lm raise for a damaged file or a configuration that fits no model.
_LOADING_ERRORS = (
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
)
# Settings that ask for more than plain weights in the class's own layers.
_SPECIAL = (
    "quantization",
    "quantization_config",
    "text_config",
    "model_file",
    "quantize_activations",
)


def load_model_folder(folder: Path, dtype: str = "") -> tuple[nn.Module, AnyCodec]:
    """An mlx-lm model and its codec.

    Args:
        folder: Holds config.json, tokenizer.json and model*.safetensors. No code in it is run.
        dtype: A precision; see `set_precision`.

    Raises:
        QAgentError: something is missing or damaged.
    """
    release_mlx_with_thread()
    config = read_model_config(folder)
    try:
        model = load_plain_llama(folder, config) if is_shop_tokenizer(folder) else None
        if model is None:
            from mlx_lm.utils import load_model

            model, config = load_model(folder)
    except FileNotFoundError as error:
        raise QAgentError(f"{folder} has no model*.safetensors; pull the model again") from error
    except _LOADING_ERRORS as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise QAgentError(f"{folder}: the model cannot be loaded: {line}") from error
    model = set_precision(model, dtype)
    model.eval()
    mx.eval(model.parameters())
    return model, load_codec(folder, config.get("eos_token_id"))


def read_model_config(folder: Path) -> dict[str, Any]:
    """A model's config.json, before anything else of its folder is read.

    Raises:
        QAgentError: it is missing or damaged, brings code or an absurd number of layers, or a
            pipe or a device lies in the folder, whose reading would not end.
    """
    if not (folder / "config.json").exists():
        raise QAgentError(f"{folder} is no model folder: it has no config.json")
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise QAgentError(f"{path} is no file but a pipe, a socket or a device; remove it")
    config = read_json(folder / "config.json", f"the model {folder}")
    if not isinstance(config, dict):
        raise QAgentError(f"{folder}: config.json holds no object; pull the model again")
    if config.get("model_file") is not None:
        raise QAgentError(
            f"{folder} brings its own model code, which is never run; choose a model of a "
            "kind that mlx-lm knows"
        )
    _check_depth(folder, config)
    return config


def load_plain_llama(folder: Path, config: dict[str, Any]) -> nn.Module | None:
    """A llama of plain weights from its folder; None when it is anything else.

    Does what mlx-lm's ``load_model`` does for a shop's own policies, without the module that
    holds it: that one imports transformers, which takes a second at every start.

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


def _check_depth(folder: Path, config: dict[str, Any]) -> None:
    """Refuse an absurd number of layers, before mlx-lm makes them one by one."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key, value in part.items():
            counts_layers = "layers" in str(key) and isinstance(value, (int, float))
            if counts_layers and not value <= MAX_LAYERS:
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
        SettingError: there is no such precision.
    """
    dtype = dtype or backend.default_dtype()
    if dtype not in PRECISIONS:
        raise SettingError("dtype", f"must be one of {', '.join(PRECISIONS)}, not {dtype}")
    if dtype == "stored":
        return model
    quantized = any(hasattr(m, "scales") for _, m in model.named_modules())
    if dtype == "4bit":
        # Scales and what is not quantised stay in a type that the device computes well in.
        model.set_dtype(mx.float32 if backend.on_cpu() else mx.bfloat16)
        return model if quantized else quantize(model)
    # Scales change type first: so a float32 weight is the stored one exactly.
    model.set_dtype(getattr(mx, dtype))
    if not quantized:
        return model
    from mlx_lm.utils import dequantize_model

    return dequantize_model(model)


def quantize(model: nn.Module) -> nn.Module:
    """The model with all weights rounded to 4 bits that are not packed yet.

    Raises:
        SettingError: its matrices have no width that could be packed.
    """
    nn.quantize(model, QLORA_GROUP, 4, class_predicate=_quantizable)
    if not any(isinstance(m, nn.QuantizedLinear) for m in model.modules()):
        raise SettingError(
            "dtype", f"cannot be 4bit for this model: its widths are no multiples of {QLORA_GROUP}"
        )
    return model


def _quantizable(_name: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % QLORA_GROUP == 0
