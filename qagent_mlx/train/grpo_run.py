"""Train a policy by GRPO in a recorded run, and resume such a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ..environment.config import SplitConfig
from ..environment.environment import Environment
from ..environment.rewards import COMPONENTS, Component
from ..environment.served_slates import calibrate
from ..errors import QAgentError
from ..runs.loop import OnStep, TrainingLoop
from ..runs.records import Alert, LoopResult, TrainingReport
from ..runs.training_run import TrainingRun, open_to_resume, policy_to_resume
from ..shop.shop import Shop
from ..utils.settings import merge
from .config import AlarmConfig
from .grpo import GrpoTrainer
from .grpo_config import GrpoConfig
from .memory_estimate import check_memory, grpo_bytes
from .monitors import AlarmMonitor, FirstUpdateCheck, StretchedSchedule, alarms_for
from .run_options import RunOptions


@dataclass(frozen=True)
class GrpoReport(TrainingReport):
    """What came of a GRPO run."""

    reward_first: float  # mean reward of sampled chains, first tenth of the steps
    reward_last: float  # last tenth
    validation_reward: float  # mean reward of greedy chains on validation cases
    validation: dict[str, float]  # all measures of the same
    best_step: int | None  # of the policy that was kept; None without evaluations
    best_value: float | None
    stopped_early: bool
    dropped_groups: int


def train_grpo(
    shop: Shop,
    policy: str = "sft",
    name: str = "grpo",
    config: GrpoConfig | None = None,
    split: SplitConfig | None = None,
    components: dict[str, Component] | None = None,
    options: RunOptions | None = None,
    on_step: OnStep | None = None,
) -> GrpoReport:
    """Train a policy by GRPO and save it as the next version of ``name``.

    The shop's database is only read at the start; afterwards it may be written to.

    Args:
        shop: With an index.
        policy: What to start from; it is also the reference.
        name: What the new policy is called; it becomes the next version of that name.
        config: All settings.
        split: Which cases are trained on.
        components: Rewards by name; `rewards.COMPONENTS` by default.
        options: The run's name and more.
        on_step: Called after each step with its metrics, the planned ``steps``, and the
            reasons of the ``alarms`` that fired.

    Raises:
        QAgentError: a setting or a check fails; `AlarmStop` when an alarm stopped the run and
            `Stopped` when SIGTERM or Ctrl-C did, each after a checkpoint was written.
    """
    config, options = config or GrpoConfig(), options or RunOptions()
    config.check()
    trained = options.derive_policy(shop, policy, name, config.lora, config.seed)
    environment = options.open_environment(shop, trained, split)
    trainer = GrpoTrainer(trained, environment, config, components)
    estimate = grpo_bytes(trained, config)
    warning = check_memory(estimate * trainer.world.local_size(), config.alarms)
    about = {
        "split": asdict(split or SplitConfig()),
        "rewards": list(trainer.components),
        "memory_bytes": estimate,
        **options.about,
    }
    alerts = [Alert("memory", "warn", 0, warning)] if warning else []
    run = _run(shop, trainer, on_step)
    return run.start(options.run, policy, about, environment.save, alerts)


def resume_grpo(
    shop: Shop,
    run: str,
    steps: int | None = None,
    components: dict[str, Component] | None = None,
    on_step: OnStep | None = None,
    alarms: AlarmConfig | None = None,
) -> GrpoReport:
    """Go on with a run from its last checkpoint, exactly as if it had never stopped.

    Args:
        shop: The run's shop; its database is not needed.
        run: The run's name.
        steps: Train up to this many steps instead of what the run was started with; from then
            on they are what it plans.
        components: Must be what the run was started with, when it used its own.
        on_step: Called after each step with its metrics.
        alarms: Other alarms than the run was started with; they change no number.

    Raises:
        QAgentError: what the run began from has changed, or it cannot be read.
    """
    record = open_to_resume(shop, run, "grpo")
    stored = record.config
    # A run goes on with the components that it began with, whatever was added since.
    components = components or {n: c for n, c in COMPONENTS.items() if n in stored["rewards"]}
    if sorted(stored["rewards"]) != sorted(components):
        raise QAgentError(
            f"the run {run} was started with the rewards {', '.join(stored['rewards'])}; "
            "give the same rewards again"
        )
    began = merge(GrpoConfig(), stored["train"], f"the run {run}")
    config = replace(began, steps=steps or began.steps, alarms=alarms or began.alarms)
    policy = policy_to_resume(shop, record, config.lora, config.seed)
    environment = Environment.resume(shop, record.folder, stored["catalog_version"])
    trainer = GrpoTrainer(policy, environment, config, components)
    return _run(shop, trainer, on_step, began).resume(record)


def _run(
    shop: Shop, trainer: GrpoTrainer, on_step: OnStep | None, began: GrpoConfig | None = None
) -> TrainingRun[GrpoReport]:
    """The run of a trainer; ``began`` has what a run that goes on was started with."""
    config, policy = trainer.config, trainer.policy
    monitors = (
        FirstUpdateCheck(policy),
        AlarmMonitor(alarms_for(config.alarms, policy)),
        StretchedSchedule(began or config, config),
    )
    loop = TrainingLoop(trainer, config.loop, monitors=monitors, on_step=on_step)

    def report(result: LoopResult) -> GrpoReport:
        history = result.history
        reward_first, reward_last = result.first_and_last("reward")
        return GrpoReport(
            run=result.run,
            policy=policy.info.name,
            steps=len(history),
            seconds=result.seconds,
            tokens_per_s=round(result.total("tokens") / result.total("seconds")),
            reward_first=reward_first,
            reward_last=reward_last,
            validation_reward=result.validation["reward"],
            validation=result.validation,
            best_step=result.best_step,
            best_value=result.best_value,
            stopped_early=result.stopped_early,
            dropped_groups=int(result.total("dropped_groups")),
        )

    return TrainingRun(
        shop, "grpo", config, loop, report, lambda: calibrate(trainer.environment, policy)
    )
