"""Convert GGUF files to mlx-lm model folders without changing a weight.

A GGUF file holds a whole model: weights, tokenizer and chat template. The conversion writes
``config.json`` from its metadata, ``tokenizer.json`` from its vocabulary and merges, and the
tensors under mlx-lm's names. MLX reads quantised blocks in its own packing (Q4_0, Q4_1 and
Q8_0: a scale and a bias for each 32 weights), so nothing is rounded again. The rows of
``attn_q`` and ``attn_k`` are put in mlx-lm's order: llama.cpp permutes them within each head
for its kind of rotary embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..errors import QAgentError
from ..utils.atomic_files import write_json, write_with

# Names of modules, in a block and outside: llama.cpp's -> mlx-lm's.
_BLOCK_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_MODEL_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_CONTROL, _USER_DEFINED = 3, 4  # token types: special ones, and whole ones that are plain text


def convert(path: Path, folder: Path) -> None:
    """Write a GGUF file as an mlx-lm model folder.

    Args:
        path: A llama-architecture GGUF with a byte-level BPE tokenizer (SmolLM, GPT-2 style).
        folder: Exists; config, tokenizer and weights are written into it, weights last.

    Raises:
        QAgentError: the file is damaged, or of another architecture.
    """
    weights: Any
    metadata: Any
    try:
        weights, metadata = mx.load(str(path), return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise QAgentError(f"{path} is no readable GGUF file: {error}") from error
    try:
        config = model_config(metadata)
        tensors, quantization = model_weights(weights, config)
        tokenizer, tokenizer_config = build_tokenizer(metadata)
    except KeyError as error:
        raise QAgentError(f"{path}: the GGUF file lacks {error}; take another file") from error
    if quantization:
        # Both keys, as mlx-lm's own converter writes them.
        config |= {"quantization": quantization, "quantization_config": quantization}
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_with(folder / "tokenizer.json", tokenizer.save)
    write_with(
        folder / "model.safetensors",
        lambda p: mx.save_safetensors(p, tensors, metadata={"format": "mlx"}),
    )


def model_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of mlx-lm's llama that a GGUF's metadata describes."""
    kind = metadata["general.architecture"]
    if kind != "llama":
        raise QAgentError(
            f"GGUF files of the architecture {kind} are not read; llama ones are. Pull the "
            "model's safetensors instead"
        )

    def number(key: str) -> Any:
        return metadata[f"llama.{key}"].item()

    heads = number("attention.head_count")
    hidden = number("embedding_length")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": number("block_count"),
        "intermediate_size": number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv"),
        "head_dim": hidden // heads,
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": number("rope.freq_base"),
        "max_position_embeddings": number("context_length"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"].item(),
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"].item(),
    }


def model_weights(
    weights: dict[str, mx.array], config: dict[str, Any]
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Tensors under mlx-lm's names with their rows in its order, and their quantisation.

    Returns:
        The tensors, and mlx-lm's ``quantization`` entry: the commonest kind, with an entry
        for each module of another kind; empty when nothing is quantised.
    """
    tensors: dict[str, mx.array] = {}
    kinds: dict[str, tuple[int, int]] = {}  # module -> (group size, bits)
    for name, value in weights.items():
        module, part = _renamed(name)
        heads = {
            "q_proj": config["num_attention_heads"],
            "k_proj": config["num_key_value_heads"],
        }.get(module.rpartition(".")[2])
        tensors[f"{module}.{part}"] = unpermute(value, heads) if heads else value
        if part == "scales":
            bits = 32 * weights[name.removesuffix("scales") + "weight"].shape[-1]
            kinds[module] = (32, bits // (32 * value.shape[-1]))
    if not kinds:
        return tensors, {}
    common = max(set(kinds.values()), key=lambda k: (list(kinds.values()).count(k), k))
    quantization: dict[str, Any] = {"group_size": common[0], "bits": common[1]}
    for module, (group, bits) in kinds.items():
        if (group, bits) != common:
            quantization[module] = {"group_size": group, "bits": bits}
    return tensors, quantization


def unpermute(value: mx.array, heads: int) -> mx.array:
    """Undo llama.cpp's permutation of a projection's output rows, head by head.

    llama.cpp interleaves the two halves of each head: the pairs that rotary embedding rotates
    together are neighbours there and half a head apart in mlx-lm.
    """
    shape = value.shape
    paired = value.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
    return mx.contiguous(paired.swapaxes(1, 2).reshape(shape))


def _renamed(name: str) -> tuple[str, str]:
    """The mlx-lm module of a llama.cpp tensor, and the tensor's part of it (weight, scales …)."""
    module, _, part = name.rpartition(".")
    if module.startswith("blk."):
        _, number, inner = module.split(".", 2)
        if inner in _BLOCK_MODULES:
            return f"model.layers.{number}.{_BLOCK_MODULES[inner]}", part
    elif module in _MODEL_MODULES:
        return _MODEL_MODULES[module], part
    raise QAgentError(
        f"the GGUF file has the tensor {name}, which a plain llama has not; pull the model's "
        "safetensors instead"
    )


def build_tokenizer(metadata: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """The byte-level BPE that a GGUF's metadata describes, and its ``tokenizer_config.json``."""
    kind = metadata["tokenizer.ggml.model"]
    style = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or style not in ("smollm", "gpt-2"):
        raise QAgentError(
            f"GGUF tokenizers of the kind {kind}/{style} are not read; pull the model's "
            "safetensors instead"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if style == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"].tolist()
    for text, number in zip(tokens, types, strict=True):
        if number in (_CONTROL, _USER_DEFINED):
            special = number == _CONTROL
            tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"].item(),
    }
    for role in ("bos", "eos", "padding", "unknown"):
        number = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if number is not None:
            short = {"padding": "pad", "unknown": "unk"}.get(role, role)
            config[f"{short}_token"] = tokens[number.item()]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return tokenizer, config
