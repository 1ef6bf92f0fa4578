"""A tiny chat model with random weights, as a folder: a byte-level tokenizer and a template."""

import json
from pathlib import Path

import mlx.core as mx
from gguf_file import small_gguf
from mlx.utils import tree_flatten

from qagent_mlx.models.gguf import convert

GEMMA = {
    "model_type": "gemma3",
    "vocab_size": 264,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 264,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 32,
        "max_position_embeddings": 2048,
    },
    "eos_token_id": 2,
}
QWEN = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 264,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
# As Qwen3 does it: thinking that is switched off leaves an empty block.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
# As Gemma does it: no system role.
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)


def chat_folder(folder: Path, template: str | None = None, seed: int = 0) -> Path:
    """A llama of 2 blocks that came out of a GGUF."""
    folder.mkdir(parents=True, exist_ok=True)
    small_gguf(folder / "it.gguf", seed)
    convert(folder / "it.gguf", folder)
    (folder / "it.gguf").unlink()
    if template is not None:
        set_template(folder, template)
    return folder


def set_template(folder: Path, template: str) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if template:
        config["chat_template"] = template
    else:
        del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def other_folder(folder: Path, config: dict, seed: int = 0) -> Path:
    """A model of another architecture with the same tokenizer."""
    from mlx_lm.utils import _get_classes

    chat_folder(folder)
    mx.random.seed(seed)
    kind, arguments = _get_classes(config)
    model = kind(arguments.from_dict(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
