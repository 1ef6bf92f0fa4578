import pytest
from mlx.utils import tree_flatten

from qagent_mlx.models.known_models import KNOWN_MODELS
from qagent_mlx.models.model_size import shape_of

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
