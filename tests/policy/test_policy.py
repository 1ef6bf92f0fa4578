import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from qagent_mlx.errors import QAgentError
from qagent_mlx.models.download import sample_folder
from qagent_mlx.policy.files import base_folder, load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive, open_policy, policy_names, resolve
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.policy.summary import describe
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.atomic_files import read_json, write_json

TOKENS = mx.array([[60, 61, 62, 63]])


def logits(policy):
    return np.array(policy.head(policy.backbone(TOKENS)))


@pytest.fixture
def shop(tmp_path, new_nano):
    shop = Shop.create(tmp_path / "shop")
    policy, tokenizer, config = new_nano()
    save_base(policy, tokenizer, config, shop.folder("policies", "base"))
    yield shop
    shop.close()


def trained(shop, parent, name, seed):
    """A policy with an adapter that does something, saved."""
    policy = derive(shop, parent, name, LoraConfig(rank=4))
    mx.random.seed(seed)
    for module_name, module in policy.model.named_modules():
        if hasattr(module, "lora_b"):
            module.lora_b = mx.random.normal(module.lora_b.shape) * 0.1
            assert module_name
    policy.save(shop.folder("policies", name))
    return policy


def test_a_saved_policy_computes_the_same(shop):
    first = open_policy(shop, "base")
    assert np.array_equal(logits(first), logits(open_policy(shop, "base")))
    adapted = trained(shop, "base", "sft", 1)
    assert np.allclose(logits(adapted), logits(open_policy(shop, "sft")), atol=1e-6)
    assert not np.allclose(logits(adapted), logits(first), atol=1e-3)


def test_a_policy_on_a_policy_computes_the_same_after_loading(shop):
    trained(shop, "base", "sft", 1)
    top = trained(shop, "sft", "grpo", 2)
    assert np.allclose(logits(top), logits(open_policy(shop, "grpo")), atol=1e-5)


def test_the_reference_is_the_parent_and_the_adapter_comes_back_bit_for_bit(shop):
    """Invariant 4: the same weights with scale 0, no second copy."""
    trained(shop, "base", "sft", 1)
    parent = logits(open_policy(shop, "sft"))
    policy = trained(shop, "sft", "grpo", 2)
    own = logits(policy)
    count = len(tree_flatten(policy.model.parameters()))
    with policy.reference():
        assert np.allclose(logits(policy), parent, atol=1e-5)
        assert len(tree_flatten(policy.model.parameters())) == count
    assert np.array_equal(logits(policy), own)


def test_only_the_adapter_is_trainable(shop):
    policy = derive(shop, "base", "sft", LoraConfig(rank=4))
    assert all(name.rpartition(".")[2] in ("lora_a", "lora_b") for name in policy.adapter())


def test_merging_changes_no_output(shop):
    policy = trained(shop, "base", "sft", 1)
    before = logits(policy)
    policy.merge_lora()
    assert np.allclose(logits(policy), before, atol=1e-5)
    assert policy.lora is None


def test_a_policy_of_another_protocol_is_refused(shop):
    path = shop.folder("policies", "base") / "policy.json"
    write_json(path, {**read_json(path, "it"), "protocol": 99})
    with pytest.raises(QAgentError, match="protocol"):
        open_policy(shop, "base")


def test_a_changed_or_missing_base_is_noticed(shop):
    trained(shop, "base", "sft", 1)
    base = shop.folder("policies", "base")
    weights = mx.load(str(base / "model.safetensors"))
    mx.save_safetensors(str(base / "model.safetensors"), {k: v + 1 for k, v in weights.items()})
    with pytest.raises(QAgentError, match="another version"):
        open_policy(shop, "sft")
    shutil.rmtree(base)
    with pytest.raises(QAgentError, match="needs its base model"):
        open_policy(shop, "sft")


def test_a_shop_from_another_machine_finds_the_shipped_and_the_pulled_model(
    shop, tmp_path, monkeypatch
):
    monkeypatch.setenv("QAGENT_CACHE", str(tmp_path / "cache"))
    pulled = tmp_path / "cache" / "models" / "smollm2-135m"
    shutil.copytree(shop.folder("policies", "base"), pulled)
    write_json(pulled / "source.json", {})
    for parent, place in (("sample", sample_folder()), ("smollm2-135m", pulled)):
        policy = trained(shop, parent, "moved", 1)
        there = shop.folder("policies", "moved") / "policy.json"
        info = read_json(there, "it")
        assert info["base"] == str(place)
        write_json(there, {**info, "base": f"/Users/her/{place.name}"})
        assert np.array_equal(logits(open_policy(shop, "moved")), logits(policy))
        assert base_folder(shop.folder("policies", "moved")) == place
        # Of the same name, but not the model that it was trained on.
        write_json(
            there, {**info, "base": f"/Users/her/{place.name}", "base_fingerprint": "another"}
        )
        with pytest.raises(QAgentError, match="needs its base model"):
            open_policy(shop, "moved")


def test_a_policy_that_was_renamed_is_found_by_those_that_build_on_it(shop):
    policy = trained(shop, "base", "sft", 1)
    top = trained(shop, "sft", "top", 2)
    for old, new in (("base", "first"), ("sft", "sft-old"), ("top", "best")):
        shop.folder("policies", old).rename(shop.folder("policies", new))
    assert np.array_equal(logits(open_policy(shop, "sft-old")), logits(policy))
    assert np.array_equal(logits(open_policy(shop, "best")), logits(top))
    assert base_folder(shop.folder("policies", "best")) == shop.folder("policies", "first")
    listed = [describe(shop.folder("policies", name)).name for name in policy_names(shop)]
    assert sorted(listed) == sorted(policy_names(shop)) == ["best", "first", "sft-old"]


def test_a_torn_adapter_is_refused(shop):
    trained(shop, "base", "sft", 1)
    path = shop.folder("policies", "sft") / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(QAgentError, match="not what its policy.json was written for"):
        open_policy(shop, "sft")


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_save_that_a_kill_stopped_between_its_renames_is_ended(shop, renamed):
    trained(shop, "base", "sft", 1)
    folder = shop.folder("policies", "sft")
    names = ("adapters.safetensors", "adapter_config.json", "policy.json")
    old = {name: (folder / name).read_bytes() for name in names}
    policy = open_policy(shop, "sft")
    policy.model.update(tree_map(lambda w: w + 1, policy.model.trainable_parameters()))
    policy.info = replace(policy.info, trained=({"stage": "again"},))
    policy.save(folder)
    for name in names[renamed:]:
        (folder / name).rename(folder / f".0123456789ab-{name}")
        (folder / name).write_bytes(old[name])
    (folder / ".ba9876543210-policy.json").write_bytes(old["policy.json"])  # of an older kill
    (folder / ".aaaaaaaaaaaa-policy.json").write_text("{")
    found = open_policy(shop, "sft")
    assert found.info.trained == ({"stage": "again"},)
    assert all(
        mx.array_equal(a, b)
        for a, b in zip(found.adapter().values(), policy.adapter().values(), strict=True)
    )
    assert not list(folder.glob(".0123456789ab-*"))
    assert open_policy(shop, "sft").info.trained == found.info.trained


def test_an_unknown_policy_says_which_are_known(shop):
    with pytest.raises(QAgentError, match=r"no policy nothing; known are base"):
        resolve(shop, "nothing")


def test_a_folder_without_weights_is_refused(tmp_path, shop):
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(QAgentError):
        load_policy(folder)
