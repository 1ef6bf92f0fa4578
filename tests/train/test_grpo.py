import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.model import LoraConfig
from qagent_mlx.policy.registry import derive, open_policy
from qagent_mlx.shop import Shop
from qagent_mlx.train.cases import SplitConfig
from qagent_mlx.train.environment import Environment
from qagent_mlx.train.grpo import GrpoConfig, Trainer, resume_grpo, train_grpo
from qagent_mlx.train.pretrain import PretrainConfig, pretrain
from qagent_mlx.train.runs import Run
from qagent_mlx.train.sft import SftConfig, train_sft

SPLIT = SplitConfig(test_share=0.2, validation_share=0.1)
LORA = LoraConfig(rank=4)
SMALL = GrpoConfig(
    steps=4, cases_per_step=4, group=4, save_every=1, measured=4, lora=LORA, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def trained_folder(tiny_folder, tmp_path_factory):
    """The small shop with a base policy that speaks the protocol."""
    path = tmp_path_factory.mktemp("trained") / "shop"
    shutil.copytree(tiny_folder, path)
    with Shop.open(path) as shop:
        pretrain(
            shop, "base",
            PretrainConfig(size="nano", vocab_size=512, steps=60, batch_size=16, learning_rate=3e-3),
            split=SPLIT,
        )
    return path


@pytest.fixture
def shop(trained_folder, tmp_path):
    shutil.copytree(trained_folder, tmp_path / "shop")
    with Shop.open(tmp_path / "shop") as shop:
        yield shop


def trainer_of(shop, **changes):
    config = GrpoConfig(**{**SMALL.__dict__, **changes})
    policy = derive(shop, "base", "grpo", config.lora)
    environment = Environment.of_shop(shop, policy.codec, policy.info.agent, SPLIT)
    return Trainer(policy, environment, config)


def adapter(folder):
    return {k: np.array(v) for k, v in mx.load(str(folder / "adapters.safetensors")).items()}


def test_the_first_ratio_is_one_and_the_first_step_changes_the_adapter(shop):
    """Invariants 3 and 7."""
    trainer = trainer_of(shop)
    before = {k: np.array(v) for k, v in trainer.policy.adapter().items()}
    metrics, chains = trainer.step(0)
    assert metrics["ratio_drift"] < 1e-3
    assert metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["grad_norm"] > 0
    assert any(
        not np.array_equal(before[k], np.array(v)) for k, v in trainer.policy.adapter().items()
    )
    assert len(chains) == SMALL.cases_per_step * SMALL.group  # every chain is kept
    assert "<profile>" in chains[0]["chain"]


def test_a_step_without_signal_changes_nothing(shop):
    """Invariant 6."""
    trainer = trainer_of(shop)
    trainer.components = {"constant": lambda outcome: 1.0}
    trainer.weights = np.array([1.0])
    before = {k: np.array(v) for k, v in trainer.policy.adapter().items()}
    metrics, _ = trainer.step(0)
    assert metrics["dropped_groups"] == SMALL.cases_per_step
    for name, value in trainer.policy.adapter().items():
        assert np.array_equal(before[name], np.array(value))


def test_a_zero_gradient_on_the_first_step_stops_the_run(shop, monkeypatch):
    trainer = trainer_of(shop)
    real = trainer._value_and_grad

    def silent(*arguments):
        value, gradient = real(*arguments)
        return value, tree_map(mx.zeros_like, gradient)

    monkeypatch.setattr(trainer, "_value_and_grad", silent)
    with pytest.raises(QAgentError, match="gradient is zero"):
        trainer.step(0)


def test_a_sampler_that_differs_from_the_scorer_stops_the_run(shop, monkeypatch):
    trainer = trainer_of(shop)
    run = trainer.roller.run

    def off(*arguments):
        rollouts = run(*arguments)
        for rollout in rollouts:
            rollout.logprobs = [v - 0.3 for v in rollout.logprobs]
        return rollouts

    monkeypatch.setattr(trainer.roller, "run", off)
    with pytest.raises(QAgentError, match="scores its own samples differently"):
        trainer.step(0)


def test_equal_chains_count_as_often_as_they_came(shop):
    """One computation for equal chains gives the gradient of all of them."""
    trainer = trainer_of(shop)
    trainer.policy.model.eval()
    rollouts = trainer.roller.run([e.task for e in trainer.examples[:2]], 4, (5,))
    first, other = rollouts[0], rollouts[4]
    again = replace(first, case=99)  # of another group, so it is computed by itself
    gradients, rows = [], []
    real = trainer._value_and_grad

    def kept(batch, *arguments):
        value, gradient = real(batch, *arguments)
        gradients.append(dict(tree_flatten(gradient)))
        rows.append(batch.rows)
        return value, gradient

    trainer._value_and_grad = kept
    start = {k: mx.array(v) for k, v in trainer.policy.adapter().items()}
    trainer.update([(first, 1.0), (first, 1.0), (other, -1.0)], 1)
    trainer.policy.model.load_weights(list(start.items()), strict=False)
    trainer.update([(first, 1.0), (again, 1.0), (other, -1.0)], 1)
    assert rows == [2, 3]
    for name, value in gradients[0].items():
        assert np.allclose(np.array(value), np.array(gradients[1][name]), atol=1e-5), name


def test_a_resumed_run_is_bit_identical(shop):
    """Invariant 9."""
    path = shop.path
    twin = path.parent / "twin"
    shutil.copytree(path, twin)
    train_grpo(shop, "base", "grpo", SMALL, split=SPLIT)

    class Killed(Exception):
        pass

    def kill(metrics):
        if metrics["step"] == 2:
            raise Killed

    with Shop.open(twin) as other:
        with pytest.raises(Killed):
            train_grpo(other, "base", "grpo", SMALL, split=SPLIT, on_step=kill)
        summary = resume_grpo(other, "grpo")
        assert summary["steps"] == 4
        own = [_timeless(r) for r in Run.open(shop, "grpo").rows("metrics")]
        assert own == [_timeless(r) for r in Run.open(other, "grpo").rows("metrics")]
    whole, resumed = adapter(path / "policies" / "grpo"), adapter(twin / "policies" / "grpo")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert np.array_equal(whole[name], resumed[name]), name


def _timeless(row):
    return {k: v for k, v in row.items() if "seconds" not in k and not k.endswith("_per_s")}


def test_the_shop_can_be_written_to_while_a_policy_trains(shop):
    def write(metrics):
        if metrics["step"] == 1:
            with Shop.open(shop.path, read_only=False) as writer:
                writer.set_meta("written", "yes")

    train_grpo(shop, "base", "grpo", SMALL, split=SPLIT, on_step=write)
    with Shop.open(shop.path) as reader:
        assert reader.meta("written", "") == "yes"


def test_sft_then_grpo_then_recommend(shop):
    from qagent_mlx.agent.recommend import Recommender

    report = train_sft(
        shop, "base", "sft", SftConfig(steps=3, batch_size=8, measured=4, lora=LORA), split=SPLIT
    )
    assert {"run", "policy", "steps", "reward_first", "reward_last", "seconds", "tokens_per_s"} <= set(
        report
    )
    report = train_grpo(shop, "sft", "grpo", SMALL, split=SPLIT)
    assert report["policy"] == "grpo"
    with Shop.open(shop.path) as again:
        found = Recommender(again, open_policy(again, "grpo")).recommend(["u01", "nobody"], 3)
    assert [f.user_id for f in found] == ["u01", "nobody"]
    for user in found:
        assert 1 <= len(user.recommendations) <= 3
        for item in user.recommendations:
            assert item.products
            assert item.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"advantage": "nothing"}, "choose one of"),
        ({"group": 1}, "at least 2"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_train_are_refused(shop, changes, words):
    config = GrpoConfig(**{**SMALL.__dict__, **changes})
    with pytest.raises(QAgentError, match=words):
        train_grpo(shop, "base", "grpo", config, split=SPLIT)


def test_a_policy_is_never_trained_onto_its_own_base(shop):
    with pytest.raises(QAgentError, match="overwrite"):
        train_grpo(shop, "base", "base", SMALL, split=SPLIT)


def test_a_run_name_is_not_taken_twice(shop):
    Run.create(shop, "mine", {"kind": "grpo"})
    with pytest.raises(QAgentError, match="exists"):
        train_grpo(shop, "base", "grpo", SMALL, split=SPLIT, run="mine")
