import shutil
from dataclasses import replace
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from qagent_mlx.environment.cases import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.environment.rewards import COMPONENTS
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive, open_policy
from qagent_mlx.runs.run import Run
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo import Trainer, resume_grpo, train_grpo
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.pretrain import PretrainConfig, pretrain
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
            shop,
            "base",
            PretrainConfig(
                size="nano", vocab_size=512, steps=60, batch_size=16, learning_rate=3e-3
            ),
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


def silence(trainer, monkeypatch):
    """Every gradient of the trainer is zero from now on."""
    real = trainer._value_and_grad

    def silent(*arguments):
        value, gradient = real(*arguments)
        return value, tree_map(mx.zeros_like, gradient)

    monkeypatch.setattr(trainer, "_value_and_grad", silent)


def test_a_zero_gradient_on_the_first_step_stops_the_run(shop, monkeypatch):
    trainer = trainer_of(shop)
    silence(trainer, monkeypatch)
    with pytest.raises(QAgentError, match="gradient is zero"):
        trainer.step(0)


def test_a_sampler_that_differs_from_the_scorer_stops_the_run(shop, monkeypatch):
    trainer = trainer_of(shop)
    run = trainer.runner.run

    def off(*arguments):
        return [
            replace(rollout, logprobs=tuple(v - 0.3 for v in rollout.logprobs))
            for rollout in run(*arguments)
        ]

    monkeypatch.setattr(trainer.runner, "run", off)
    with pytest.raises(QAgentError, match="scores its own samples differently"):
        trainer.step(0)


def test_equal_chains_count_as_often_as_they_came(shop):
    """One computation for equal chains gives the gradient of all of them."""
    trainer = trainer_of(shop)
    trainer.policy.model.eval()
    rollouts = trainer.runner.run([e.task for e in trainer.examples[:2]], 4, (5,))
    first, other = rollouts[0], rollouts[4]
    again = replace(first, case=99)  # of another group, so it is computed by itself
    gradients, rows = [], []
    real = trainer._value_and_grad

    def kept(piece, *arguments):
        value, gradient = real(piece, *arguments)
        gradients.append(dict(tree_flatten(gradient)))
        rows.append(piece.batch.rows)
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
    assert {
        "run",
        "policy",
        "steps",
        "reward_first",
        "reward_last",
        "seconds",
        "tokens_per_s",
    } <= set(report)
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
        ({"steps": 0}, "steps must be at least 1"),
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


def test_dynamic_sampling_replaces_groups_without_signal(shop):
    trainer = trainer_of(shop, dynamic_sampling=2, cases_per_step=3, group=2)
    dull = {e.case.case_id for e in trainer.examples[::2]}
    trainer.components = {
        "some": lambda o: 0.0 if o.case.case_id in dull else float(o.rollout.tokens[-3] % 97) / 97
    }
    trainer.weights = np.array([1.0])
    rollouts, examples, rewards = trainer.sample(0, trainer.weights)
    again = trainer.sample(0, trainer.weights)
    assert len({e.case.case_id for e in examples}) == len(examples) > 3
    assert [r.case for r in rollouts] == [i // 2 for i in range(2 * len(examples))]
    assert rewards.shape == (len(examples), 2, 1)
    # A function of the seed and the step alone: a resumed run draws the same.
    assert [r.tokens for r in again[0]] == [r.tokens for r in rollouts]
    assert examples[:3] == trainer_of(shop, cases_per_step=3, group=2).sample(0, trainer.weights)[1]


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_every_loss_starts_on_policy_and_moves_the_adapter(shop, loss):
    trainer = trainer_of(shop, loss=loss, advantage="gdpo", beta=0.0)
    before = {k: np.array(v) for k, v in trainer.policy.adapter().items()}
    metrics, _ = trainer.step(0)
    assert metrics["clipped"] == 0 and metrics["kl"] == 0 and metrics["ratio_drift"] < 1e-3
    assert any(
        not np.array_equal(before[k], np.array(v)) for k, v in trainer.policy.adapter().items()
    )


def test_later_epochs_on_the_same_chains_are_clipped(shop):
    trainer = trainer_of(
        shop, epochs=4, learning_rate=0.05, warmup=1, clip_low=0.01, clip_high=0.01, beta=0.0
    )
    metrics, _ = trainer.step(0)
    assert 0 < metrics["clipped"] < 1
    assert metrics["ratio_drift"] < 1e-3  # of the first epoch, which is on policy


def test_overlong_chains_are_punished_and_weights_follow_their_curriculum(shop):
    trainer = trainer_of(
        shop,
        overlong_tokens=9,
        overlong_cache=9,
        overlong_weight=0.5,
        curriculum={"item": ((1.0, 0.0), (3.0, 1.0))},
    )
    assert [trainer.weights_of(n)[3] for n in range(4)] == [0, 0.5, 1, 1]
    metrics, _ = trainer.step(1)
    assert metrics["weight_item"] == 0.5
    rollouts, _, rewards = trainer.sample(0, trainer.weights)
    scores, weights = trainer.shaped(rewards, trainer.weights, rollouts)
    lengths = np.array([sum(r.sampled) for r in rollouts]).reshape(4, 4)
    assert np.allclose(scores[..., -1], -np.minimum(lengths / 9, 1)) and weights[-1] == 0.5


def test_a_gradient_that_is_no_number_changes_nothing(shop, monkeypatch):
    trainer = trainer_of(shop)
    real = trainer._value_and_grad

    def broken(*arguments):
        value, gradient = real(*arguments)
        return value, tree_map(lambda x: x * float("nan"), gradient)

    monkeypatch.setattr(trainer, "_value_and_grad", broken)
    before = {k: np.array(v) for k, v in trainer.policy.adapter().items()}
    with pytest.raises(QAgentError, match="not finite"):
        trainer.step(3)
    assert all(np.array_equal(before[k], np.array(v)) for k, v in trainer.policy.adapter().items())


def test_the_memory_estimate_covers_what_a_step_takes(shop):
    from qagent_mlx.train.memory_estimate import grpo_bytes

    trainer = trainer_of(shop, cases_per_step=8, group=8, token_budget=1024)
    mx.clear_cache()
    mx.reset_peak_memory()
    trainer.step(0)
    estimate, peak = grpo_bytes(trainer.policy, trainer.config), mx.get_peak_memory()
    assert 0.5 * peak < estimate < 8 * peak


def test_the_learning_rate_warms_up_and_stays_or_falls_to_a_tenth():
    constant = GrpoConfig(steps=20, warmup=4, learning_rate=1.0)
    assert [constant.rate(n) for n in (0, 3, 19)] == [0.25, 1.0, 1.0]
    falling = replace(constant, schedule="cosine")
    rates = [falling.rate(n) for n in range(21)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[20] == pytest.approx(0.1)
    with pytest.raises(QAgentError, match="schedule linear: choose one of constant, cosine"):
        replace(constant, schedule="linear").check()


@pytest.mark.parametrize("loss", ["dapo", "gspo"])
def test_in_half_precision_the_first_ratio_is_one_all_the_same(shop, loss):
    from qagent_mlx.models.load import set_precision

    trainer = trainer_of(shop, loss=loss, epochs=2, learning_rate=0.02, warmup=1, beta=0.0)
    assert trainer.policy.precise
    set_precision(trainer.policy.model, "bfloat16")
    assert not trainer.policy.precise
    ratios, real = [], trainer._value_and_grad

    def kept(piece, *rest):
        value, gradient = real(piece, *rest)
        ratios.append((piece.old is None, float(value[1]["clipped"])))
        return value, gradient

    trainer._value_and_grad = kept
    metrics, _ = trainer.step(0)
    assert metrics["ratio_drift"] > 1e-4, "rounding is there"
    first = [clipped for new, clipped in ratios if new]
    assert first and not any(first)
    assert any(clipped for new, clipped in ratios if not new), "the second epoch moves away from it"


def test_the_first_update_is_checked_even_when_the_first_steps_had_no_signal(shop, monkeypatch):
    trainer = trainer_of(shop)
    trainer.components, weights = {"constant": lambda outcome: 1.0}, trainer.weights
    trainer.weights = np.array([1.0])
    trainer.step(0)
    assert not trainer.checked
    trainer.components, trainer.weights = COMPONENTS, weights
    silence(trainer, monkeypatch)
    with pytest.raises(QAgentError, match="gradient is zero"):
        trainer.step(1)
