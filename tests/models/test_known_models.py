import pytest
from mlx.utils import tree_flatten

from qagent_mlx.errors import QAgentError
from qagent_mlx.models.download import sample_folder
from qagent_mlx.models.known_models import KNOWN_MODELS
from qagent_mlx.models.model_size import memory_needed, shape_of, stored_size
from qagent_mlx.policy.summary import details, memory_here

# Of each model's own config.json: what its shape leaves open.
CONFIGS = {
    "smollm2-135m": {"model_type": "llama", "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "smollm2-360m": {"model_type": "llama", "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "gemma-3-270m": {"model_type": "gemma3_text"},
    "qwen2.5-0.5b": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3-0.6b": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3-1.7b": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3-embedding-0.6b": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3-reranker-0.6b": {"model_type": "qwen3", "tie_word_embeddings": True},
}


def config_of(name):
    shape = KNOWN_MODELS[name].shape
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.feed_forward,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 4096,
        **CONFIGS[name],
    }


@pytest.mark.parametrize("name", sorted(KNOWN_MODELS))
def test_the_catalogs_parameters_are_those_of_a_model_of_that_shape(name):
    """The model is built but never evaluated, so that it takes no memory."""
    from mlx_lm.utils import _get_classes

    config = config_of(name)
    model, arguments = _get_classes(config)
    built = model(arguments.from_dict(config))
    names = dict(tree_flatten(built.parameters()))
    # gemma's head is made apart and dropped at loading, when the weights have none.
    count = sum(v.size for n, v in names.items() if name != "gemma-3-270m" or n != "lm_head.weight")
    assert KNOWN_MODELS[name].parameters == count
    assert shape_of(config) == KNOWN_MODELS[name].shape


def test_a_stored_models_size_is_read_from_its_files(nano_policy):
    size = stored_size(sample_folder())
    assert size.bytes == (sample_folder() / "model.safetensors").stat().st_size
    assert size.parameters == details(None, "sample").parameters > 0


def test_more_weights_need_more_memory_and_training_more_than_serving():
    sizes = [KNOWN_MODELS[n] for n in ("smollm2-135m", "smollm2-360m", "qwen3-0.6b", "qwen3-1.7b")]
    needed = [memory_needed(e.parameters, e.shape, 4.0) for e in sizes]
    assert needed == sorted(needed, key=lambda m: m.serving)
    assert all(
        m.training > m.serving > 4 * e.parameters for m, e in zip(needed, sizes, strict=True)
    )


def test_a_checkpointed_update_needs_less():
    entry = KNOWN_MODELS["smollm2-135m"]
    plain, checkpointed = (
        memory_needed(entry.parameters, entry.shape, 4.0, checkpointed=c) for c in (False, True)
    )
    assert checkpointed.serving == plain.serving
    assert plain.serving < checkpointed.training < plain.training / 2


def test_what_does_not_fit_is_told(monkeypatch):
    entry = KNOWN_MODELS["qwen3-1.7b"]
    monkeypatch.setattr("qagent_mlx.utils.runtime.total_memory", lambda: 4 * 10**9)
    assert memory_here(entry.parameters, entry.shape).serving_fits is False
    monkeypatch.setattr("qagent_mlx.utils.runtime.total_memory", lambda: 10**12)
    assert memory_here(entry.parameters, entry.shape).training_fits is True


def test_an_unknown_config_is_refused():
    with pytest.raises(QAgentError, match="no known kind of model"):
        shape_of({"model_type": "picture"})
