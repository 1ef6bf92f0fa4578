"""``qagent pretrain`` and ``qagent train``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from .console import hush, note, say
from .options import (
    PROGRAM,
    F,
    Output,
    dtype_option,
    given,
    json_option,
    opened,
    shop_option,
    split_config,
    split_options,
)
from .param_types import POLICY, RUN
from .progress import TrainingProgress

if TYPE_CHECKING:
    from qagent_mlx.runs.run import Run
    from qagent_mlx.shop.shop import Shop
    from qagent_mlx.train.fit import TrainingCost
    from qagent_mlx.train.grpo_run import GrpoReport
    from qagent_mlx.train.sft import SftReport

steps_option = click.option("--steps", type=click.IntRange(1), help="How long to train.")
seed_option = click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
rate_option = click.option(
    "--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="The highest one."
)
POSITIVE = click.IntRange(1)


def model_options(function: F) -> F:
    """Options that matter where the model is a large one."""
    for option in (
        click.option(
            "--measured", type=POSITIVE, help="Validation cases for the reward.  [default: 100]"
        ),
        click.option("--lora-rank", type=POSITIVE, help="Of the adapter.  [default: 16]"),
        click.option(
            "--lora-blocks", type=POSITIVE, help="Only the last so many blocks.  [default: all]"
        ),
        dtype_option,
    ):
        function = option(function)
    return function


@click.command()
@click.option("--name", default="base", show_default=True, help="Of the new policy.")
@click.option("--size", default="tiny", show_default=True, help="nano, tiny or small.")
@steps_option
@click.option("--batch-size", type=POSITIVE, help="Chains a step.")
@rate_option
@click.option("--vocab-size", type=click.IntRange(256), help="Of the tokenizer made here.")
@seed_option
@split_options
@shop_option
@json_option
def pretrain(
    *,
    name: str,
    size: str,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    vocab_size: int | None,
    seed: int,
    test_from: datetime | None,
    min_history: int | None,
    test_share: float | None,
    validation_share: float | None,
    shop_path: Path,
) -> Output:
    """Train a small policy and its tokenizer from nothing but this shop's data."""
    from qagent_mlx.train.pretrain import PretrainConfig
    from qagent_mlx.train.pretrain import pretrain as run

    config = PretrainConfig(
        **given(
            size=size,
            seed=seed,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            vocab_size=vocab_size,
        )
    )
    split = split_config(test_from, min_history, test_share, validation_share)
    with (
        opened(shop_path) as shop,
        TrainingProgress(config.steps, f"pretraining {name}") as progress,
    ):
        report = run(shop, name, config, split=split, on_step=progress, on_cost=_announce(config))

    def draw() -> None:
        say(
            f"policy {name}: {report.parameters / 1e6:.1f} M parameters, {report.steps} steps, "
            f"loss {report.loss_first:.3f} -> {report.loss_last:.3f}, {report.seconds:.0f} s"
        )
        say(f"next: qagent train sft --policy {name}")

    return Output(report.to_dict(), draw)


def _announce(config: Any) -> Any:
    """Says on stderr what a training will cost, before it starts."""

    def announce(cost: TrainingCost) -> None:
        note(
            f"{cost.parameters / 1e6:.1f} M parameters, {config.steps} steps, "
            f"{cost.tokens / 1e6:.1f} M tokens: about {cost.seconds / 60:.0f} min on this machine, "
            f"{cost.memory_bytes / 1e9:.1f} GB of memory"
        )

    return announce


@click.group()
def train() -> None:
    """Train a policy: an SFT cold start on demonstrations, then GRPO on its own chains."""


config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Settings in TOML: policy, name, run, preset, rewards, and the tables train, "
    "train.weights, train.curriculum, train.lora, train.alarms, agent, split. Flags win over it.",
)
resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Go on with --run, or with the latest unfinished run, exactly as if it had never stopped.",
)
run_option = click.option(
    "--run", "run_name", type=RUN, help="Of the run.  [default: the policy's name]"
)
learn_option = click.option(
    "--learn-from",
    type=click.Choice(["successes", "searches"]),
    help="What training cases ask for: a session's first search that led to an engagement, or "
    "its first search, whatever came of it. Test cases are always the former.  "
    "[default: successes]",
)
UNCHANGED = frozenset({"resume", "run_name", "workers", "shop_path", "as_json"})
workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that share each step's cases, one core each; the step stays the same.",
)


@train.command()
@click.option("--policy", type=POLICY, help="What to start from.  [default: base, else sample]")
@click.option("--name", help="Of the new policy.  [default: sft]")
@run_option
@resume_option
@config_option
@steps_option
@click.option("--batch-size", type=POSITIVE, help="Chains a step.")
@rate_option
@click.option("--save-every", type=POSITIVE, help="Steps between checkpoints.")
@workers_option
@model_options
@click.option("--seed", type=click.IntRange(0), help="[default: 0]")
@learn_option
@split_options
@shop_option
@json_option
@click.pass_context
def sft(
    ctx: click.Context,
    *,
    policy: str | None,
    name: str | None,
    run_name: str | None,
    resume: bool,
    config_path: Path | None,
    shop_path: Path,
    **flags: Any,
) -> Output | None:
    """Train an adapter on demonstration chains."""
    from qagent_mlx.policy.registry import default_policy
    from qagent_mlx.train.config_files import agent_with_changes
    from qagent_mlx.train.run_options import RunOptions
    from qagent_mlx.train.sft import SftConfig, resume_sft, train_sft

    workers = flags.pop("workers")
    if resume:
        _share_out(ctx, workers, workers, shop_path, "sft")
        _refuse_changes(ctx, UNCHANGED)
        with opened(shop_path) as shop:
            run = _to_resume(shop, run_name, "sft")
            title = f"SFT {run.name}"
            with TrainingProgress(_planned(run), title) as progress, _stops(ctx, shop_path, "sft"):
                report = resume_sft(shop, run.name, progress)
        return _trained(report, f"qagent train grpo --policy {run.config['policy']}")
    settings = _settings(SftConfig(), flags, config_path, policy, name or "", run_name or "", "sft")
    _share_out(ctx, workers, settings.train.batch_size, shop_path, "sft")
    with opened(shop_path) as shop:
        parent = settings.policy or default_policy(shop, "base")
        _check_parent(parent, settings.name)
        title = f"SFT {parent} -> {settings.name}"
        with (
            TrainingProgress(settings.train.steps, title) as progress,
            _stops(ctx, shop_path, "sft"),
        ):
            report = train_sft(
                shop,
                parent,
                settings.name,
                settings.train,
                split=settings.split,
                options=RunOptions(
                    run=settings.run or None, agent=agent_with_changes(shop, parent, settings.agent)
                ),
                on_step=progress,
            )
    return _trained(report, f"qagent train grpo --policy {settings.name}")


@train.command()
@click.option("--policy", type=POLICY, help="What to start from.  [default: sft, base or sample]")
@click.option("--name", help="Of the new policy.  [default: grpo]")
@run_option
@resume_option
@config_option
@click.option(
    "--preset",
    metavar="NAME",
    help="A kind of run: consistency, query-only, typed (what people type, whatever came of it), "
    "single-turn (no search), no-memory.",
)
@steps_option
@click.option(
    "--advantage", type=click.Choice(["gdpo", "grpo", "dr_grpo"]), help="[default: dr_grpo]"
)
@click.option(
    "--loss",
    type=click.Choice(["grpo", "dr_grpo", "dapo", "gspo"]),
    help="Averages a chain's tokens (grpo), over a constant (dr_grpo), all tokens (dapo), or "
    "takes the ratio of whole chains (gspo).  [default: dapo]",
)
@click.option("--clip-low", type=click.FloatRange(0, 1), help="[default: of the loss's paper]")
@click.option("--clip-high", type=click.FloatRange(0), help="[default: of the loss's paper]")
@click.option("--epochs", type=POSITIVE, help="Updates on the same chains.  [default: 1]")
@click.option(
    "--dynamic-sampling",
    type=click.IntRange(0),
    metavar="ROUNDS",
    help="Sample more cases for groups whose chains all scored the same.  [default: 0]",
)
@click.option(
    "--overlong",
    "overlong_tokens",
    type=click.IntRange(0),
    metavar="TOKENS",
    help="Punish chains in which the policy writes about so many tokens or more.",
)
@click.option("--group", type=click.IntRange(2), help="Chains a case (G).")
@click.option("--cases-per-step", type=POSITIVE, help="Cases a step.")
@click.option("--token-budget", type=POSITIVE, help="Tokens computed at once in an update.")
@click.option("--beta", type=click.FloatRange(0), help="Weight of the KL to the parent; 0: none.")
@rate_option
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="NAME=VALUE",
    help="Of a reward component; may be repeated. NAME=0@1,2@30 rises from 0 in step 1 to 2 in "
    "step 30.",
)
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    metavar="FILE:NAME",
    help="A component of your own: a Python function (Outcome) -> number in [0, 1]. Its weight "
    "is 1 unless --weight says otherwise.",
)
@click.option(
    "--alarm",
    "alarms",
    multiple=True,
    metavar="NAME=ACTION",
    help="stop, warn or off for format, entropy, kl, dropped, ratio, memory; or a threshold, as "
    "in kl_ceiling=2.",
)
@click.option("--save-every", type=POSITIVE, help="Steps between checkpoints.  [default: 25]")
@click.option("--keep", type=POSITIVE, help="Last checkpoints that stay.  [default: 2]")
@click.option(
    "--eval-every",
    type=click.IntRange(0),
    metavar="STEPS",
    help="Evaluate on validation cases, and keep the best policy.",
)
@click.option(
    "--best-by",
    type=click.Choice(["reward", "cons@1", "q_em", "i_hit@1"]),
    help="What the best policy is best in.  [default: reward]",
)
@click.option(
    "--stop-after",
    type=click.IntRange(0),
    metavar="N",
    help="End after N evaluations without a better one.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb"]),
    help="Also write metrics there (installed by yourself).",
)
@workers_option
@model_options
@click.option("--seed", type=click.IntRange(0), help="[default: 0]")
@learn_option
@split_options
@shop_option
@json_option
@click.pass_context
def grpo(
    ctx: click.Context,
    *,
    policy: str | None,
    name: str | None,
    run_name: str | None,
    resume: bool,
    config_path: Path | None,
    preset: str | None,
    weights: tuple[str, ...],
    rewards: tuple[str, ...],
    alarms: tuple[str, ...],
    logs: tuple[str, ...],
    shop_path: Path,
    **flags: Any,
) -> Output | None:
    """Train a policy by GRPO on its own chains, with rewards from the live inventory."""
    workers = flags.pop("workers")
    if resume:
        _share_out(ctx, workers, workers, shop_path, "grpo")
        return _resume_grpo(
            ctx,
            run_name=run_name,
            steps=flags["steps"],
            rewards=rewards,
            alarms=alarms,
            logs=logs,
            shop_path=shop_path,
        )
    from dataclasses import replace

    from qagent_mlx.environment.custom_rewards import components_of, reward_files
    from qagent_mlx.policy.registry import default_policy
    from qagent_mlx.runs.loggers import logging_to
    from qagent_mlx.train.config_files import agent_with_changes
    from qagent_mlx.train.grpo_config import GrpoConfig, with_weights
    from qagent_mlx.train.grpo_run import train_grpo
    from qagent_mlx.train.monitors import with_actions
    from qagent_mlx.train.run_options import RunOptions

    settings = _settings(
        GrpoConfig(), flags, config_path, policy, name or "", run_name or "", "grpo", preset
    )
    specs = [*settings.rewards, *rewards]
    components = components_of(specs)
    config = with_weights(settings.train, components, specs, weights)
    config = replace(config, alarms=with_actions(config.alarms, alarms))
    _share_out(ctx, workers, config.cases_per_step, shop_path, "grpo")
    with opened(shop_path) as shop:
        parent = settings.policy or default_policy(shop, "sft", "base")
        _check_parent(parent, settings.name)
        title = f"GRPO {parent} -> {settings.name}"
        with (
            TrainingProgress(config.steps, title) as progress,
            logging_to(logs, shop_path / "logs", settings.run or settings.name) as log,
            _stops(ctx, shop_path, "grpo"),
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
                on_step=each(progress, log),
            )
    then = f"qagent evaluate --policy {quote(parent)} --policy {settings.name} --baselines"
    return _trained(report, then)


def _settings(
    train: Any,
    flags: dict[str, Any],
    path: Path | None,
    policy: str | None,
    name: str,
    run: str,
    otherwise: str,
    preset: str | None = None,
) -> Any:
    """Defaults, then the preset, then the file, then the flags that were given."""
    from dataclasses import replace

    from qagent_mlx.train.config_files import Settings, read_settings, with_preset

    settings = Settings(train)
    if path is not None:
        settings = read_settings(path, settings, preset)
    elif preset:
        settings = with_preset(settings, preset)
    split = split_config(
        flags.pop("test_from"),
        flags.pop("min_history"),
        flags.pop("test_share"),
        flags.pop("validation_share"),
        settings.split,
    )
    split = replace(split, **given(learn_from=flags.pop("learn_from")))
    lora = replace(
        settings.train.lora,
        **given(
            rank=flags.pop("lora_rank"), blocks=flags.pop("lora_blocks"), dtype=flags.pop("dtype")
        ),
    )
    return replace(
        settings,
        train=replace(settings.train, lora=lora, **given(**flags)),
        split=split,
        policy=policy or settings.policy,
        name=name or settings.name or otherwise,
        run=run or settings.run,
    )


def each(*callbacks: Any) -> Any:
    """One callback that calls several."""

    def on_step(row: dict[str, Any]) -> None:
        for callback in callbacks:
            callback(row)

    return on_step


def _resume_grpo(
    ctx: click.Context,
    *,
    run_name: str | None,
    steps: int | None,
    rewards: tuple[str, ...],
    alarms: tuple[str, ...],
    logs: tuple[str, ...],
    shop_path: Path,
) -> Output | None:
    from qagent_mlx.environment.custom_rewards import components_of, reward_specs
    from qagent_mlx.runs.loggers import logging_to
    from qagent_mlx.train.grpo_run import resume_grpo
    from qagent_mlx.train.monitors import AlarmConfig, with_actions
    from qagent_mlx.utils.settings import merge

    _refuse_changes(ctx, UNCHANGED | {"steps", "rewards", "alarms", "logs"})
    with opened(shop_path) as shop:
        run = _to_resume(shop, run_name, "grpo")
        specs = list(rewards) or reward_specs(run.config.get("reward_files", []))
        stored = run.config.get("train", {}).get("alarms", {})
        changed = with_actions(merge(AlarmConfig(), stored, f"the run {run.name}"), alarms)
        with (
            TrainingProgress(steps or _planned(run), f"GRPO {run.name}") as progress,
            logging_to(logs, shop_path / "logs", run.name) as log,
            _stops(ctx, shop_path, "grpo"),
        ):
            report = resume_grpo(
                shop, run.name, steps, components_of(specs), each(progress, log), changed
            )
    return _trained(report, f"qagent evaluate --policy {run.config['policy']}")


def _refuse_changes(ctx: click.Context, kept: frozenset[str]) -> None:
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name not in kept and source and source.name == "COMMANDLINE":
            raise click.UsageError(
                f"{parameter.opts[0]} cannot change in a run that goes on; leave it out, or start "
                "a new run without --resume",
                ctx,
            )


def _to_resume(shop: Shop, name: str | None, kind: str) -> Run:
    """The named run, or the latest unfinished one of a kind."""
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.runs.reader import all_runs
    from qagent_mlx.runs.run import Run

    if name:
        run = Run.open(shop, name)
    else:
        open_runs = [
            run for run in all_runs(shop) if run.config.get("kind") == kind and run.summary is None
        ]
        if not open_runs:
            longer = " or name a finished one with --run NAME --steps N to train it longer"
            raise QAgentError(
                f"no {kind.upper()} run is unfinished; start one without --resume"
                f"{',' + longer if kind == 'grpo' else ''}"
            )
        run = open_runs[-1]
    note(f"going on with the run {run.name}")
    return run


def _planned(run: Run) -> int:
    return int(run.config.get("train", {}).get("steps", 0))


@contextlib.contextmanager
def _stops(ctx: click.Context, shop_path: Path, kind: str) -> Iterator[None]:
    """Says how to go on with a run that was stopped; ends in the exit code of its signal."""
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.runs.loop import AlarmStop, Stopped

    try:
        yield
    except Stopped as stopped:
        note(f"{stopped}; go on with: {_resume_command(kind, stopped.run, shop_path)}")
        ctx.exit(128 + stopped.signal_number)
    except AlarmStop as stop:
        command = _resume_command(kind, stop.run, shop_path)
        raise QAgentError(
            f"{stop}; to go on all the same: {command} --alarm {stop.alert.name}=warn"
        ) from stop


def _resume_command(kind: str, run: str, shop_path: Path) -> str:
    return f"qagent train {kind} --resume --run {run} --shop {quote(str(shop_path))}"


def _share_out(ctx: click.Context, workers: int, cases: int, shop_path: Path, kind: str) -> None:
    """Run this command in several workers and end; return at once in one of them, or alone."""
    from qagent_mlx.distributed import launcher, world
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.inventory.index import open_index

    if world.started_by_launcher():
        if workers > 1:
            raise QAgentError("--workers is for one machine; mlx.launch has started the processes")
        if not world.current_world().is_main_process:
            hush()
        return
    if workers == 1:
        return
    if world.is_worker():
        world.current_world()  # before the long preparations, while the others are there too
        return
    launcher.check_workers(workers, cases)
    with opened(shop_path) as shop:
        open_index(shop)  # one builds it for all
    then = f"; go on with: qagent train {kind} --resume --shop {quote(str(shop_path))}"
    ctx.exit(launcher.launch([*PROGRAM, *sys.argv[1:]], workers, then))


def _check_parent(parent: str, name: str) -> None:
    from qagent_mlx.errors import QAgentError

    if parent == name:
        raise QAgentError(
            f"the new policy cannot replace {name}, which it builds on; give it another --name"
        )


def _trained(report: SftReport | GrpoReport, then: str) -> Output | None:
    from qagent_mlx.distributed.world import current_world

    if not current_world().is_main_process:  # which shows it
        return None

    def draw() -> None:
        say(
            f"policy {report.policy} (run {report.run}): {report.steps} steps, reward "
            f"{report.reward_first:.3f} -> {report.reward_last:.3f}, "
            f"{report.seconds:.0f} s, {report.tokens_per_s:,} tokens/s"
        )
        say(f"next: {then}")

    return Output(report.to_dict(), draw)
