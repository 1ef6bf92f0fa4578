import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from chat_model import GEMMA, QWEN, chat_folder, other_folder

from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.batches import TrainingSequence
from qagent_mlx.policy.export import fuse
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive, open_policy
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.fit import FitConfig, LikelihoodTrainer
from qagent_mlx.utils.settings import SettingError

NARROW = {"hidden_size": 48, "intermediate_size": 80, "head_dim": 24}
TOKENS = mx.array([[10, 20, 30, 40, 50]])


def logits(policy):
    return np.array(policy.head(policy.backbone(TOKENS)))


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        yield shop


@pytest.fixture(params=["llama", "gemma3", "qwen3"])
def folder(request, tmp_path):
    """Tied and untied embeddings; gemma3 wraps its language model; the llama is quantised."""
    if request.param == "llama":
        return chat_folder(tmp_path / "model")
    return other_folder(tmp_path / "model", {"gemma3": GEMMA, "qwen3": QWEN}[request.param])


def learned(policy, steps=2):
    """The adapter after some gradient steps towards one next token."""

    def loss(model):
        return nn.losses.cross_entropy(
            policy.head(policy.backbone(TOKENS))[0], mx.array([20, 30, 40, 50, 60])
        ).mean()

    optimizer = optim.SGD(0.5)
    losses = []
    for _ in range(steps):
        value, gradient = nn.value_and_grad(policy.model, loss)(policy.model)
        optimizer.update(policy.model, gradient)
        losses.append(value.item())
    return losses


def test_backbone_and_head_are_the_model(folder):
    policy = load_policy(folder)
    assert np.allclose(logits(policy), np.array(policy.model(TOKENS)), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "4bit"])
def test_an_adapter_learns_comes_back_and_merges_at_any_precision(folder, shop, dtype):
    """QLoRA among them: the weights below the adapter stay packed, and only it changes."""
    policy = derive(shop, str(folder), "tuned", LoraConfig(rank=4, dtype=dtype), seed=1)
    packed = {n for n, m in policy.model.named_modules() if hasattr(m, "scales")}
    assert bool(packed) == (dtype == "4bit")
    assert all(n.rpartition(".")[2] in ("lora_a", "lora_b") for n in policy.adapter())
    before = logits(policy)
    losses = learned(policy, 6)
    assert losses[-1] < losses[0]
    after = logits(policy)
    assert not np.allclose(before, after, atol=1e-3)
    with policy.reference():
        assert np.allclose(logits(policy), before, atol=1e-5)
    policy.save(shop.folder("policies", "tuned"))

    again = open_policy(shop, "tuned")
    assert again.info.dtype == dtype
    assert np.allclose(logits(again), after, atol=1e-4)
    again.merge_lora()
    assert np.allclose(logits(again), after, atol=1e-3)


def test_parameters_are_counted_alike_packed_or_not(folder):
    assert load_policy(folder, "4bit").parameters == load_policy(folder, "float32").parameters


def test_a_cpu_computes_in_float32(folder):
    policy = load_policy(folder)
    types = {v.dtype for v in [policy.layers[0].self_attn.q_proj.weight]}
    assert types == {mx.float32}


def test_an_unknown_precision_is_refused(folder):
    with pytest.raises(QAgentError, match="dtype must be one of float32, .*not int8"):
        load_policy(folder, "int8")


def trained(shop, parent, name, dtype):
    """A policy with an adapter that learned something, saved in a shop."""
    policy = derive(shop, parent, name, LoraConfig(rank=4, dtype=dtype))
    learned(policy, 4)
    policy.save(shop.folder("policies", name))
    return policy


def packed(policy):
    return {n.removesuffix(".linear") for n, m in policy.model.named_modules() if "scales" in m}


def test_4bit_on_a_policy_with_an_adapter_packs_all_that_it_packs_of_a_model(folder, shop):
    first = trained(shop, str(folder), "first", "float32")
    second = trained(shop, "first", "second", "4bit")
    kinds = (nn.Linear, nn.Embedding)
    modules = {n: m for n, m in first.model.named_modules() if isinstance(m, kinds)}
    wide = {n.removesuffix(".linear") for n, m in modules.items() if not m.weight.shape[-1] % 64}
    assert packed(second) == wide
    assert np.allclose(logits(open_policy(shop, "second")), logits(second), atol=1e-4)
    # The next one goes on in 4 bits, and comes back as it was.
    third = trained(shop, "second", "third", "")
    assert third.info.dtype == "4bit" and packed(third) == wide
    assert np.allclose(logits(open_policy(shop, "third")), logits(third), atol=1e-4)


def test_what_was_trained_in_4_bits_is_fused_to_the_rounded_weights(folder, shop, tmp_path):
    policy = trained(shop, str(folder), "tuned", "4bit")
    fuse(shop.folder("policies", "tuned"), tmp_path / "fused", "float32")
    fused = load_policy(tmp_path / "fused")
    assert not packed(fused)
    assert np.allclose(logits(fused), logits(policy), atol=1e-3)
    assert np.allclose(logits(open_policy(shop, "tuned", "float32")), logits(policy), atol=1e-3)


def test_4bit_learns_from_demonstrations_that_share_no_beginning(folder, shop):
    policy = derive(shop, str(folder), "tuned", LoraConfig(rank=4, dtype="4bit"))
    chains = [TrainingSequence([10 + i, 20, 30, 40], [False, True, True, True], i) for i in (0, 1)]
    trainer = LikelihoodTrainer(policy, lambda i, _: chains[i], 2, FitConfig(4, 2, 1e-2, warmup=1))
    losses = [trainer.step(number).metrics["loss"] for number in range(4)]
    assert losses[-1] < losses[0]


def test_4bit_is_refused_where_no_width_can_be_packed(tmp_path):
    folder = other_folder(tmp_path / "model", {**QWEN, **NARROW})
    with pytest.raises(SettingError, match="dtype.*multiples of 64"):
        load_policy(folder, "4bit")
