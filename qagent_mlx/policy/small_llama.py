"""New small decoders, built on mlx-lm's own llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer

from ..protocol.codec import EOS, ShopCodec, tokenizer_files
from ..utils.atomic_files import json_text
from ..utils.runtime import release_mlx_with_thread
from ..utils.settings import SettingError
from .policy import Policy, PolicyInfo

# name -> hidden size, layers, feed-forward size, heads.
# Few, wide heads: on a CPU softmax costs more than the matrix products.
SIZES = {"nano": (128, 3, 320, 2), "tiny": (192, 4, 512, 3), "small": (320, 6, 864, 5)}


def llama_config(size: str, vocab_size: int, eos_id: int) -> dict[str, Any]:
    """The ``config.json`` of a new model of one of `SIZES`."""
    if size not in SIZES:
        raise SettingError("size", f"must be one of {', '.join(SIZES)}, not {size}")
    hidden, layers, feed_forward, heads = SIZES[size]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "vocab_size": vocab_size,
        "tie_word_embeddings": True,
        "eos_token_id": eos_id,
    }


def new_policy(
    tokenizer: Tokenizer, size: str, name: str, seed: int
) -> tuple[Policy, dict[str, Any]]:
    """A policy with random weights for a tokenizer made by `train_tokenizer`.

    Returns:
        The policy, and its model's ``config.json``.
    """
    from mlx_lm.models import llama

    # Multiples of 64 suit the matrix kernels.
    vocab = -(-tokenizer.get_vocab_size() // 64) * 64
    eos = tokenizer.token_to_id(EOS)
    assert eos is not None
    config = llama_config(size, vocab, eos)
    release_mlx_with_thread()
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    scale = config["hidden_size"] ** -0.5
    depth = (2 * config["num_hidden_layers"]) ** -0.5
    model.model.embed_tokens.weight = mx.random.normal((vocab, config["hidden_size"])) * scale
    for layer in model.layers:
        for part, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (layer.mlp, ("gate_proj", "up_proj", "down_proj")),
        ):
            for key in names:
                weight = part[key].weight
                # The two layers that write into the residual stream start smaller.
                damp = depth if key in ("o_proj", "down_proj") else 1.0
                part[key].weight = mx.random.normal(weight.shape) * scale * damp
    mx.eval(model.parameters())
    return Policy(model, ShopCodec(tokenizer), PolicyInfo(name)), config


def save_base(policy: Policy, tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Write a whole model folder that mlx-lm loads, then ``policy.json``."""

    def write_config(path: Path) -> None:
        path.write_text(json_text(config), encoding="utf-8")

    policy.save(folder, {"config.json": write_config, **tokenizer_files(tokenizer)})
