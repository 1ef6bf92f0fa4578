import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from qagent_mlx.models.download import sample_folder
from qagent_mlx.models.loading import load_plain_llama
from qagent_mlx.policy.adapters import add_adapters
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.utils.atomic_files import read_json


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def same(one, other):
    return one.keys() == other.keys() and all(
        bool(mx.array_equal(one[name], other[name])) for name in one
    )


def config():
    return read_json(sample_folder() / "config.json", "the sample policy")


def test_a_plain_model_is_loaded_as_mlx_lm_loads_it():
    mine = load_plain_llama(sample_folder(), config())
    theirs, _ = load_model(sample_folder())
    assert same(parameters(mine), parameters(theirs))
    ids = mx.array([[1, 5, 9, 2]])
    assert bool(mx.array_equal(mine(ids), theirs(ids)))
    assert not mine.training


@pytest.mark.parametrize("last", [1, 2, 99])
def test_adapters_are_those_that_mlx_lm_makes(last):
    made = []
    for ours in (True, False):
        model, _ = load_model(sample_folder())
        model.freeze()
        mx.random.seed(3)
        if ours:
            add_adapters(model, LoraConfig(rank=4, scale=2.0, dropout=0.1, blocks=last))
        else:
            linear_to_lora_layers(model, last, {"rank": 4, "scale": 2.0, "dropout": 0.1})
        made.append(model)
    assert same(parameters(made[0]), parameters(made[1]))
    trained = [dict(tree_flatten(model.trainable_parameters())) for model in made]
    assert trained[0] and same(*trained)


@pytest.mark.parametrize(
    "special", [{"quantization": {"bits": 4}}, {"model_type": "qwen2"}, {"text_config": {"a": 1}}]
)
def test_any_other_model_is_left_to_mlx_lm(special):
    assert load_plain_llama(sample_folder(), {**config(), **special}) is None
