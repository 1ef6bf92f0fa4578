"""Runs end, are ended, and go on: signals, full disks, alarms, best policies, early stopping."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import evaluate_policy
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import open_policy, resolve
from qagent_mlx.runs import checkpoint
from qagent_mlx.runs.loop import AlarmStop, Stopped
from qagent_mlx.runs.run import Run, run_lock
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.grpo_run import resume_grpo, train_grpo
from qagent_mlx.train.monitors import AlarmConfig
from qagent_mlx.train.run_options import RunOptions
from qagent_mlx.train.sft import SftConfig, resume_sft, train_sft

SPLIT = SplitConfig(test_share=0.2, validation_share=0.1)
LORA = LoraConfig(rank=2)
QUIET = AlarmConfig(format="off", dropped="off", entropy="off", kl="off")
SMALL = GrpoConfig(
    steps=3,
    cases_per_step=2,
    group=3,
    save_every=1,
    measured=2,
    lora=LORA,
    learning_rate=1e-3,
    solvable=False,
    alarms=QUIET,
)
SFT = SftConfig(steps=4, batch_size=4, save_every=1, measured=2, lora=LORA)
"""A policy with random weights, so chains break off at once and steps take milliseconds."""


def lively(outcome):
    """Spread that a policy which knows nothing gets: the parity of its first token."""
    tokens = outcome.rollout.tokens[outcome.rollout.prompt_length :]
    return float(tokens[0] % 2)


COMPONENTS = {"lively": lively}


def changed(**values):
    return GrpoConfig(**{**SMALL.__dict__, "weights": {"lively": 1.0}, **values})


@pytest.fixture(scope="module")
def folder(tiny_folder, new_nano, tmp_path_factory):
    from qagent_mlx.policy.small_llama import save_base

    path = tmp_path_factory.mktemp("endurance") / "shop"
    shutil.copytree(tiny_folder, path)
    policy, tokenizer, config = new_nano()
    policy.info = replace(policy.info, name="base")
    save_base(policy, tokenizer, config, path / "policies" / "base")
    return path


@pytest.fixture
def shop(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "shop")
    with Shop.open(tmp_path / "shop") as shop:
        yield shop


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    """The shop after whole runs: GRPO and SFT."""
    path = tmp_path_factory.mktemp("unbroken") / "shop"
    shutil.copytree(folder, path)
    with Shop.open(path) as shop:
        train_grpo(shop, "base", "grpo", changed(), split=SPLIT, components=COMPONENTS)
        train_sft(shop, "base", "sft", SFT, split=SPLIT)
    return path


def adapter(path, name):
    newest = max((path / "policies" / name).glob("*/adapters.safetensors"))
    stored = mx.load(str(newest))
    return {k: np.array(v) for k, v in stored.items()}


def timeless(row):
    return {k: v for k, v in row.items() if "seconds" not in k and not k.endswith("_per_s")}


def assert_same(one, other, name):
    """Weights and metrics to the bit, chains too."""
    with Shop.open(one) as a, Shop.open(other) as b:
        runs = Run.open(a, name), Run.open(b, name)
        for what in ("metrics", "rollouts"):
            left, right = ([timeless(row) for row in run.rows(what)] for run in runs)
            assert left == right
    left, right = adapter(one, name), adapter(other, name)
    assert left.keys() == right.keys()
    for key in left:
        assert np.array_equal(left[key], right[key]), key


def send(number, at):
    def on_step(row):
        if row["step"] == at:
            os.kill(os.getpid(), number)

    return on_step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(shop, unbroken, number):
    config = changed(save_every=100)
    before = signal.getsignal(number)  # a background job starts with SIGINT ignored
    with pytest.raises(
        Stopped, match="stopped by SIG(TERM|INT) after step 2, which is saved"
    ) as caught:
        train_grpo(
            shop,
            "base",
            "grpo",
            config,
            split=SPLIT,
            components=COMPONENTS,
            on_step=send(number, 2),
        )
    assert caught.value.signal_number == number
    assert (caught.value.run, caught.value.step) == ("grpo", 2)
    assert signal.getsignal(number) == before
    with pytest.raises(QAgentError, match="was started with the rewards .*; give the same rewards"):
        resume_grpo(shop, "grpo", components={"another": lambda outcome: 1.0})
    resume_grpo(shop, "grpo", components=COMPONENTS)
    assert_same(shop.path, unbroken, "grpo")


def test_a_signal_in_the_middle_of_a_step_leaves_the_step_out(shop, unbroken, monkeypatch):
    real, calls = GrpoTrainer.rollouts, []

    def rollouts(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(GrpoTrainer, "rollouts", rollouts)
    with pytest.raises(Stopped, match="after step 1"):
        train_grpo(shop, "base", "grpo", changed(), split=SPLIT, components=COMPONENTS)
    resume_grpo(shop, "grpo", components=COMPONENTS)
    assert_same(shop.path, unbroken, "grpo")


def test_sft_goes_on_to_the_same_bits(shop, unbroken):
    with pytest.raises(Stopped, match="after step 2, which is saved"):
        train_sft(shop, "base", "sft", SFT, split=SPLIT, on_step=send(signal.SIGTERM, 2))
    assert resume_sft(shop, "sft").steps == SFT.steps
    assert_same(shop.path, unbroken, "sft")


KILLED = """
import sys
import qagent_mlx
qagent_mlx.configure()
from qagent_mlx.shop.shop import Shop
sys.path.insert(0, {tests!r})
from test_endurance import COMPONENTS, SPLIT, changed
from qagent_mlx.train.grpo_run import train_grpo
with Shop.open({shop!r}) as shop:
    train_grpo(shop, "base", "grpo", changed(steps=100000, save_every=2), split=SPLIT,
               components=COMPONENTS)
"""


def test_a_killed_run_goes_on_to_the_same_bits(shop, unbroken):
    here = str(Path(__file__).parent)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(tests=here, shop=str(shop.path))],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    metrics = shop.path / "runs" / "grpo" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 1:
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    child.kill()
    child.wait()
    done = len(metrics.read_text().splitlines())
    with metrics.open("a") as file:
        file.write('{"step": 99, "torn')  # as a kill in the middle of a write leaves it
    places = shop.path / "runs" / "grpo" / "checkpoints"
    (places / ".writing.abc").mkdir()
    longer = max(SMALL.steps, done)
    resume_grpo(shop, "grpo", steps=longer, components=COMPONENTS)
    assert not list(places.glob(".*writing*"))
    with Shop.open(unbroken) as other:
        left = [timeless(r) for r in Run.open(shop, "grpo").rows("metrics")]
        right = [timeless(r) for r in Run.open(other, "grpo").rows("metrics")]
    assert len(left) == longer and left[: SMALL.steps] == right
    if longer == SMALL.steps:
        assert_same(shop.path, unbroken, "grpo")


def test_a_run_that_was_killed_while_it_was_made_is_no_run(shop, monkeypatch):
    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_grpo(
                shop,
                "base",
                "grpo",
                changed(),
                split=SPLIT,
                components=COMPONENTS,
                options=RunOptions(run="r"),
            )
    with pytest.raises(QAgentError, match="no run r"):
        Run.open(shop, "r")
    train_grpo(
        shop,
        "base",
        "grpo",
        changed(steps=1),
        split=SPLIT,
        components=COMPONENTS,
        options=RunOptions(run="r"),
    )


def test_two_processes_never_train_one_run(shop):
    with run_lock(shop, "mine"), pytest.raises(QAgentError, match=r"by process \d+"):
        train_grpo(
            shop,
            "base",
            "grpo",
            changed(),
            split=SPLIT,
            components=COMPONENTS,
            options=RunOptions(run="mine"),
        )


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own; yields it and a way to fill it up."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("mounting a small disk needs root")

    def fill():
        with (place / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    yield place, fill
    # Weights that are still mapped into memory keep it busy for a while.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_a_clear_error_and_loses_nothing(folder, unbroken, small_disk):
    place, fill = small_disk
    shutil.copytree(folder, place / "shop")

    def on_step(row):
        if row["step"] == 2:
            fill()

    with Shop.open(place / "shop") as shop:
        with pytest.raises(QAgentError, match="cannot write.*free some space"):
            train_grpo(
                shop, "base", "grpo", changed(), split=SPLIT, components=COMPONENTS, on_step=on_step
            )
        (place / "filler").unlink()
        resume_grpo(shop, "grpo", components=COMPONENTS)
    assert_same(place / "shop", unbroken, "grpo")


def test_a_run_folder_that_cannot_be_made_is_a_clear_error(shop):
    (shop.path / "runs").mkdir()
    (shop.path / "runs" / "grpo").write_text("in the way")
    with pytest.raises(QAgentError, match="cannot write the run's folder"):
        train_grpo(shop, "base", "grpo", changed(), split=SPLIT, components=COMPONENTS)


def test_a_damaged_checkpoint_is_named(shop, unbroken):
    with pytest.raises(Stopped):
        train_grpo(
            shop,
            "base",
            "grpo",
            changed(keep=3),
            split=SPLIT,
            components=COMPONENTS,
            on_step=send(signal.SIGTERM, 2),
        )
    last = checkpoint.saved(shop.path / "runs" / "grpo" / "checkpoints")[-1]
    file = last / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(QAgentError, match="is damaged.*delete it"):
        resume_grpo(shop, "grpo", components=COMPONENTS)
    shutil.rmtree(last)
    resume_grpo(shop, "grpo", components=COMPONENTS)
    assert_same(shop.path, unbroken, "grpo")


def test_an_alarm_stops_with_a_checkpoint_and_the_run_may_go_on(shop):
    alarms = AlarmConfig(format="stop", dropped="off", entropy="off", patience=2)
    # A policy of random weights never ends in a recommendation.
    config = changed(alarms=alarms, save_every=100)
    with pytest.raises(AlarmStop, match="step 2 by its alarm format.*is saved") as stopped:
        train_grpo(shop, "base", "grpo", config, split=SPLIT, components=COMPONENTS)
    assert (stopped.value.run, stopped.value.alert.name) == ("grpo", "format")
    record = Run.open(shop, "grpo")
    assert [a["name"] for a in record.rows("alarms")] == ["format"]
    assert checkpoint.saved(record.folder / "checkpoints")[-1].name == "step-000002"
    seen = []
    resume_grpo(
        shop,
        "grpo",
        components=COMPONENTS,
        alarms=AlarmConfig(format="warn", patience=2),
        on_step=seen.append,
    )
    assert [row["step"] for row in seen] == [3]
    assert record.summary["steps"] == 3


def test_the_best_policy_is_kept_and_training_stops_when_it_gets_no_better(shop, monkeypatch):
    values = iter([0.1, 0.7, 0.3, 0.2, 0.0, 0.0])
    weights = {}
    real = GrpoTrainer.evaluate

    def evaluate(self):
        value = next(values)
        weights[value] = {k: np.array(v) for k, v in self.policy.adapter().items()}
        return {**real(self), "cons@1": value}

    monkeypatch.setattr(GrpoTrainer, "evaluate", evaluate)
    config = changed(steps=9, eval_every=1, stop_after=2, best_by="cons@1", keep=1, save_every=100)
    report = train_grpo(shop, "base", "grpo", config, split=SPLIT, components=COMPONENTS)
    assert (report.best_step, report.best_value) == (2, 0.7)
    assert (report.steps, report.stopped_early) == (4, True)
    names = [p.name for p in checkpoint.saved(shop.path / "runs" / "grpo" / "checkpoints")]
    assert names == ["step-000002", "step-000004"]
    for key, value in adapter(shop.path, "grpo").items():
        assert np.array_equal(value, weights[0.7][key])
    assert open_policy(shop, "grpo").info.trained[-1]["step"] == 2


def test_evaluation_uses_the_rewards_of_the_run(shop):
    from qagent_mlx.environment.environment import Environment

    policy = open_policy(shop, "base")
    environment = Environment.of_shop(shop, policy.codec, policy.info.agent, SPLIT)
    found = evaluate_policy(
        environment,
        policy,
        environment.of_split("validation")[:2],
        {"one": 1.0},
        {"one": lambda outcome: 1.0},
    )
    assert found["reward"] == 1.0 and set(found) == {"reward", "q_em", "i_hit@1", "cons@1"}


def test_a_run_goes_on_from_what_it_began_from_after_that_was_trained_anew(
    shop, unbroken, new_nano
):
    from qagent_mlx.policy.registry import save_next
    from qagent_mlx.policy.small_llama import save_base

    with pytest.raises(Stopped):
        train_grpo(
            shop,
            "base",
            "grpo",
            changed(),
            split=SPLIT,
            components=COMPONENTS,
            on_step=send(signal.SIGTERM, 1),
        )
    with pytest.raises(Stopped):
        train_sft(shop, "base", "sft", SFT, split=SPLIT, on_step=send(signal.SIGTERM, 1))
    policy, tokenizer, config = new_nano(1)
    policy.info = replace(policy.info, name="base")
    number = save_next(shop, policy, lambda folder: save_base(policy, tokenizer, config, folder))
    assert number == 2
    resume_grpo(shop, "grpo", components=COMPONENTS)
    resume_sft(shop, "sft")
    for name in ("grpo", "sft"):
        assert_same(shop.path, unbroken, name)


def test_a_run_from_a_folder_that_has_changed_does_not_go_on(shop, new_nano, tmp_path):
    from qagent_mlx.policy.small_llama import save_base

    shutil.copytree(resolve(shop, "base"), tmp_path / "mine")
    with pytest.raises(Stopped):
        train_sft(shop, str(tmp_path / "mine"), "sft", SFT, split=SPLIT, on_step=send(15, 1))
    save_base(*new_nano(1), tmp_path / "mine")
    with pytest.raises(QAgentError, match="mine has changed since the run sft began"):
        resume_sft(shop, "sft")


def test_a_run_from_a_folder_goes_on_from_anywhere(shop, unbroken, tmp_path, monkeypatch):
    shutil.copytree(resolve(shop, "base"), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped):
        train_grpo(
            shop,
            "mine",
            "grpo",
            changed(),
            split=SPLIT,
            components=COMPONENTS,
            on_step=send(signal.SIGTERM, 1),
        )
    monkeypatch.chdir("/")
    resume_grpo(shop, "grpo", components=COMPONENTS)
    assert_same(shop.path, unbroken, "grpo")


def test_what_was_changed_for_a_resumed_run_outlives_a_second_stop(shop, unbroken):
    train_grpo(shop, "base", "grpo", changed(steps=1), split=SPLIT, components=COMPONENTS)
    loud = AlarmConfig(format="off", dropped="off", entropy="off", kl="warn")
    with pytest.raises(Stopped):
        resume_grpo(
            shop,
            "grpo",
            steps=3,
            components=COMPONENTS,
            alarms=loud,
            on_step=send(signal.SIGTERM, 2),
        )
    record = Run.open(shop, "grpo")
    assert record.summary is None, "a run that goes on has not ended"
    assert record.config["train"]["steps"] == 3 and record.config["train"]["alarms"]["kl"] == "warn"
    assert resume_grpo(shop, "grpo", components=COMPONENTS).steps == 3
    assert_same(shop.path, unbroken, "grpo")
    assert Run.open(shop, "grpo").config["version"] == 2, "what it saved before never changes"
    assert open_policy(shop, "grpo@1").info.trained[-1]["config"]["steps"] == 1
    with pytest.raises(QAgentError, match="has 3 steps already"):
        resume_grpo(shop, "grpo", steps=2, components=COMPONENTS)
