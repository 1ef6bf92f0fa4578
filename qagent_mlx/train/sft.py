"""SFT cold start: a LoRA adapter learns the protocol from demonstration chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..environment.cases import evenly_spaced
from ..environment.config import SplitConfig
from ..environment.environment import Environment, evaluate_policy
from ..environment.rewards import WEIGHTS
from ..environment.served_slates import calibrate
from ..errors import QAgentError
from ..policy.batches import TrainingSequence
from ..policy.policy import Policy
from ..protocol.codec import ChatCodec
from ..runs.loop import LoopConfig, OnStep, TrainingLoop
from ..runs.records import LoopResult, Metrics
from ..runs.training_run import TrainingRun, open_to_resume, policy_to_resume
from ..shop.shop import Shop
from ..utils import settings
from .config import SftConfig
from .demonstrations import DemoConfig, Demonstrator, how_to_get_cases
from .fit import FitConfig, FitReport, LikelihoodTrainer
from .run_options import RunOptions

# Cases that are demonstrated more often are known by their words. On half of Best Buy's users
# (some 150 cases) GRPO from such a start stayed below the memory ranker's first line.
MAX_PASSES = 2


@dataclass(frozen=True)
class SftReport(FitReport):
    """What came of an SFT run; rewards are of greedy chains on validation cases."""

    cases: int  # of the training split
    reward_first: float  # before training
    reward_last: float


class SftTrainer(LikelihoodTrainer):
    """Teaches a policy the demonstrations of an environment's training cases."""

    def __init__(self, policy: Policy, environment: Environment, config: SftConfig) -> None:
        self.environment, self.config = environment, config
        demo = demonstration_config(policy, config)
        self.demonstrator = Demonstrator(environment, policy, policy.info.agent, demo)
        self.targets = self.demonstrator.targets(environment.of_split("train"))
        if not self.targets:
            remedy = how_to_get_cases(policy.info.agent)
            raise QAgentError(f"no training case has a relevant line in memory; {remedy}")
        batch_size = min(config.batch_size, len(self.targets))
        passes = config.steps * batch_size / len(self.targets)
        # What a policy is to write is demonstrated in its own words: delexicalised, all other
        # chains would say: write.
        if config.disguise is None and demo.disguise and not demo.words and passes > MAX_PASSES:
            self.demonstrator.config = replace(demo, disguise=1.0)
        self.reward_first = 0.0
        fit_config = FitConfig(
            config.steps, batch_size, config.learning_rate, warmup=10, seed=config.seed
        )
        super().__init__(policy, self._demonstrate, len(self.targets), fit_config)

    def _demonstrate(self, index: int, step: int) -> TrainingSequence:
        # A chat model's instructions are long and the same for all: one group computes them once.
        group = 0 if isinstance(self.policy.codec, ChatCodec) else index
        random = np.random.default_rng([self.config.seed, step, index])
        return self.demonstrator.demonstrate(self.targets[index], random, group)

    def begin(self) -> dict[str, Any]:
        """Measure the reward before training."""
        return {"reward_first": self.evaluate()["reward"]}

    def restore(self, state: dict[str, Any], history: Sequence[Metrics]) -> None:
        """Go on with the reward before training and the count of tokens."""
        super().restore(state, history)
        self.reward_first = state["reward_first"]

    def evaluate(self) -> dict[str, float]:
        """Means over greedy chains on validation cases, see `environment.evaluate_policy`."""
        self.policy.model.eval()
        validation = evenly_spaced(self.environment.of_split("validation"), self.config.measured)
        return evaluate_policy(self.environment, self.policy, validation, WEIGHTS)

    def report(self, result: LoopResult) -> SftReport:
        """The report of a training that ended so."""
        reward = result.validation["reward"]
        return SftReport(
            **self.summary(result),
            cases=len(self.environment.of_split("train")),
            reward_first=self.reward_first,
            reward_last=reward,
        )


def demonstration_config(policy: Policy, config: SftConfig) -> DemoConfig:
    """How SFT varies its demonstrations: as the policy's base was pretrained, if not told."""
    stages = policy.info.trained
    base: dict[str, Any] = next((s["config"] for s in stages if s.get("stage") == "pretrain"), {})
    return DemoConfig(
        compare=config.compare,
        noise=0.0,
        reachable=True,
        disguise=base.get("disguise", 0.0) if config.disguise is None else config.disguise,
        words=base.get("words", False) if config.words is None else config.words,
    )


def train_sft(
    shop: Shop,
    policy: str = "base",
    name: str = "sft",
    config: SftConfig | None = None,
    split: SplitConfig | None = None,
    options: RunOptions | None = None,
    on_step: OnStep | None = None,
) -> SftReport:
    """Train an adapter on demonstrations and save it as the next version of ``name``.

    The shop's database is only read at the start; afterwards it may be written to.

    Args:
        shop: With an index.
        policy: What to start from: a policy of the shop or a model folder.
        name: What the new policy is called; it becomes the next version of that name.
        config: Length and speed of training.
        split: Which cases are trained on.
        options: The run's name and more.
        on_step: Called after each step with its numbers.

    Raises:
        QAgentError: a setting or the data do not serve; `Stopped` when SIGTERM or Ctrl-C
            ended the run, after a checkpoint was written.
    """
    config, options = config or SftConfig(), options or RunOptions()
    config.check()
    trained = options.derive_policy(shop, policy, name, config.lora, config.seed)
    environment = options.open_environment(shop, trained, split)
    about = {
        "split": asdict(split or SplitConfig()),
        "cases": len(environment.of_split("train")),
        **options.about,
    }
    trainer = SftTrainer(trained, environment, config)
    return _run(shop, trainer, on_step).start(options.run, policy, about, environment.save)


def resume_sft(shop: Shop, run: str, on_step: OnStep | None = None) -> SftReport:
    """Go on with a run from its last checkpoint, exactly as if it had never stopped.

    Args:
        shop: The run's shop; its database is not needed.
        run: The run's name.
        on_step: Called after each step with its numbers.
    """
    record = open_to_resume(shop, run, "sft")
    config = settings.merge(SftConfig(), record.config["train"], f"the run {run}")
    policy = policy_to_resume(shop, record, config.lora, config.seed)
    environment = Environment.resume(shop, record.folder, record.config["catalog_version"])
    return _run(shop, SftTrainer(policy, environment, config), on_step).resume(record)


def _run(shop: Shop, trainer: SftTrainer, on_step: OnStep | None) -> TrainingRun[SftReport]:
    config = trainer.config
    loop = TrainingLoop(
        trainer, LoopConfig(config.steps, config.save_every, config.keep), on_step=on_step
    )
    return TrainingRun(
        shop,
        "sft",
        config,
        loop,
        trainer.report,
        lambda: calibrate(trainer.environment, trainer.policy),
    )
