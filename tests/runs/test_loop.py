"""What the training loop does around the steps of an algorithm."""

import signal
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.runs import checkpoint
from qagent_mlx.runs.loop import (
    AlarmStop,
    Algorithm,
    LoopConfig,
    StepResult,
    Stopped,
    TrainingLoop,
    never,
)
from qagent_mlx.runs.records import Alert
from qagent_mlx.runs.run import Run


@dataclass
class Counting(Algorithm):
    """Adds 1 to every weight of the adapter in a step; its evaluations are given."""

    policy: object
    rewards: list = field(default_factory=list)
    taken: list = field(default_factory=list)

    def __post_init__(self):
        self.optimizer = optim.SGD(1.0)
        self.optimizer.init(self.policy.model.trainable_parameters())

    def step(self, number, interrupt=never):
        interrupt()
        self.taken.append(number)
        ones = {name: value + 1 for name, value in self.policy.adapter().items()}
        self.policy.model.load_weights(list(ones.items()), strict=False)
        return StepResult({"step": number + 1, "reward": number / 10})

    def evaluate(self):
        return {"reward": self.rewards.pop(0)} if self.rewards else {}


@pytest.fixture
def policy(new_nano):
    policy = new_nano()[0]
    policy.add_lora(LoraConfig(rank=2))
    zeros = {name: mx.zeros_like(value) for name, value in policy.adapter().items()}
    policy.model.load_weights(list(zeros.items()), strict=False)
    return policy


@pytest.fixture
def record(tmp_path):
    return Run(tmp_path / "run", {})


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "run").mkdir()


def weight(policy):
    (value,) = {float(w) for array in policy.adapter().values() for w in np.array(array).flat}
    return value


class Alarm:
    """Fires at one step."""

    def __init__(self, step, action):
        self.alert, self.replayed = Alert("mine", action, step, "trouble"), []

    def replay(self, history):
        self.replayed += history

    def observe(self, metrics):
        return [self.alert] if metrics["step"] == self.alert.step else []


def test_without_a_record_steps_are_taken_and_nothing_is_caught(policy):
    handler, seen, during = signal.getsignal(signal.SIGTERM), [], []

    def on_step(metrics):
        seen.append((metrics["step"], metrics["steps"], metrics["alarms"]))
        during.append(signal.getsignal(signal.SIGTERM) == handler)

    result = TrainingLoop(Counting(policy), LoopConfig(3), on_step=on_step).run()
    assert seen == [(1, 3, []), (2, 3, []), (3, 3, [])] and all(during)
    assert (result.run, result.best_step, result.stopped_early) == (None, None, False)
    assert result.first_and_last("reward") == (0.0, 0.2) and result.kept_step == 3
    assert weight(policy) == 3


def test_a_loop_goes_on_after_a_checkpoint_with_the_metrics_before_it(policy, record):
    config = LoopConfig(4, save_every=2)
    with pytest.raises(Stopped) as stopped:
        TrainingLoop(
            Counting(policy), config, record, on_step=lambda m: signal.raise_signal(signal.SIGINT)
        ).run({"kept": "so"})
    assert (stopped.value.run, stopped.value.step) == ("run", 1)
    algorithm, monitor = Counting(policy), Alarm(0, "warn")
    state = checkpoint.restore(record.checkpoints, policy, algorithm.optimizer)
    assert state == {"step": 1, "kept": "so"}
    record.append("metrics", [{"step": 2, "reward": 9.0}])  # of a step that is no longer
    result = TrainingLoop(algorithm, config, record, [monitor]).run(state)
    assert algorithm.taken == [1, 2, 3] and weight(policy) == 4
    assert [m["step"] for m in result.history] == [1, 2, 3, 4]
    assert [m["step"] for m in monitor.replayed] == [1]
    names = [p.name for p in checkpoint.saved(record.checkpoints)]
    assert names == ["step-000002", "step-000004"]


def test_without_a_record_the_best_evaluation_is_kept_all_the_same(policy):
    algorithm = Counting(policy, [0.1, 0.9, 0.3, 0.2, 0.9])
    result = TrainingLoop(algorithm, LoopConfig(9, eval_every=1, stop_after=2)).run()
    assert algorithm.taken == [0, 1, 2, 3] and result.stopped_early
    assert result.best_step == 2 and weight(policy) == 2


def test_the_best_evaluation_is_kept_and_ends_the_loop(policy, record):
    config = LoopConfig(9, save_every=100, eval_every=1, stop_after=2)
    algorithm = Counting(policy, rewards=[0.1, 0.7, 0.2, 0.3, 0.7])
    result = TrainingLoop(algorithm, config, record).run()
    assert (result.best_step, result.best_value, result.stopped_early) == (2, 0.7, True)
    assert result.validation == {"reward": 0.7} and result.kept_step == 2
    assert algorithm.taken == [0, 1, 2, 3] and weight(policy) == 2
    assert [row["eval_reward"] for row in record.rows("metrics")] == [0.1, 0.7, 0.2, 0.3]


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_an_alarm_warns_or_stops_after_a_checkpoint(policy, record, action):
    reasons = []
    loop = TrainingLoop(
        Counting(policy),
        LoopConfig(3, save_every=100),
        record,
        [Alarm(2, action)],
        on_step=lambda metrics: reasons.append(metrics["alarms"]),
    )
    if action == "stop":
        with pytest.raises(AlarmStop, match="step 2 by its alarm mine: trouble. Step 2 is saved"):
            loop.run()
    else:
        loop.run()
    assert reasons[1] == ["trouble"] and len(reasons) == (2 if action == "stop" else 3)
    saved = checkpoint.saved(record.checkpoints)[-1].name
    assert saved == ("step-000002" if action == "stop" else "step-000003")
    assert [row["step"] for row in record.rows("alarms")] == [2]


def test_a_run_that_is_not_writable_writes_nothing(policy, record):
    record.writable = False
    TrainingLoop(Counting(policy), LoopConfig(2, save_every=1), record).run()
    record.finish({"steps": 2})
    assert not list(record.folder.iterdir())
