"""``qagent pretrain`` and ``qagent train``."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import (
    PLAIN,
    default_policy,
    emit,
    given,
    json_option,
    note,
    opened,
    out,
    shop_option,
    shown,
    split_config,
    split_options,
)
from .progress import TrainingProgress
from .runs import all_runs

if TYPE_CHECKING:
    from qagent_mlx.shop import Shop

steps_option = click.option("--steps", type=click.IntRange(1), help="How long to train.")
seed_option = click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
rate_option = click.option(
    "--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="The highest one."
)
POSITIVE = click.IntRange(1)


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
    *, name: str, size: str, steps: int | None, batch_size: int | None,
    learning_rate: float | None, vocab_size: int | None, seed: int,
    test_from: datetime | None, min_history: int | None, test_share: float | None,
    validation_share: float | None, shop_path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Train a small policy and its tokenizer from nothing but this shop's data."""
    from qagent_mlx.train.pretrain import PretrainConfig
    from qagent_mlx.train.pretrain import pretrain as run

    config = PretrainConfig(
        size=size, seed=seed,
        **given(steps=steps, batch_size=batch_size, learning_rate=learning_rate,
                vocab_size=vocab_size),
    )  # fmt: skip
    split = split_config(test_from, min_history, test_share, validation_share)
    with (
        opened(shop_path) as shop,
        TrainingProgress(config.steps, f"pretraining {name}") as progress,
    ):
        report = run(shop, name, config, split=split, on_step=progress)
    rate = report["tokens"] / max(report["seconds"], 1e-9)
    if as_json:
        emit({"run": None, **report, "tokens_per_s": round(rate)})
        return
    console = out()
    console.print(
        shown(
            f"policy {name}: {report['parameters'] / 1e6:.1f} M parameters, {report['steps']} "
            f"steps, loss {report['loss_first']:.3f} -> {report['loss_last']:.3f}, "
            f"{report['seconds']:.0f} s"
        )
    )
    console.print(shown(f"next: qagent train sft --policy {name}"))


@click.group()
def train() -> None:
    """Train a policy: an SFT cold start on demonstrations, then GRPO on its own chains."""


@train.command()
@click.option("--policy", type=PLAIN, help="What to start from.  [default: base, else sample]")
@click.option("--name", default="sft", show_default=True, help="Of the new policy.")
@click.option("--run", "run_name", help="Of the run.  [default: the policy's name]")
@steps_option
@click.option("--batch-size", type=POSITIVE, help="Chains a step.")
@rate_option
@seed_option
@split_options
@shop_option
@json_option
def sft(
    *, policy: str | None, name: str, run_name: str | None, steps: int | None,
    batch_size: int | None, learning_rate: float | None, seed: int,
    test_from: datetime | None, min_history: int | None, test_share: float | None,
    validation_share: float | None, shop_path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Train an adapter on demonstration chains."""
    from qagent_mlx.train.sft import SftConfig, train_sft

    config = SftConfig(
        seed=seed, **given(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    )
    split = split_config(test_from, min_history, test_share, validation_share)
    with opened(shop_path) as shop:
        parent = policy or default_policy(shop, "base")
        _check_parent(parent, name)
        with TrainingProgress(config.steps, f"SFT {parent} -> {name}") as progress:
            report = train_sft(
                shop, parent, name, config, split=split, run=run_name, on_step=progress
            )
    _show(report, as_json, f"qagent train grpo --policy {name}")


@train.command()
@click.option("--policy", type=PLAIN, help="What to start from.  [default: sft, base or sample]")
@click.option("--name", default="grpo", show_default=True, help="Of the new policy.")
@click.option("--run", "run_name", help="Of the run.  [default: the policy's name]")
@click.option(
    "--resume", is_flag=True,
    help="Go on with --run, or with the latest unfinished GRPO run, exactly as if it had "
    "never stopped.",
)  # fmt: skip
@steps_option
@click.option(
    "--advantage", type=click.Choice(["gdpo", "grpo", "dr_grpo"]), help="[default: dr_grpo]"
)
@click.option("--group", type=click.IntRange(2), help="Chains a case (G).")
@click.option("--cases-per-step", type=POSITIVE, help="Cases a step.")
@click.option("--beta", type=click.FloatRange(0), help="Weight of the KL to the parent policy.")
@rate_option
@click.option(
    "--weight", "weights", multiple=True, metavar="NAME=VALUE",
    help="Of a reward component; may be repeated.",
)  # fmt: skip
@click.option(
    "--reward", "rewards", multiple=True, metavar="FILE:NAME",
    help="A component of your own: a Python function (Outcome) -> number in [0, 1]. Its weight "
    "is 1 unless --weight says otherwise.",
)  # fmt: skip
@seed_option
@split_options
@shop_option
@json_option
@click.pass_context
def grpo(
    ctx: click.Context, *, policy: str | None, name: str, run_name: str | None, resume: bool,
    steps: int | None, advantage: str | None, group: int | None, cases_per_step: int | None,
    beta: float | None, learning_rate: float | None, weights: tuple[str, ...],
    rewards: tuple[str, ...], seed: int, test_from: datetime | None, min_history: int | None,
    test_share: float | None, validation_share: float | None, shop_path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Train a policy by GRPO on its own chains, with rewards from the live inventory."""
    if resume:
        _resume(
            ctx, run_name=run_name, steps=steps, rewards=rewards, shop_path=shop_path,
            as_json=as_json,
        )  # fmt: skip
        return
    from qagent_mlx.train.grpo import GrpoConfig, train_grpo

    components, weight = _rewards(rewards, weights)
    config = GrpoConfig(
        seed=seed, weights=weight,
        **given(steps=steps, advantage=advantage, group=group, cases_per_step=cases_per_step,
                beta=beta, learning_rate=learning_rate),
    )  # fmt: skip
    split = split_config(test_from, min_history, test_share, validation_share)
    with opened(shop_path) as shop:
        parent = policy or default_policy(shop, "sft", "base")
        _check_parent(parent, name)
        title = f"GRPO {parent} -> {name}"
        with TrainingProgress(config.steps, title) as progress, Resumable(shop_path, progress):
            report = train_grpo(
                shop, parent, name, config, split=split, run=run_name, components=components,
                on_step=progress,
            )  # fmt: skip
    _show(report, as_json, f"qagent evaluate --policy {parent} --policy {name} --baselines")


def _resume(
    ctx: click.Context, *, run_name: str | None, steps: int | None, rewards: tuple[str, ...],
    shop_path: Path, as_json: bool,
) -> None:  # fmt: skip
    from qagent_mlx.train.grpo import resume_grpo
    from qagent_mlx.train.runs import Run

    kept = {"resume", "run_name", "steps", "rewards", "shop_path", "as_json"}
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name not in kept and source and source.name == "COMMANDLINE":
            raise click.UsageError(
                f"{parameter.opts[0]} cannot change in a run that goes on; leave it out, or start "
                "a new run without --resume", ctx,
            )  # fmt: skip
    components, _ = _rewards(rewards, ())
    with opened(shop_path) as shop:
        name = run_name or _unfinished(shop)
        planned = int(Run.open(shop, name).config.get("train", {}).get("steps", 0))
        note(f"going on with the run {name}")
        progress = TrainingProgress(steps or planned, f"GRPO {name}")
        with progress, Resumable(shop_path, progress):
            report = resume_grpo(shop, name, steps, components, progress)
    _show(report, as_json, f"qagent evaluate --policy {report['policy']}")


def _unfinished(shop: Shop) -> str:
    from qagent_mlx.errors import QAgentError

    for run in reversed(all_runs(shop)):
        if run.config.get("kind") == "grpo" and run.summary is None:
            return run.name
    raise QAgentError(
        "no GRPO run is unfinished; start one without --resume, or name a finished one with "
        "--run NAME --steps N to train it longer"
    )


class Resumable:
    """Says how to go on, when a run is interrupted."""

    def __init__(self, shop_path: Path, progress: TrainingProgress) -> None:
        self._shop, self._progress = shop_path, progress

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is KeyboardInterrupt and self._progress.started:
            note(f"the run is kept; go on with: qagent train grpo --resume --shop {self._shop}")


def _rewards(rewards: tuple[str, ...], weights: tuple[str, ...]) -> tuple[Any, dict[str, float]]:
    """Components by name (None for the usual ones), and the weight of each."""
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.train.rewards import COMPONENTS, WEIGHTS, load_component

    components, weight = dict(COMPONENTS), dict(WEIGHTS)
    for spec in rewards:
        name, component = load_component(spec)
        if name in COMPONENTS:
            raise QAgentError(f"--reward {spec}: {name} is taken by a reward of the package")
        components[name], weight[name] = component, 1.0
    for pair in weights:
        name, sign, text = pair.partition("=")
        if name not in components:
            raise QAgentError(
                f"--weight {pair}: there is no reward {name!r}; known are {', '.join(components)}"
            )
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not sign or not math.isfinite(value) or value < 0:
            raise QAgentError(f"--weight {pair}: write it as {name}=0.5, with a number from 0 on")
        weight[name] = value
    if not any(weight.values()):
        raise QAgentError("all rewards have weight 0: nothing would be learned")
    return (components if rewards else None), weight


def _check_parent(parent: str, name: str) -> None:
    from qagent_mlx.errors import QAgentError

    if parent == name:
        raise QAgentError(
            f"the new policy cannot replace {name}, which it builds on; give it another --name"
        )


def _show(report: dict[str, Any], as_json: bool, then: str) -> None:
    if as_json:
        emit(report)
        return
    console = out()
    console.print(
        shown(
            f"policy {report['policy']} (run {report['run']}): {report['steps']} steps, reward "
            f"{report['reward_first']:.3f} -> {report['reward_last']:.3f}, "
            f"{report['seconds']:.0f} s, {report['tokens_per_s']:,} tokens/s"
        )
    )
    console.print(shown(f"next: {then}"), soft_wrap=True)
