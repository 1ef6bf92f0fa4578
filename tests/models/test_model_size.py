import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.models.download import sample_folder
from qagent_mlx.models.known_models import KNOWN_MODELS
from qagent_mlx.models.model_size import memory_needed, shape_of, stored_size
from qagent_mlx.policy.summary import details


def test_a_stored_models_size_is_read_from_its_files():
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


def test_an_unknown_config_is_refused():
    with pytest.raises(QAgentError, match="no known kind of model"):
        shape_of({"model_type": "picture"})
