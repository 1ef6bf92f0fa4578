"""Tiny models with random weights of the architectures that mlx-lm has."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

# Architectures that no tiny model on a CPU can be made of.
NOT_TRIED = (
    ("bitnet", "its kernels need Metal"),
    ("muse_spark", "its kernels need Metal"),
    ("olmo", "needs the package ai2-olmo"),
    ("prism_hadamard_qwen35", "exists packed only"),
)

# What the fields of ``ModelArgs`` are in a tiny model, whatever the architecture.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "hidden_dim", "dim", "n_embd", "d_model", "block_dim"), 64),
    **dict.fromkeys(("model_dim", "model_d", "attn_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), 4),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "n_head"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head"), 2),
    **dict.fromkeys(("num_global_key_value_heads", "num_attention_groups"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels", "global_head_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_hidden_size", "d_ff"), 96),
    **dict.fromkeys(("intermediate_size_mlp", "moe_intermediate_size", "dense_hidden_size"), 64),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 64),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "num_shared_expert"), 1),
    **dict.fromkeys(("n_group", "topk_group", "moe_layer_freq", "decoder_sparse_step"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "n_dense_layers"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "block_size"), 2048),
    **dict.fromkeys(("original_max_position_embeddings", "model_max_length"), 2048),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("rms_norm_eps", "norm_eps", "layer_norm_epsilon", "layer_norm_eps"), 1e-5),
    **dict.fromkeys(("norm_epsilon", "layernorm_epsilon", "rms_norm_epsilon"), 1e-5),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_base"), 10000.0),
    **dict.fromkeys(
        ("attention_bias", "mlp_bias", "use_bias", "conv_bias", "use_conv_bias"), False
    ),
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads", "mamba_heads"), 4),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head"), 16),
    **dict.fromkeys(("ssm_state_size", "state_size", "mamba_d_state"), 16),
    **dict.fromkeys(("conv_kernel", "mamba_d_conv", "conv_L_cache", "linear_conv_kernel_dim"), 4),
    **dict.fromkeys(("n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_value_head_dim", "linear_key_head_dim"), 16),
    **dict.fromkeys(("sliding_window", "attention_window_size", "sliding_window_size"), 32),
    "rope_scaling": None,
    "rotary_dim": 16,
    "rotary_pct": 1.0,
    "partial_rotary_factor": 1.0,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "mamba_expand": 2,
    "mamba_proj_bias": False,
    "mamba_d_ssm": 64,
    "time_step_rank": 4,
    "time_step_limit": (0.001, 0.1),
    "logits_scaling": 8.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 2048,
    "use_qk_norm": True,
    "tie_word_embeddings": True,
}

# What single architectures need beside that.
SLIDING = ["sliding_attention", "full_attention"] * 2
YARN = {"type": "yarn", "rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}
LONG = {**YARN, "original_max_position_embeddings": 1024, "llama_4_scaling_beta": 0.1}
KDA = {"num_heads": 4, "head_dim": 16, "kda_layers": [1, 3], "short_conv_kernel_size": 4}
MLA_SCALES = {"mla_scale_q_lora": True, "mla_scale_kv_lora": True, "zero_expert_num": 2}
GEMMA3N: dict[str, Any] = {
    "num_kv_shared_layers": 2,
    "layer_types": SLIDING,
    "activation_sparsity_pattern": [0.5] * 4,
    "hidden_size_per_layer_input": 16,
    "altup_num_inputs": 2,
    "altup_coef_clip": 1.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 8,
    "rope_local_base_freq": 10000.0,
    "final_logit_softcapping": 5.0,
}
SWA = {
    "swa_rope_theta": 1000.0,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "swa_v_head_dim": 16,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
}
ROUTED = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
OWN: dict[str, dict[str, Any]] = {
    "Klear": {"mlp_only_layers": [0]},
    "afm7": {"num_kv_reuse_layers": 2, "num_layers": 4},
    "afmoe": {"layer_types": SLIDING},
    "apertus": {"post_norm": False, "qk_norm": True},
    "baichuan_m1": {
        "sliding_window_layers": [0, 2],
        "conv_window": 2,
        "tie_word_embeddings": False,
    },
    "bailing_hybrid": {"layer_group_size": 2, "group_norm_size": 1},
    "bailing_moe_linear": {"layer_group_size": 2, "group_norm_size": 1},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625, "sliding_window_pattern": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000},
    },
    "deepseek_v2": {"rope_scaling": {**YARN, "original_max_position_embeddings": 1024}},
    "exaone4": {"sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": SLIDING, "is_moe_layer": [False, True, True, True]},
    "gear": {"layer_types": SLIDING, "final_logit_softcapping": 5.0},
    "gemma2": {"final_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma4_text": {
        "layer_types": SLIDING,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 16,
        "sliding_window_pattern": 2,
        "final_logit_softcapping": 5.0,
    },
    "glm_moe_dsa": {**ROUTED, "rope_parameters": {"rope_theta": 10000.0}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k3": {"linear_attn_config": KDA, "first_k_dense_replace": 1},
    "kimi_linear": {"linear_attn_config": KDA},
    "lfm2": {
        "block_multiple_of": 4,
        "block_ffn_dim_multiplier": 2,
        "block_auto_adjust_ff_dim": True,
        "block_ff_dim": 96,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "lfm2_moe": {"use_expert_bias": True, "layer_types": ["conv", "full_attention"] * 2},
    "llama4": {
        "attention_chunk_size": 32,
        "interleave_moe_layer_step": 2,
        "num_experts_per_tok": 1,
    },
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0]},
    "longcat_flash": {**MLA_SCALES, "attention_method": "MLA", "zero_expert_type": "identity"},
    "longcat_flash_ngram": MLA_SCALES,
    "mellum": {
        "layer_types": SLIDING,
        "rope_parameters": {name: {"rope_theta": 10000.0} for name in SLIDING},
    },
    "mimo_v2_flash": {
        **SWA,
        **ROUTED,
        "hybrid_layer_pattern": [0, 1, 0, 1],
        "moe_layer_freq": [0, 1, 0, 1],
    },
    "minicpm": {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 12.0},
    "minicpm3": {
        "dim_model_base": 16,
        "scale_depth": 1.4,
        "scale_emb": 12.0,
        "rope_scaling": {"short_factor": 1.0, "long_factor": 1.0},
    },
    "minimax_m3_vl": {"moe_layer_freq": [0, 1, 1, 1], "dense_intermediate_size": 96},
    "ministral3": {"rope_parameters": LONG},
    "mistral4": {"rope_parameters": LONG},
    "muse_spark": {
        "post_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0},
        "layer_rope_theta": [10000.0, 0, 10000.0, 0],
        "layer_types": SLIDING,
        "final_logit_softcapping": 5.0,
        "output_multiplier": 0.5,
        "moe_hidden_size": 64,
        "mlp_layer_types": ["sparse"] * 4,
        "num_shared_experts": 0,
    },
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}} for _ in range(4)
        ]
    },
    "nemotron_h": {"hybrid_override_pattern": ["*", "M", "-", "M"]},
    "olmo_hybrid": {"linear_allow_neg_eigval": True},
    "openelm": {
        "num_transformer_layers": 4,
        "ffn_dim_divisor": 8,
        "num_query_heads": [4] * 4,
        "num_kv_heads": [2] * 4,
        "ffn_multipliers": [1.5] * 4,
    },
    "phi3small": {
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 96,
        "gegelu_limit": 20.0,
    },
    "phixtral": {"num_vocab": 0},
    "plamo": {"n_shared_head": 2, "num_attention_heads": 4},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "qwen3_next": {"mlp_only_layers": [0], "full_attention_interval": 2},
    "recurrent_gemma": {
        "conv1d_width": 4,
        "logits_soft_cap": 5.0,
        "block_types": ["recurrent", "attention"] * 2,
    },
    "rwkv7": {
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "stablelm": {"use_qkv_bias": True},
    "spark2_5": {
        "layer_types": SLIDING,
        "rope_parameters": {name: {"rope_theta": 10000.0} for name in SLIDING},
    },
}
# Models with pictures, and the architecture of their language part.
TEXT = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "kimi_vl": "deepseek_v3",
    "lfm2-vl": "lfm2",
    "mistral3": "ministral3",
    "pixtral": "llama",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}


def names() -> list[str]:
    """The architectures of the installed mlx-lm."""
    import mlx_lm.models as package

    found = []
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        if module in dict(NOT_TRIED):
            continue
        source = inspect.getsource(importlib.import_module(f"mlx_lm.models.{module}"))
        if "class ModelArgs" in source and "class Model(" in source:
            found.append(module)
    return found


def tiny_config(name: str, vocabulary: int) -> dict[str, Any]:
    """A ``config.json`` of the architecture, as small as it goes."""
    family = importlib.import_module(f"mlx_lm.models.{name}")
    values = _small(family.ModelArgs, vocabulary)
    inner = getattr(family, "TextConfig", None) or getattr(family, "TextArgs", None)
    if name.startswith("qwen3_5"):
        text = _small(importlib.import_module("mlx_lm.models.qwen3_5").TextModelArgs, vocabulary)
        dense = {} if "moe" in name else {"num_experts": 0, "num_experts_per_tok": 0}
        values["text_config"] = {**text, **dense, "full_attention_interval": 2}
    elif name in TEXT:
        values["text_config"] = tiny_config(TEXT[name], vocabulary)
    elif name == "gemma3n" or (inner and "text_config" in _fields(family.ModelArgs)):
        own = GEMMA3N if name == "gemma3n" else OWN.get(name, {})
        values["text_config"] = {**_small(inner, vocabulary), **own, "model_type": name}
    if "num_vocab" in OWN.get(name, {}):
        values["num_vocab"] = vocabulary
        return {**values, "model_type": name}
    return {**values, **OWN.get(name, {}), "model_type": name}


def _fields(arguments: Any) -> list[str]:
    return [item.name for item in dataclasses.fields(arguments)]


def _small(arguments: Any, vocabulary: int) -> dict[str, Any]:
    values = {name: SMALL[name] for name in _fields(arguments) if name in SMALL}
    sizes = ("vocab_size", "vocab_size_per_layer_input")
    return {**values, **{name: vocabulary for name in _fields(arguments) if name in sizes}}


def tiny_model(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """A model of this configuration with random weights."""
    family = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    model: nn.Module = family.Model(family.ModelArgs.from_dict(config))
    count = sum(value.size for _, value in tree_flatten(model.parameters()))
    if count > 20_000_000:
        raise ValueError(f"{config['model_type']} has {count:,} weights: not tiny")
    mx.eval(model.parameters())
    return model
