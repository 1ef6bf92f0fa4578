import mlx.core as mx
import numpy as np
import pytest
from gguf_file import byte_tokens, permuted, small_gguf, tokenizer_metadata
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from qagent_mlx.errors import QAgentError
from qagent_mlx.models.download import cached, pull
from qagent_mlx.models.gguf import build_tokenizer, convert, unpermute
from qagent_mlx.models.loading import load_model_folder
from qagent_mlx.policy.files import load_policy

INSTALLED = cached("smollm2-135m")  # of the machine, before tests hide its cache


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A small GGUF's model folder, and the weights that it must have."""
    folder = tmp_path_factory.mktemp("gguf")
    wanted = small_gguf(folder / "small.gguf")
    (folder / "model").mkdir()
    convert(folder / "small.gguf", folder / "model")
    return folder / "model", wanted


def test_weights_are_the_files_own_to_the_last_bit(converted):
    folder, wanted = converted
    model, _ = load_model_folder(folder, "float32")
    found = dict(tree_flatten(model.parameters()))
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert np.allclose(np.array(found[name]), value, atol=1e-6), name


def test_the_stored_weights_stay_quantised(converted):
    folder, _ = converted
    model, _ = load_model_folder(folder, "stored")
    layer = model.layers[0].self_attn.q_proj
    assert (layer.bits, layer.group_size) == (4, 32)
    tokens = mx.array([[5, 6, 7, 8]])
    whole, _ = load_model_folder(folder, "float32")
    assert np.allclose(np.array(model(tokens)), np.array(whole(tokens)), atol=2e-2)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_rows_come_back_from_llama_cpps_order(heads, half, width):
    rows = heads * 2 * half
    weights = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    back = unpermute(mx.array(permuted(weights, heads)), heads)
    assert np.array_equal(np.array(back), weights)


@given(st.text(max_size=60))
def test_the_tokenizer_gives_every_text_back(text):
    tokenizer, _ = build_tokenizer(
        {"llama.context_length": mx.array(8), **_as_loaded(tokenizer_metadata())}
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def _as_loaded(metadata):
    """Numbers as MLX hands them over."""
    return {
        k: mx.array(v) if isinstance(v, int) or k.endswith("token_type") else v
        for k, v in metadata.items()
    }


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["1", "2"]), ("gpt-2", ["12"])])
def test_smollm_splits_numbers_into_digits(pre, pieces):
    tokenizer, config = build_tokenizer(
        {"llama.context_length": mx.array(8), **_as_loaded(tokenizer_metadata(pre))}
    )
    assert tokenizer.encode("12").tokens == pieces
    assert tokenizer.encode("the <|im_end|>").tokens == ["the", "Ġ", "<|im_end|>"]
    assert config["eos_token"] == "<|im_end|>"
    assert len(byte_tokens()) == 256


def test_the_chat_template_and_the_end_of_a_turn_come_along(converted):
    folder, _ = converted
    policy = load_policy(folder)
    prompt = policy.codec.decode(policy.prompt)
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert policy.codec.eos_ids == {2}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"general.architecture": "mamba"}, "architecture mamba"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizers of the kind llama"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizers of the kind gpt2/qwen2"),
    ],
)
def test_other_kinds_are_refused(tmp_path, changes, what):
    small_gguf(tmp_path / "a.gguf", **changes)
    with pytest.raises(QAgentError, match=what):
        convert(tmp_path / "a.gguf", tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF nothing of the kind")
    with pytest.raises(QAgentError, match="no readable GGUF"):
        convert(tmp_path / "a.gguf", tmp_path)


def test_a_gguf_file_of_ones_own_is_pulled_into_the_cache(tmp_path):
    small_gguf(tmp_path / "mine.gguf")
    folder = pull(str(tmp_path / "mine.gguf"))
    assert load_policy(folder).parameters > 0


@pytest.mark.skipif(INSTALLED is None, reason="qagent models pull smollm2-135m was not run")
def test_the_real_smollm2_answers_and_writes_numbers_digit_by_digit():
    from mlx_lm import generate

    model, codec = load_model_folder(INSTALLED)
    assert codec.encode("Hello  world 1234 it's") == [
        19556,
        216,
        905,
        216,
        33,
        34,
        35,
        36,
        357,
        506,
    ]
    tokenizer = codec._wrapper
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert "Paris" in generate(model, tokenizer, prompt, max_tokens=10)
