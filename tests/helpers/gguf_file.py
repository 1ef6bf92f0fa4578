"""Writes small GGUF files, with llama.cpp's row order and Q4_1 blocks, to read them back."""

import struct

import numpy as np

F32, Q4_1 = 0, 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def q4_1(weights):
    """(blocks as bytes, the float32 numbers that they stand for) of (rows, 32 n) weights."""
    blocks = weights.reshape(-1, 32)
    low = blocks.min(axis=1, keepdims=True).astype(np.float16)
    step = ((blocks.max(axis=1, keepdims=True) - low) / 15).astype(np.float16)
    scaled = (blocks - low.astype(np.float32)) / np.maximum(step.astype(np.float32), 1e-8)
    codes = np.clip(np.round(scaled), 0, 15).astype(np.uint8)
    packed = codes[:, :16] | codes[:, 16:] << 4
    raw = np.concatenate([step.view(np.uint8), low.view(np.uint8), packed], axis=1)
    value = codes * step.astype(np.float32) + low.astype(np.float32)
    return raw.tobytes(), value.reshape(weights.shape)


def permuted(weights, heads):
    """Rows as llama.cpp's converter stores attn_q and attn_k."""
    rows = len(weights)
    return weights.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value):
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return _UINT32, struct.pack("<I", value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _string(value)
    if value and isinstance(value[0], str):
        body = b"".join(map(_string, value))
        return _ARRAY, struct.pack("<IQ", _STRING, len(value)) + body
    return _ARRAY, struct.pack("<IQ", _INT32, len(value)) + struct.pack(f"<{len(value)}i", *value)


def write_gguf(path, metadata, tensors):
    """``tensors``: name -> (kind, shape, bytes)."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, body = _value(value)
        head += [_string(key), struct.pack("<I", kind), body]
    offset, data = 0, []
    for name, (kind, shape, raw) in tensors.items():
        dims = shape[::-1]
        head += [_string(name), struct.pack("<I", len(dims)), struct.pack(f"<{len(dims)}Q", *dims)]
        head.append(struct.pack("<IQ", kind, offset))
        padded = raw + b"\0" * (-len(raw) % 32)
        data.append(padded)
        offset += len(padded)
    front = b"".join(head)
    path.write_bytes(front + b"\0" * (-len(front) % 32) + b"".join(data))


HEADS, KV_HEADS, HIDDEN, FEED, LAYERS = 4, 2, 64, 96, 2
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokens():
    """The 256 printable stand-ins of byte-level BPE."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def tokenizer_metadata(pre="smollm"):
    merges = ["t h", "th e", "Ġ the", "1 2", "o r"]
    tokens = [*SPECIAL, *byte_tokens(), *(m.replace(" ", "") for m in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def small_gguf(path, seed=0, **changes):
    """A whole llama with random Q4_1 weights; returns what its weights must be, by mlx-lm name."""
    tokens = tokenizer_metadata()
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FEED,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.context_length": 2048,
        **tokens,
        **changes,
    }
    random = np.random.default_rng(seed)
    kv = HIDDEN * KV_HEADS // HEADS
    wanted, tensors = {}, {}

    def add(gguf, name, shape, heads=0, norm=False):
        value = random.normal(size=shape).astype(np.float32) * 0.2
        if norm:
            tensors[f"{gguf}.weight"] = (F32, shape, (value + 1).tobytes())
            wanted[f"{name}.weight"] = value + 1
            return
        _, rounded = q4_1(value)
        raw, again = q4_1(permuted(rounded, heads) if heads else rounded)
        restored = again
        if heads:
            rows = shape[0]
            restored = again.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2)
        tensors[f"{gguf}.weight"] = (Q4_1, shape, raw)
        wanted[f"{name}.weight"] = restored.reshape(shape)

    add("token_embd", "model.embed_tokens", (len(tokens["tokenizer.ggml.tokens"]), HIDDEN))
    add("output_norm", "model.norm", (HIDDEN,), norm=True)
    for i in range(LAYERS):
        own, here = f"blk.{i}", f"model.layers.{i}"
        add(f"{own}.attn_norm", f"{here}.input_layernorm", (HIDDEN,), norm=True)
        add(f"{own}.ffn_norm", f"{here}.post_attention_layernorm", (HIDDEN,), norm=True)
        add(f"{own}.attn_q", f"{here}.self_attn.q_proj", (HIDDEN, HIDDEN), HEADS)
        add(f"{own}.attn_k", f"{here}.self_attn.k_proj", (kv, HIDDEN), KV_HEADS)
        add(f"{own}.attn_v", f"{here}.self_attn.v_proj", (kv, HIDDEN))
        add(f"{own}.attn_output", f"{here}.self_attn.o_proj", (HIDDEN, HIDDEN))
        add(f"{own}.ffn_gate", f"{here}.mlp.gate_proj", (FEED, HIDDEN))
        add(f"{own}.ffn_up", f"{here}.mlp.up_proj", (FEED, HIDDEN))
        add(f"{own}.ffn_down", f"{here}.mlp.down_proj", (HIDDEN, FEED))
    write_gguf(path, metadata, tensors)
    return wanted
