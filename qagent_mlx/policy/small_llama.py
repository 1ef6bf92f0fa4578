"""New small decoders, built on mlx-lm's own llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer

from ..errors import QAgentError
from ..protocol.codec import EOS, ShopCodec, tokenizer_files
from ..utils.atomic_files import json_text
from .policy import Policy, PolicyInfo

# Few, wide heads: on a CPU softmax costs more than the matrix products.
SIZES: dict[str, dict[str, int]] = {
    "nano": {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "intermediate_size": 320,
        "num_attention_heads": 2,
    },
    "tiny": {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "intermediate_size": 512,
        "num_attention_heads": 3,
    },
    "small": {
        "hidden_size": 320,
        "num_hidden_layers": 6,
        "intermediate_size": 864,
        "num_attention_heads": 5,
    },
}


def llama_config(size: str, vocab_size: int, eos_id: int) -> dict[str, Any]:
    """The ``config.json`` of a new model."""
    if size not in SIZES:
        raise QAgentError(f"--size {size}: choose one of {', '.join(SIZES)}")
    shape = SIZES[size]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **shape,
        "num_key_value_heads": shape["num_attention_heads"],
        "head_dim": shape["hidden_size"] // shape["num_attention_heads"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "vocab_size": vocab_size,
        "tie_word_embeddings": True,
        "eos_token_id": eos_id,
    }


def new_policy(tokenizer: Tokenizer, size: str, name: str, seed: int) -> tuple[Policy, dict]:
    """A policy with random weights for a tokenizer made by `train_tokenizer`."""
    from mlx_lm.models import llama

    # Multiples of 64 suit the matrix kernels.
    vocab = -(-tokenizer.get_vocab_size() // 64) * 64
    eos = tokenizer.token_to_id(EOS)
    assert eos is not None
    config = llama_config(size, vocab, eos)
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
    return Policy(model, ShopCodec(tokenizer), PolicyInfo(name=name)), config


def save_base(policy: Policy, tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Write a whole model folder that mlx-lm loads, then ``policy.json``."""

    def write_config(path: Path) -> None:
        path.write_text(json_text(config), encoding="utf-8")

    policy.save(folder, {"config.json": write_config, **tokenizer_files(tokenizer)})
