"""What ``qagent train sft`` and ``grpo`` share: their settings, workers, stopping and going on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import click
from msgspec import Meta

from qagent_mlx.utils.settings import merge

from .console import hush, note, say
from .options import PROGRAM, Changes, Output, opened, setting_options
from .param_types import DTYPE, POLICY, RUN
from .progress import TrainingProgress

if TYPE_CHECKING:
    from qagent_mlx.runs.run import Run
    from qagent_mlx.shop.shop import Shop
    from qagent_mlx.train.config_files import Settings
    from qagent_mlx.train.grpo_run import GrpoReport
    from qagent_mlx.train.pretrain import PretrainReport
    from qagent_mlx.train.sft import SftReport

F = TypeVar("F", bound=Callable[..., Any])

# Settings of adapters, and their flags.
LORA = ("lora.rank", "lora.blocks", "lora.dtype")
LORA_FLAGS: dict[str, Any] = {
    "lora__rank": "--lora-rank",
    "lora__blocks": "--lora-blocks",
    "lora__dtype": {"flags": ("--dtype",), "type": DTYPE},
}
# After the last step; of a chat model on a CPU it takes minutes.
MEASURING = "measuring on validation cases"
# Flags that a run that goes on may be given.
RESUME_FLAGS = frozenset({"--resume", "--run", "--workers", "--shop", "--json"})


@dataclass(frozen=True)
class Start:
    """Where a training starts, what it makes, and in how many processes."""

    policy: Annotated[str, Meta(description="Policy to start from.")] = ""
    name: Annotated[str, Meta(description="Name of the new policy.")] = ""
    run: Annotated[str, Meta(description="Name of the run.  [default: the policy's name]")] = ""
    resume: Annotated[
        bool,
        Meta(
            description="Go on with --run, or with the latest unfinished run, exactly as if it "
            "had never stopped."
        ),
    ] = False
    config: Annotated[
        Path | None,
        Meta(
            description="Settings in TOML: policy, name, run, preset, rewards, and the tables "
            "train, train.weights, train.curriculum, train.lora, train.alarms, agent, split. "
            "Flags win over it."
        ),
    ] = None
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Processes that share each step's cases, one core each; the step stays "
            "the same.",
        ),
    ] = 1


def start_options(kind: str, parents: str) -> Callable[[F], F]:
    """Options of `Start`, for a command that trains an ``sft`` or ``grpo`` policy."""
    return setting_options(
        Start,
        into="start",
        build=True,
        policy={"type": POLICY, "help": f"Policy to start from.  [default: {parents}]"},
        name={"help": f"Name of the new policy.  [default: {kind}]"},
        run={"type": RUN},
        config={"metavar": "FILE"},
    )


def resolve_settings(
    train: Any, start: Start, kind: str, changes: Changes, split: Changes, preset: str = ""
) -> Settings:
    """Defaults, then the preset, then the file, then the flags that were given."""
    from qagent_mlx.train.config_files import Settings, read_settings, with_preset

    settings = Settings(train)
    if start.config is not None:
        settings = read_settings(start.config, settings, preset or None)
    elif preset:
        settings = with_preset(settings, preset)
    name = start.name or settings.name or kind
    settings = replace(
        settings,
        train=merge(settings.train, changes),
        split=merge(settings.split, split),
        policy=start.policy or settings.policy,
        name=name,
        run=start.run or settings.run,
    )
    return settings


def choose_parent(shop: Shop, settings: Settings, kind: str) -> str:
    """The policy that a training builds on, which is said: ``NAME@N`` of one of the shop's."""
    from qagent_mlx.policy import registry

    choose = registry.pretrained_policy if kind == "sft" else registry.cold_started_policy
    parent = registry.lasting_name(shop, settings.policy or choose(shop))
    note(f"starting from {parent}")
    return parent


@contextlib.contextmanager
def training_progress(
    ctx: click.Context, kind: str, shop_path: Path, steps: int, title: str
) -> Iterator[TrainingProgress]:
    """Show a run's progress; of a run that was stopped, say how to go on with it.

    A run that a signal stopped ends in that signal's exit code.
    """
    from qagent_mlx.runs.loop import AlarmStop, Stopped

    def resume_command(run: str) -> str:
        return f"qagent train {kind} --resume --run {run} --shop {quote(str(shop_path))}"

    try:
        with TrainingProgress(steps, title, MEASURING) as progress:
            yield progress
    except Stopped as stopped:
        note(f"{stopped}; go on with: {resume_command(stopped.run)}")
        ctx.exit(128 + stopped.signal_number)
    except AlarmStop as stop:
        command = f"{resume_command(stop.run)} --alarm {stop.alert.name}=warn"
        raise click.ClickException(f"{stop}; to go on all the same: {command}") from stop


def refuse_changes(ctx: click.Context, *changeable: str) -> None:
    """Refuse options that a run that goes on cannot be given."""
    for parameter in ctx.command.params:
        flag = parameter.opts[0]
        source = ctx.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and flag not in RESUME_FLAGS and flag not in changeable:
            raise click.UsageError(
                f"{flag} cannot change in a run that goes on; leave it out, or start a new run "
                "without --resume",
                ctx,
            )


def open_unfinished(shop: Shop, name: str, kind: str) -> Run:
    """The named run, or the latest unfinished one of a kind."""
    from qagent_mlx.runs.reader import all_runs
    from qagent_mlx.runs.run import Run

    if name:
        run = Run.open(shop, name)
    else:
        unfinished = [
            run for run in all_runs(shop) if run.config.get("kind") == kind and run.summary is None
        ]
        if not unfinished:
            longer = ", or name a finished one with --run NAME --steps N to train it longer"
            raise click.ClickException(
                f"no {kind.upper()} run is unfinished; start one without --resume"
                f"{longer if kind == 'grpo' else ''}"
            )
        run = unfinished[-1]
    note(f"going on with the run {run.name}")
    return run


def planned_steps(run: Run) -> int:
    """How many steps a run was started for."""
    return int(run.config.get("train", {}).get("steps", 0))


def share_out(ctx: click.Context, workers: int, cases: int, shop_path: Path, kind: str) -> None:
    """Run this command in several workers and end; return at once in one of them, or alone."""
    from qagent_mlx.distributed import launcher, world
    from qagent_mlx.inventory.index import open_index

    if world.started_by_launcher():
        if workers > 1:
            raise click.ClickException(
                "--workers is for one machine; mlx.launch has started the processes"
            )
        if not world.current_world().is_main_process:
            hush()
    elif world.is_worker():
        world.current_world()  # before the long preparations, while the others are there too
    elif workers > 1:
        launcher.check_workers(workers, cases)
        with opened(shop_path) as shop:
            open_index(shop)  # one builds it for all
        then = f"; go on with: qagent train {kind} --resume --shop {quote(str(shop_path))}"
        ctx.exit(launcher.launch([*PROGRAM, *sys.argv[1:]], workers, then))


def demonstrated(report: PretrainReport | SftReport) -> str:
    """How many training cases demonstrations could be made for."""
    left_out = report.cases - report.demonstrated
    why = "no chain could have found the answer of the others" if left_out else "all of them"
    return f"demonstrated {report.demonstrated:,} of {report.cases:,} training cases; {why}"


def trained(report: SftReport | GrpoReport, parent: str, then: str) -> Output | None:
    """What a training says at its end; only the main process says it.

    Args:
        report: Of the training.
        parent: What it started from.
        then: The command to go on with.
    """
    from qagent_mlx.distributed.world import current_world
    from qagent_mlx.train.grpo_run import GrpoReport

    if not current_world().is_main_process:
        return None

    def draw() -> None:
        say(
            f"policy {report.reference} on {parent} (run {report.run}): {report.steps} steps, "
            f"reward {report.reward_first:.3f} -> {report.reward_last:.3f}, "
            f"{report.seconds:.0f} s, {report.tokens_per_s:,} tokens/s"
        )
        if not isinstance(report, GrpoReport):
            say(demonstrated(report))
        say(f"next: {then}")
        say(f"to use it where no policy is named: qagent policies promote {report.reference}")

    return Output(report.to_dict(), draw)
