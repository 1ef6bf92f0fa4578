import mlx.core as mx
import numpy as np
import pytest
from chat_model import GEMMA, QWEN, chat_folder, other_folder

from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.export import fuse
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive, resolve
from qagent_mlx.shop.shop import Shop

TOKENS = mx.array([[10, 20, 30, 40, 50]])


def logits(policy):
    return np.array(policy.head(policy.backbone(TOKENS)))


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        yield shop


@pytest.fixture(params=["llama", "gemma3", "qwen3"])
def tuned(request, tmp_path, shop):
    """A policy whose adapter does something, on each layout."""
    if request.param == "llama":
        base = chat_folder(tmp_path / "model")
    else:
        base = other_folder(tmp_path / "model", {"gemma3": GEMMA, "qwen3": QWEN}[request.param])
    policy = derive(shop, str(base), "tuned", LoraConfig(rank=4))
    mx.random.seed(0)
    for _, module in policy.model.named_modules():
        if hasattr(module, "lora_b"):
            module.lora_b = mx.random.normal(module.lora_b.shape) * 0.05
    policy.info = policy.info.with_stage(stage="sft", run="first", config={"steps": 3})
    policy.save(shop.folder("policies", "tuned"))
    return policy


def test_an_exported_policy_computes_the_same_in_mlx_lm_and_here(tuned, shop, tmp_path):
    from mlx_lm import generate, load

    target = tmp_path / "out"
    report = fuse(resolve(shop, "tuned"), target, "float32")
    assert report.parameters == load_policy(target).parameters
    model, tokenizer = load(str(target))[:2]
    assert np.allclose(np.array(model(TOKENS)), logits(tuned), atol=1e-3)
    assert isinstance(generate(model, tokenizer, [3, 4, 5], max_tokens=3), str)
    again = load_policy(target)
    assert np.allclose(logits(again), logits(tuned), atol=1e-3)
    assert again.info.agent == tuned.info.agent
    assert (target / "adapters.safetensors").exists() is False


def test_the_card_tells_the_base_the_training_and_how_to_run_it(tuned, shop, tmp_path):
    fuse(resolve(shop, "tuned"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("base model: model", "sft, run first", "steps: 3", "mlx_lm.generate", "protocol"):
        assert text in card


@pytest.mark.parametrize("tuned", ["llama"], indirect=True)
def test_a_quantised_export_is_smaller_and_close(tuned, shop, tmp_path):
    small = fuse(resolve(shop, "tuned"), tmp_path / "small", "4bit")
    whole = fuse(resolve(shop, "tuned"), tmp_path / "whole", "float32")
    assert small.bytes < whole.bytes / 3
    assert small.parameters == whole.parameters
    found = load_policy(tmp_path / "small")
    assert np.corrcoef(logits(found).ravel(), logits(tuned).ravel())[0, 1] > 0.8


@pytest.mark.parametrize("tuned", ["llama"], indirect=True)
def test_a_folder_that_exists_is_not_replaced_unless_asked(tuned, shop, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("x")
    with pytest.raises(QAgentError, match="exists"):
        fuse(resolve(shop, "tuned"), target)
    assert (target / "mine").exists()
    fuse(resolve(shop, "tuned"), target, overwrite=True)
    assert not (target / "mine").exists()
    with pytest.raises(QAgentError, match="the model itself"):
        fuse(resolve(shop, "tuned"), tmp_path / "model", overwrite=True)
