"""A handful of architectures, each for a way to differ; all of them are tried by
`tests/benchmarks/architectures.py`."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import tiny_config, tiny_model
from mlx.utils import tree_flatten
from try_architecture import try_architecture, write_folder

from qagent_mlx.environment.environment import Environment
from qagent_mlx.errors import QAgentError
from qagent_mlx.models import batch_cache, composition
from qagent_mlx.policy import agreement
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive
from qagent_mlx.protocol.config import AgentConfig

HANDFUL = {
    "granite": "scales its logits",
    "gemma2": "caps its logits; its masks fit no batch",
    "mamba2": "has no attention, and calls its parts otherwise",
    "lfm2": "has convolutions beside attention",
    "baichuan_m1": "keeps several caches a layer",
    "llama4": "runs as a whole only, and has experts",
}


@pytest.mark.parametrize("name", HANDFUL)
def test_a_model_acts_is_trained_and_fused_as_mlx_lm_scores_it(
    name, tiny_tokenizer, tiny_shop, own_shop, tmp_path
):
    def environment_of(codec):
        return Environment.of_shop(tiny_shop, codec, AgentConfig())

    report = try_architecture(name, tiny_tokenizer, environment_of, own_shop, tmp_path)
    assert report.stages == dict.fromkeys(report.stages, "")


@pytest.mark.parametrize("name", ["granite", "cohere2", "gemma2"])
def test_the_head_scales_and_caps_as_the_model_does_and_changes_nothing(name):
    model = tiny_model(tiny_config(name, 300))
    tokens = mx.array([composition.PROBE[0]])
    before = {n: mx.array(v) for n, v in tree_flatten(model.parameters())}
    hidden = composition.run_body(model, tokens) * 20  # far enough for a cap to show
    logits = composition.run_head(model, hidden)
    plain = model.lm_head(hidden) if hasattr(model, "lm_head") else None
    assert composition.composition_of(model, 0.01) == "body"
    assert plain is None or not np.allclose(plain, logits, atol=0.1)
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(v, after[n]) for n, v in before.items())

    def loss(model):
        return composition.run_head(model, composition.run_body(model, tokens)).sum()

    def own(model):
        return model(tokens).sum()

    gradients = [dict(tree_flatten(nn.value_and_grad(model, f)(model)[1])) for f in (loss, own)]
    assert all(np.allclose(gradients[0][n], v, atol=1e-3) for n, v in gradients[1].items())


def test_a_model_that_would_be_scored_otherwise_is_refused_when_it_is_loaded(
    tmp_path, tiny_tokenizer, monkeypatch
):
    """Blocks run by this package; here as if mlx-lm's llama scaled its logits one day."""
    folder = write_folder("llama", tiny_tokenizer, tmp_path / "model")
    load_policy(folder)
    own = agreement.run_whole
    monkeypatch.setattr(agreement, "run_whole", lambda model, tokens: own(model, tokens) / 0.1)
    with pytest.raises(QAgentError, match=r"otherwise than mlx-lm scores them \(by \d"):
        load_policy(folder)


def test_a_model_that_mlx_lm_scores_otherwise_with_a_cache_is_refused(tmp_path, tiny_tokenizer):
    folder = write_folder("gemma3n", tiny_tokenizer, tmp_path / "model")
    with pytest.raises(QAgentError, match="one after another than all at once"):
        load_policy(folder)


def test_weights_that_are_no_numbers_are_refused(tmp_path, tiny_tokenizer):
    folder = write_folder("llama", tiny_tokenizer, tmp_path / "model")
    path = str(folder / "model.safetensors")
    weights = mx.load(path)
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    mx.save_safetensors(path, weights)
    with pytest.raises(QAgentError, match="logits are no numbers.*pull it again"):
        load_policy(folder)


def test_a_model_without_a_gradient_is_refused_before_it_is_trained(
    own_shop, tmp_path, tiny_tokenizer, monkeypatch
):
    folder = write_folder("granite", tiny_tokenizer, tmp_path / "model")
    frozen = composition.run_body
    stop = lambda *a, **k: mx.stop_gradient(frozen(*a, **k))  # noqa: E731
    monkeypatch.setattr(composition, "run_body", stop)
    with pytest.raises(QAgentError, match="granite act but cannot be trained here .its gradient"):
        derive(own_shop, str(folder), "tuned", LoraConfig())


def test_a_model_that_takes_no_adapter_is_refused_before_it_is_trained(
    own_shop, tmp_path, tiny_tokenizer, monkeypatch
):
    folder = write_folder("granite", tiny_tokenizer, tmp_path / "model")
    load_policy(folder)

    def broken(model, config):
        raise AttributeError("no attribute '_no_grad'")

    monkeypatch.setattr("qagent_mlx.policy.policy.add_adapters", broken)
    with pytest.raises(QAgentError, match="granite act but cannot be trained here .no attribute"):
        derive(own_shop, str(folder), "tuned", LoraConfig())


def test_a_cache_that_mixes_up_contexts_serves_no_batch(monkeypatch):
    model = tiny_model(tiny_config("granite", 300))
    assert batch_cache.serves_batches(model, model, 0.01)

    def swapped(layer, rows):
        return select(layer, rows[::-1])

    select = batch_cache.select_rows
    monkeypatch.setattr(batch_cache, "select_rows", swapped)
    assert not batch_cache.serves_batches(model, model, 0.01)
