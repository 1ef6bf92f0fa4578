import shutil
from dataclasses import replace
from importlib import import_module
from itertools import count, pairwise
from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy import scoring
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive, open_policy, resolve
from qagent_mlx.runs.run import Run
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.groups import CreditedChain
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_batches import kept_groups, training_batches
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.grpo_run import resume_grpo, train_grpo
from qagent_mlx.train.monitors import FirstUpdateCheck
from qagent_mlx.train.pretrain import PretrainConfig, pretrain
from qagent_mlx.train.run_options import RunOptions
from qagent_mlx.train.sft import SftConfig, SftTrainer, train_sft
from qagent_mlx.train.step_credit import action_states
from qagent_mlx.utils.settings import SettingError

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


def trainer_of(shop, components=None, **changes):
    if components:
        changes["weights"] = dict.fromkeys(components, 1.0)
    config = GrpoConfig(**{**SMALL.__dict__, **changes})
    policy = derive(shop, "base", "grpo", config.lora)
    environment = Environment.of_shop(shop, policy.codec, policy.info.agent, SPLIT)
    return GrpoTrainer(policy, environment, config, components)


def adapter(folder):
    return {k: np.array(v) for k, v in mx.load(str(folder / "adapters.safetensors")).items()}


def test_the_first_ratio_is_one_and_the_first_step_changes_the_adapter(shop):
    """Invariants 3 and 7."""
    trainer = trainer_of(shop)
    before = {k: np.array(v) for k, v in trainer.policy.adapter().items()}
    result = trainer.step(0)
    metrics, chains = result.metrics, result.rollouts
    assert metrics["ratio_drift"] < 1e-3
    assert metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["grad_norm"] > 0
    assert 0 < metrics["rollout_seconds"] < metrics["seconds"] < 3600
    assert any(
        not np.array_equal(before[k], np.array(v)) for k, v in trainer.policy.adapter().items()
    )
    assert len(chains) == SMALL.cases_per_step * SMALL.group  # every chain is kept
    assert "<profile>" in chains[0].chain


def test_a_second_steps_chains_are_those_of_the_policy_that_the_first_one_left(shop):
    trainer = trainer_of(shop, learning_rate=1e-2, warmup=0)
    sampled = [trainer.step(number).metrics for number in range(2)]
    assert all(metrics["ratio_drift"] < 1e-3 for metrics in sampled)
    assert sampled[1]["kl"] > 1e-3, "the policy has moved"


def test_a_row_s_share_of_the_reward_is_taken_from_a_chains_own():
    rewards = np.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])  # 1 case, 3 chains, 2 components
    trainer = SimpleNamespace(config=GrpoConfig(row=2, group=3, row_share=0.25))
    groups = SimpleNamespace(rewards=rewards)
    shaped, weights = GrpoTrainer.shaped_rewards(trainer, groups, {"a": 3.0, "b": 1.0})
    assert weights.tolist() == [0.75, 0.25]
    assert shaped[0, :, 0].tolist() == [3.0, 1.0, 0.0]  # each for itself
    assert shaped[0, 0, 1] > shaped[0, 2, 1]  # what the best adds to a row, and the worst


@pytest.mark.parametrize(
    ("module", "trainer", "config"),
    [("grpo", GrpoTrainer, SMALL), ("sft", SftTrainer, SftConfig(measured=4))],
)
def test_an_evaluation_spreads_its_cases_over_the_whole_split(module, trainer, config, monkeypatch):
    """The first ones are of the days that are most like those of training."""
    module = import_module(f"qagent_mlx.train.{module}")
    monkeypatch.setattr(module, "evaluate_policy", lambda environment, policy, cases, *_: cases)
    model = SimpleNamespace(eval=lambda: None)
    stand_in = SimpleNamespace(
        config=config,
        environment=SimpleNamespace(of_split=lambda name: list(range(40))),
        policy=SimpleNamespace(model=model),
        components=None,
    )
    assert trainer.evaluate(stand_in) == [0, 10, 20, 30]


def test_a_trainer_refuses_to_weigh_nothing():
    """What has no weight weighs nothing; a weight that comes later is one."""
    for weights in ({}, {"mine": 0.0}, {"format": 1.0}):
        config = GrpoConfig(weights=weights)
        with pytest.raises(SettingError, match="must not be 0 for all rewards"):
            config.check_weights({"mine": lambda outcome: 1.0})
        later = replace(config, curriculum={"mine": ((1, 0.0), (9, 0.5))})
        later.check_weights({"mine": lambda outcome: 1.0})


def test_a_trainer_refuses_a_reward_that_there_is_not():
    config = GrpoConfig(weights={"format": 1.0, "nosuch": 1.0})
    with pytest.raises(QAgentError, match="no reward 'nosuch'"):
        GrpoTrainer(None, None, config)


def test_a_step_without_signal_changes_nothing(shop):
    """Invariant 6."""
    trainer = trainer_of(shop, CONSTANT)
    before = {k: np.array(v) for k, v in trainer.policy.adapter().items()}
    metrics = trainer.step(0).metrics
    assert metrics["dropped_groups"] == SMALL.cases_per_step
    for name, value in trainer.policy.adapter().items():
        assert np.array_equal(before[name], np.array(value))


def cancelling():
    """Components of which each chain has one or the other, in turns."""
    state = {"a": 0.0}

    def first(_outcome):
        state["a"] = 1.0 - state["a"]
        return state["a"]

    return {"a": first, "b": lambda _outcome: 1.0 - state["a"]}


def test_a_step_whose_components_cancel_out_changes_not_even_the_optimizer(shop):
    """After a step that left momentum behind, which would move the weights by itself."""
    turns = count()
    components = {"a": lambda _outcome: float(next(turns) % 2), "b": lambda _outcome: 0.0}
    trainer = trainer_of(shop, components)
    assert trainer.step(0).metrics["grad_norm"] > 0
    trainer.components = cancelling()
    kept = [np.array(v) for _, v in tree_flatten(trainer.optimizer.state)]
    before = {k: np.array(v) for k, v in trainer.policy.adapter().items()}
    metrics = trainer.step(1).metrics
    assert metrics["flat_groups"] == metrics["dropped_groups"] == SMALL.cases_per_step
    assert "grad_norm" not in metrics
    after = [np.array(v) for _, v in tree_flatten(trainer.optimizer.state)]
    assert all(np.array_equal(a, b) for a, b in zip(kept, after, strict=True))
    for name, value in trainer.policy.adapter().items():
        assert np.array_equal(before[name], np.array(value))


def test_dynamic_sampling_takes_more_cases_for_groups_that_cancel_out(shop):
    trainer = trainer_of(shop, cancelling(), dynamic_sampling=1)
    sampled = trainer.sample(0, {"a": 1.0, "b": 1.0})
    assert len(sampled.examples) == min(2 * SMALL.cases_per_step, len(trainer.examples))


CONSTANT = {"constant": lambda outcome: 1.0}


def change_gradients(monkeypatch, change):
    """Every gradient is another one from now on."""
    real = scoring.gradient

    def changed(*arguments, **named):
        result = real(*arguments, **named)
        return replace(result, total=tree_map(change, result.total))

    monkeypatch.setattr(scoring, "gradient", changed)


def test_a_zero_gradient_on_the_first_step_stops_the_run(shop, monkeypatch):
    change_gradients(monkeypatch, mx.zeros_like)
    with pytest.raises(QAgentError, match="gradient is zero"):
        train_grpo(shop, "base", "grpo", SMALL, split=SPLIT)


def test_a_first_update_that_changes_no_weight_stops_the_run(shop):
    check = FirstUpdateCheck(trainer_of(shop).policy)
    assert check.observe({"step": 1, "reward": 0.0}) == []  # no update
    with pytest.raises(QAgentError, match="changed no weight"):
        check.observe({"step": 2, "grad_norm": 1.0, "ratio_drift": 0.0})


def test_a_sampler_that_differs_from_the_scorer_stops_the_run(shop, monkeypatch):
    trainer = trainer_of(shop)
    run = trainer.runner.run

    def off(*arguments, **options):
        return [
            replace(rollout, logprobs=tuple(v - 0.3 for v in rollout.logprobs))
            for rollout in run(*arguments, **options)
        ]

    monkeypatch.setattr(trainer.runner, "run", off)
    check = FirstUpdateCheck(trainer.policy)
    with pytest.raises(QAgentError, match="scores its own samples differently"):
        check.observe(trainer.step(0).metrics)


def test_equal_chains_count_as_often_as_they_came(shop, monkeypatch):
    """One computation for equal chains gives the gradient of all of them."""
    trainer = trainer_of(shop)
    trainer.policy.model.eval()
    rollouts = trainer.runner.run([e.task for e in trainer.examples[:2]], 4, (5,))
    first, other = rollouts[0], rollouts[4]
    again = replace(first, case=99)  # of another group, so it is computed by itself
    gradients, sizes = [], []
    real = scoring.gradient

    def kept(policy, prepared, *arguments, **named):
        result = real(policy, prepared, *arguments, **named)
        gradients.append(dict(tree_flatten(result.total)))
        sizes.append(sum(len(item.sequences) for item in prepared.batches))
        return result

    monkeypatch.setattr(scoring, "gradient", kept)
    start = {k: mx.array(v) for k, v in trainer.policy.adapter().items()}
    trainer.update(
        [
            CreditedChain.as_one(first, 1.0),
            CreditedChain.as_one(first, 1.0),
            CreditedChain.as_one(other, -1.0),
        ],
        1,
    )
    trainer.policy.model.load_weights(list(start.items()), strict=False)
    trainer.update(
        [
            CreditedChain.as_one(first, 1.0),
            CreditedChain.as_one(again, 1.0),
            CreditedChain.as_one(other, -1.0),
        ],
        1,
    )
    assert sizes == [2, 3]
    for name, value in gradients[0].items():
        assert np.allclose(np.array(value), np.array(gradients[1][name]), atol=1e-5), name


def test_groups_that_are_left_out_are_made_up_for_by_those_that_are_kept(shop, monkeypatch):
    """The gradient of a step is the weighted one of its groups, on average that of all."""
    trainer = trainer_of(shop, thinning=0.3, beta=0.0, cases_per_step=3, group=2)
    trainer.policy.model.eval()
    rollouts = trainer.runner.run([e.task for e in trainer.examples[:3]], 2, (5,))
    sizes = (1.0, 0.5, 0.25)
    chains = [CreditedChain.as_one(r, sizes[r.case] * (1 - 2 * r.member)) for r in rollouts]
    drawn = [kept_groups(chains, 0.3, (0, number)) for number in range(400)]
    assert drawn[0] == kept_groups(chains, 0.3, (0, 0))
    for case in range(3):
        weights = [kept.get(case, 0.0) for kept in drawn]
        assert np.mean(weights) == pytest.approx(1.0, abs=0.25)
        assert (min(weights) == max(weights) == 1.0) == (case == 0)
    number = next(n for n, kept in enumerate(drawn) if len(kept) == 2 and 1 in kept)
    weights = [float(v) for v in rollouts_weights(trainer, chains, number)]
    everything = [float(v) for v in rollouts_weights(trainer, chains, None)]
    assert len(weights) == 4 and len(everything) == 6
    assert weights[:2] == pytest.approx(everything[:2])  # tokens of the step, not of what is kept
    factor = drawn[number][1]
    assert factor > 1 and weights[2:] == pytest.approx([factor * v for v in everything[2:4]])
    assert trainer.update(chains, number)["trained_groups"] == 2


def test_an_action_is_trained_with_its_own_advantage(shop):
    """Each token carries the advantage of its action, wherever its chain lies in the batch."""
    trainer = trainer_of(shop, group=4, cases_per_step=2, beta=0.0)
    rollouts = trainer.runner.run([e.task for e in trainer.examples[:2]], 4, (3,))
    chains = [
        CreditedChain(r, 1.0, tuple(10 * i + j + 1.0 for j in range(len(action_states(r)))))
        for i, r in enumerate(rollouts)
    ]
    batches = training_batches(trainer.policy, trainer.config, chains, 0, trainer.world)
    found = [
        np.array(targets.advantages)[np.array(targets.sequence) == s].tolist()
        for targets, item in zip(batches.targets, batches.prepared.batches, strict=True)
        for s in range(len(item.sequences))
    ]
    assert sorted(found) == sorted(chain.token_advantages.tolist() for chain in chains)
    assert all(len(set(values)) > 1 for values in found)


def test_credit_for_actions_changes_what_is_learned_and_only_then(shop):
    """The setting reaches the update: with it another gradient, a weight of 0 changes nothing."""

    def learned(**changes):
        trainer = trainer_of(shop, group=8, cases_per_step=4, **changes)
        trainer.step(0)
        return trainer.policy.adapter()

    plain, none, much = learned(), learned(step_credit=0.0), learned(step_credit=1.0)
    assert all(mx.array_equal(plain[name], none[name]) for name in plain)
    assert any(not mx.array_equal(plain[name], much[name]) for name in plain)


def rollouts_weights(trainer, chains, number):
    """The weight of each chain's tokens in the objective of a step; of all without a number."""
    config = replace(trainer.config, thinning=0.3 if number is not None else 0.0)
    batches = training_batches(trainer.policy, config, chains, number or 0, trainer.world)
    found = {}
    for item, target in zip(batches.prepared.batches, batches.targets, strict=True):
        first = {int(s): float(w) for s, w in zip(target.sequence, target.weights, strict=True)}
        found |= {int(item.sequences[s]): w for s, w in first.items()}
    return [found[i] for i in sorted(found)]


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
        assert resume_grpo(other, "grpo").steps == 4
        own = [_timeless(r) for r in Run.open(shop, "grpo").rows("metrics")]
        assert own == [_timeless(r) for r in Run.open(other, "grpo").rows("metrics")]
    whole, resumed = (adapter(p / "policies/grpo/1") for p in (path, twin))
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
    } <= set(report.to_dict())
    report = train_grpo(shop, "sft", "grpo", SMALL, split=SPLIT)
    assert report.policy == "grpo"
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
        ({"advantage": "nothing"}, "advantage must be one of dr_grpo, grpo, gdpo"),
        ({"group": 1}, "at least 2"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
    ],
)
def test_settings_that_cannot_train_are_refused(shop, changes, words):
    config = GrpoConfig(**{**SMALL.__dict__, **changes})
    with pytest.raises(QAgentError, match=words):
        train_grpo(shop, "base", "grpo", config, split=SPLIT)


def test_a_policy_that_is_trained_on_is_a_new_version_that_stands_on_the_old_one(shop):
    before = (resolve(shop, "base") / "model.safetensors").read_bytes()
    report = train_grpo(shop, "base", "base", SMALL, split=SPLIT)
    assert report.reference == "base@2" and Run.open(shop, "base").config["base"] == "base@1"
    policy = open_policy(shop, "base")
    assert policy.info.base == "base@1" and policy.folder == resolve(shop, "base@2")
    assert (resolve(shop, "base@1") / "model.safetensors").read_bytes() == before


def test_a_run_name_is_not_taken_twice(shop):
    Run.create(shop, "mine", {"kind": "grpo"})
    with pytest.raises(QAgentError, match="exists"):
        train_grpo(shop, "base", "grpo", SMALL, split=SPLIT, options=RunOptions(run="mine"))


def test_dynamic_sampling_replaces_groups_without_signal(shop):
    components = {
        "some": lambda o: 0.0 if o.case.case_id in dull else float(o.rollout.tokens[-3] % 97) / 97
    }
    trainer = trainer_of(shop, components, dynamic_sampling=2, cases_per_step=3, group=2)
    dull = {e.case.case_id for e in trainer.examples[::2]}
    groups, again = (trainer.sample(0, trainer.component_weights(0)) for _ in range(2))
    rollouts, examples, rewards = groups.rollouts, groups.examples, groups.rewards
    assert len({e.case.case_id for e in examples}) == len(examples) > 3
    assert [r.case for r in rollouts] == [i // 2 for i in range(2 * len(examples))]
    assert rewards.shape == (len(examples), 2, 1)
    # A function of the seed and the step alone: a resumed run draws the same.
    assert [r.tokens for r in again.rollouts] == [r.tokens for r in rollouts]
    plain = trainer_of(shop, components, cases_per_step=3, group=2)
    assert examples[:3] == plain.sample(0, plain.component_weights(0)).examples


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_every_loss_starts_on_policy_and_moves_the_adapter(shop, loss):
    trainer = trainer_of(shop, loss=loss, advantage="gdpo", beta=0.0)
    before = {k: np.array(v) for k, v in trainer.policy.adapter().items()}
    metrics = trainer.step(0).metrics
    assert metrics["clipped"] == 0 and metrics["kl"] == 0 and metrics["ratio_drift"] < 1e-3
    assert any(
        not np.array_equal(before[k], np.array(v)) for k, v in trainer.policy.adapter().items()
    )


def test_entropy_and_kl_are_those_of_a_token_whatever_the_objective_weighs_it_by(shop):
    """Their alarms have floors in nats a token; Dr. GRPO's weights do not sum to 1."""
    measured = {}
    for loss in ("dapo", "dr_grpo"):  # both weigh all tokens of a step equally
        trainer = trainer_of(shop, loss=loss)
        random = np.random.default_rng(0)
        moved = [
            (name, value + mx.array(random.normal(0, 0.05, value.shape), mx.float32))
            for name, value in trainer.policy.adapter().items()
        ]
        trainer.policy.model.load_weights(moved, strict=False)
        measured[loss] = trainer.step(0).metrics
    for name in ("entropy", "kl"):
        assert measured["dr_grpo"][name] == pytest.approx(measured["dapo"][name], rel=1e-4)
        assert measured["dapo"][name] > 1e-3


def test_later_epochs_on_the_same_chains_are_clipped(shop):
    trainer = trainer_of(
        shop, epochs=4, learning_rate=0.05, warmup=1, clip_low=0.01, clip_high=0.01, beta=0.0
    )
    metrics = trainer.step(0).metrics
    assert 0 < metrics["clipped"] < 1
    assert metrics["ratio_drift"] < 1e-3  # of the first epoch, which is on policy


def test_the_distance_from_the_parent_costs_what_beta_says(shop):
    """The first step is taken at the parent, where the KL and its gradient are 0."""
    losses, kls = {}, {}
    for beta in (0.25, 4.0):
        trainer = trainer_of(shop, beta=beta, warmup=1, learning_rate=1e-2)
        trainer.step(0)
        metrics = trainer.step(1).metrics
        losses[beta], kls[beta] = metrics["loss"], metrics["kl"]
    assert kls[4.0] == pytest.approx(kls[0.25], rel=0.05) and kls[4.0] > 1e-3
    expected = 4.0 * kls[4.0] - 0.25 * kls[0.25]
    assert losses[4.0] - losses[0.25] == pytest.approx(expected, rel=0.1)


def test_a_long_gradient_is_clipped_to_its_setting(shop):
    trainer = trainer_of(shop, max_grad_norm=0.01, learning_rate=0.1, warmup=1)
    trainer.optimizer = optim.SGD(learning_rate=0.0)
    before = trainer.policy.adapter()
    assert trainer.step(0).metrics["grad_norm"] > 0.02
    moved = [mx.square(v - before[k]).sum() for k, v in trainer.policy.adapter().items()]
    assert float(mx.sqrt(sum(moved))) == pytest.approx(0.1 * 0.01, rel=0.02)


def test_overlong_chains_are_punished_and_weights_follow_their_curriculum(shop):
    trainer = trainer_of(
        shop,
        overlong_tokens=9,
        overlong_cache=9,
        overlong_weight=0.5,
        curriculum={"item": ((1.0, 0.0), (3.0, 1.0))},
    )
    assert [trainer.component_weights(n)["item"] for n in range(4)] == [0, 0.5, 1, 1]
    metrics = trainer.step(1).metrics
    assert metrics["weight_item"] == 0.5
    groups = trainer.sample(0, trainer.component_weights(0))
    rewards, weights = trainer.shaped_rewards(groups, trainer.component_weights(0))
    lengths = np.array([sum(r.sampled) for r in groups.rollouts]).reshape(4, 4)
    assert np.allclose(rewards[..., -1], -np.minimum(lengths / 9, 1)) and weights[-1] == 0.5


def test_a_gradient_that_is_no_number_changes_nothing(shop, monkeypatch):
    trainer = trainer_of(shop)
    change_gradients(monkeypatch, lambda gradient: gradient * float("nan"))
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
    assert [constant.learning_rate_at(n) for n in (0, 3, 19)] == [0.25, 1.0, 1.0]
    falling = replace(constant, schedule="cosine")
    rates = [falling.learning_rate_at(n) for n in range(21)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[20] == pytest.approx(0.1)
    with pytest.raises(QAgentError, match="schedule must be one of constant, cosine, not 'linear'"):
        replace(constant, schedule="linear").check()


@pytest.mark.parametrize("loss", ["dapo", "gspo"])
def test_in_half_precision_the_first_ratio_is_one_all_the_same(shop, loss, monkeypatch):
    from qagent_mlx.models.loading import set_precision

    trainer = trainer_of(shop, loss=loss, epochs=2, learning_rate=0.02, warmup=1, beta=0.0)
    assert trainer.policy.precise
    set_precision(trainer.policy.model, "bfloat16")
    assert not trainer.policy.precise
    clipped, real = [], scoring.gradient

    def kept(*arguments, **named):
        result = real(*arguments, **named)
        clipped.append([float(parts["clipped"]) for parts in result.parts])
        return result

    monkeypatch.setattr(scoring, "gradient", kept)
    metrics = trainer.step(0).metrics
    assert metrics["ratio_drift"] > 1e-4, "rounding is there"
    first, second = clipped
    assert first and not any(first)
    assert any(second), "the second epoch moves away from it"


def test_the_first_update_is_checked_even_when_the_first_steps_had_no_signal(shop, monkeypatch):
    idle, trainer = trainer_of(shop, CONSTANT), trainer_of(shop)
    for check in (FirstUpdateCheck(trainer.policy), FirstUpdateCheck(trainer.policy)):
        check.replay([idle.step(0).metrics])
        with monkeypatch.context() as patch:
            change_gradients(patch, mx.zeros_like)
            with pytest.raises(QAgentError, match="gradient is zero"):
                check.observe(trainer.step(1).metrics)
    check.observe(trainer.step(1).metrics)
