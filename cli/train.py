"""``qagent pretrain``, ``train`` and ``distil``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import click
from msgspec import Meta

from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.train.config import DistillConfig, PretrainConfig, SftConfig
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.utils.settings import merge

from . import training
from .console import note, say
from .groups import Group
from .options import (
    Changes,
    Output,
    json_option,
    learning_options,
    opened,
    setting_options,
    shop_option,
    split_options,
)
from .param_types import PLAIN, POLICY, SERVING
from .progress import TrainingProgress
from .training import LORA, LORA_FLAGS, Start, start_options

if TYPE_CHECKING:
    from qagent_mlx.train.distill import DistillReport
    from qagent_mlx.train.fit import TrainingCost

RATE = {"type": click.FloatRange(0, 1, min_open=True)}


@click.command()
@click.option("--name", default="base", show_default=True, help="Name of the new policy.")
@setting_options(
    PretrainConfig,
    *("size", "steps", "batch_size", "learning_rate", "vocab_size", "seed"),
    into="changes",
    learning_rate=RATE,
)
@setting_options(AgentConfig, "writes", into="agent")
@split_options
@shop_option
@json_option
def pretrain(
    name: str, changes: Changes, agent: Changes, split: Changes, shop_path: Path
) -> Output:
    """Train a small policy and its tokenizer from nothing but this shop's data."""
    from qagent_mlx.environment.config import SplitConfig
    from qagent_mlx.train.pretrain import pretrain as run

    config = merge(PretrainConfig(), changes)

    def announce(cost: TrainingCost) -> None:
        note(
            f"{cost.parameters / 1e6:.1f} M parameters, {config.steps} steps, "
            f"{cost.tokens / 1e6:.1f} M tokens: about {cost.seconds / 60:.0f} min on this machine, "
            f"{cost.memory_bytes / 1e9:.1f} GB of memory"
        )

    title = f"pretraining {name}"
    with (
        opened(shop_path, snapshot=True) as shop,
        TrainingProgress(config.steps, title) as progress,
    ):
        report = run(
            shop,
            name,
            config,
            merge(AgentConfig(), agent),
            merge(SplitConfig(), split),
            on_step=progress,
            on_cost=announce,
        )

    def draw() -> None:
        say(
            f"policy {name}: {report.parameters / 1e6:.1f} M parameters, {report.steps} steps, "
            f"loss {report.loss_first:.3f} -> {report.loss_last:.3f}, {report.seconds:.0f} s"
        )
        say(training.demonstrated(report))
        say(f"next: qagent train sft --policy {name}")

    return Output(report.to_dict(), draw)


@click.group(cls=Group)
def train() -> None:
    """Train a policy: a cold start on demonstrations, then reinforcement learning.

    The first is supervised fine-tuning (SFT); the second, group relative policy optimisation
    (GRPO), compares chains that the policy runs itself by their rewards.
    """


@train.command()
@start_options("sft", "the newest pretrained base, else sample")
@setting_options(
    SftConfig,
    *("steps", "batch_size", "learning_rate", "save_every", "measured", *LORA, "seed"),
    into="changes",
    learning_rate=RATE,
    **LORA_FLAGS,
)
@learning_options
@shop_option
@json_option
@click.pass_context
def sft(
    ctx: click.Context, start: Start, changes: Changes, split: Changes, shop_path: Path
) -> Output | None:
    """Train an adapter on demonstration chains: supervised fine-tuning (SFT)."""
    from qagent_mlx.train.config_files import agent_with_changes
    from qagent_mlx.train.run_options import RunOptions
    from qagent_mlx.train.sft import resume_sft, train_sft

    if start.resume:
        training.share_out(ctx, start.workers, start.workers, shop_path, "sft")
        training.refuse_changes(ctx)
        with opened(shop_path, snapshot=True) as shop:
            run = training.open_unfinished(shop, start.run, "sft")
            steps, title = training.planned_steps(run), f"SFT {run.name}"
            with training.training_progress(ctx, "sft", shop_path, steps, title) as progress:
                report = resume_sft(shop, run.name, progress)
        return training.trained(
            report, run.config["base"], f"qagent train grpo --policy {quote(report.reference)}"
        )
    settings = training.resolve_settings(SftConfig(), start, "sft", changes, split)
    config = settings.train
    training.share_out(ctx, start.workers, config.batch_size, shop_path, "sft")
    with opened(shop_path, snapshot=True) as shop:
        parent = training.choose_parent(shop, settings, "sft")
        title = f"SFT {parent} -> {settings.name}"
        with training.training_progress(ctx, "sft", shop_path, config.steps, title) as progress:
            agent = agent_with_changes(shop, parent, settings.agent)
            report = train_sft(
                shop,
                parent,
                settings.name,
                config,
                split=settings.split,
                options=RunOptions(run=settings.run or None, agent=agent),
                on_step=progress,
            )
    return training.trained(report, parent, f"qagent train grpo --policy {quote(report.reference)}")


@dataclass(frozen=True)
class GrpoOptions:
    """Options of GRPO that are no plain settings."""

    preset: Annotated[
        str,
        Meta(
            description="Kind of run: consistency, query-only, typed (what people type, whatever "
            "came of it), single-turn (no search) or no-memory."
        ),
    ] = ""
    weights: Annotated[
        tuple[str, ...],
        Meta(
            description="Weight of a reward component; may be repeated. NAME=0@1,2@30 rises from "
            "0 in step 1 to 2 in step 30."
        ),
    ] = ()
    rewards: Annotated[
        tuple[str, ...],
        Meta(
            description="A component of your own: a Python function (Outcome) -> number in "
            "[0, 1]. Its weight is 1 unless --weight says otherwise."
        ),
    ] = ()
    alarms: Annotated[
        tuple[str, ...],
        Meta(
            description="Action of an alarm: stop, warn or off for format, entropy, searches, "
            "words, distinct, kl, gradient, dropped, ratio, memory; or a threshold, as in "
            "kl_ceiling=2."
        ),
    ] = ()
    logs: Annotated[
        tuple[str, ...],
        Meta(description="Logger that gets the metrics, too; pip install it first."),
    ] = ()


@train.command()
@start_options("grpo", "the promoted one, else the newest of SFT, else as sft")
@setting_options(
    GrpoOptions,
    into="options",
    build=True,
    preset={"metavar": "NAME"},
    weights={"flags": ("--weight",), "metavar": "NAME=VALUE"},
    rewards={"flags": ("--reward",), "metavar": "FILE:NAME"},
    alarms={"flags": ("--alarm",), "metavar": "NAME=ACTION"},
    logs={"flags": ("--log",), "type": click.Choice(["tensorboard", "wandb"])},
)
@setting_options(
    GrpoConfig,
    *("steps", "advantage", "loss", "clip_low", "clip_high", "epochs", "dynamic_sampling"),
    *("thinning", "step_credit", "row", "row_share"),
    *("overlong_tokens", "group", "cases_per_step", "token_budget", "beta", "learning_rate"),
    *("save_every", "keep", "eval_every", "best_by", "stop_after", "measured", *LORA, "seed"),
    into="changes",
    overlong_tokens="--overlong",
    learning_rate=RATE,
    **LORA_FLAGS,
)
@learning_options
@shop_option
@json_option
@click.pass_context
def grpo(
    ctx: click.Context,
    start: Start,
    options: GrpoOptions,
    changes: Changes,
    split: Changes,
    shop_path: Path,
) -> Output | None:
    """Train a policy by GRPO on its own chains, with rewards from the live inventory."""
    from qagent_mlx.environment.custom_rewards import components_of, reward_files
    from qagent_mlx.runs.loggers import logging_to
    from qagent_mlx.train.config_files import agent_with_changes
    from qagent_mlx.train.grpo_config import with_weights
    from qagent_mlx.train.grpo_run import train_grpo
    from qagent_mlx.train.monitors import with_actions
    from qagent_mlx.train.run_options import RunOptions

    if start.resume:
        training.share_out(ctx, start.workers, start.workers, shop_path, "grpo")
        return _resume_grpo(ctx, start, options, changes.get("steps"), shop_path)
    settings = training.resolve_settings(
        GrpoConfig(), start, "grpo", changes, split, options.preset
    )
    specs = [*settings.rewards, *options.rewards]
    components = components_of(specs)
    config = with_weights(settings.train, components, specs, options.weights)
    config = replace(config, alarms=with_actions(config.alarms, options.alarms))
    training.share_out(ctx, start.workers, config.cases_per_step, shop_path, "grpo")
    with opened(shop_path, snapshot=True) as shop:
        parent = training.choose_parent(shop, settings, "grpo")
        title = f"GRPO {parent} -> {settings.name}"
        with (
            training.training_progress(ctx, "grpo", shop_path, config.steps, title) as progress,
            logging_to(options.logs, shop_path / "logs", settings.run or settings.name) as log,
        ):
            report = train_grpo(
                shop,
                parent,
                settings.name,
                config,
                split=settings.split,
                components=components,
                options=RunOptions(
                    run=settings.run or None,
                    agent=agent_with_changes(shop, parent, settings.agent),
                    about={"preset": settings.preset, "reward_files": reward_files(specs)},
                ),
                on_step=_each(progress, log),
            )
    then = f"qagent evaluate --policy {quote(parent)} --policy {report.reference} --baselines"
    return training.trained(report, parent, then)


def _resume_grpo(
    ctx: click.Context, start: Start, options: GrpoOptions, steps: int | None, shop_path: Path
) -> Output | None:
    from qagent_mlx.environment.custom_rewards import components_of, reward_specs
    from qagent_mlx.runs.loggers import logging_to
    from qagent_mlx.train.config import AlarmConfig
    from qagent_mlx.train.grpo_run import resume_grpo
    from qagent_mlx.train.monitors import with_actions

    training.refuse_changes(ctx, "--steps", "--reward", "--alarm", "--log")
    with opened(shop_path, snapshot=True) as shop:
        run = training.open_unfinished(shop, start.run, "grpo")
        specs = list(options.rewards) or reward_specs(run.config.get("reward_files", []))
        stored = run.config.get("train", {}).get("alarms", {})
        alarms = merge(AlarmConfig(), stored, f"the run {run.name}")
        total, title = steps or training.planned_steps(run), f"GRPO {run.name}"
        with (
            training.training_progress(ctx, "grpo", shop_path, total, title) as progress,
            logging_to(options.logs, shop_path / "logs", run.name) as log,
        ):
            report = resume_grpo(
                shop,
                run.name,
                steps,
                components_of(specs),
                _each(progress, log),
                with_actions(alarms, options.alarms),
            )
    then = f"qagent evaluate --policy {report.reference}"
    return training.trained(report, run.config["base"], then)


def _each(*callbacks: Any) -> Any:
    """One callback that calls several."""

    def on_step(metrics: dict[str, Any]) -> None:
        for callback in callbacks:
            callback(metrics)

    return on_step


@click.command()
@click.option("--teacher", type=POLICY, help=f"A trained policy.  [default: {SERVING}]")
@click.option(
    "--student",
    default="tiny",
    show_default=True,
    type=PLAIN,
    help="Size of a new model: nano, tiny or small; or a policy to put an adapter on.",
)
@click.option("--name", default="distilled", show_default=True, help="Name of the student.")
@setting_options(DistillConfig, *("cases", "group", "steps", "batch_size", "seed"), into="changes")
@split_options
@shop_option
@json_option
def distil(
    teacher: str | None, student: str, name: str, changes: Changes, split: Changes, shop_path: Path
) -> Output:
    """Train a small policy on the validated chains of a large one, for serving fast."""
    from qagent_mlx.environment.config import SplitConfig
    from qagent_mlx.policy.registry import serving_policy
    from qagent_mlx.train.distill import distill

    config = merge(DistillConfig(), changes)
    noted_tenths = 0

    def on_chains(done: int, total: int) -> None:
        nonlocal noted_tenths
        tenths = 10 * done // max(1, total)
        if tenths > noted_tenths:
            noted_tenths = tenths
            note(f"the teacher has sampled {done:,} of {total:,} chains")

    with opened(shop_path, snapshot=True) as shop:
        teacher = teacher or serving_policy(shop)
        cases = merge(SplitConfig(), split)
        title = f"distilling {teacher} -> {name}"
        with TrainingProgress(config.steps, title, training.MEASURING) as progress:
            report = distill(shop, teacher, student, name, config, cases, on_chains, progress)
    return Output(report.to_dict(), lambda: _draw_distilled(report))


def _draw_distilled(report: DistillReport) -> None:
    say(
        f"{report.chains:,} chains of {report.teacher}, {report.validated:,} validated, "
        f"{report.kept:,} learned from"
    )
    for name, size, reward, ms in (
        (report.teacher, report.parameters_teacher, report.reward_teacher, report.ms_teacher),
        (report.policy, report.parameters, report.reward_student, report.ms_student),
    ):
        say(f"{name}: {size / 1e6:,.1f} M parameters, reward {reward:.3f}, {ms:.0f} ms a chain")
    say(
        f"{report.speedup:.1f} times as fast; next: qagent evaluate --policy "
        f"{quote(report.teacher)} --policy {report.reference}"
    )
