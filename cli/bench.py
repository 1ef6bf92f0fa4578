"""``qagent bench``."""

from __future__ import annotations

import sys
from typing import Any

import click

from .console import note, print_table, say
from .options import PROGRAM, Output, json_option

POSITIVE = click.IntRange(1)


@click.command()
@click.option(
    "--model",
    type=click.Choice(["tiny", "small", "smol"]),
    default="tiny",
    show_default=True,
    help="The shipped policy, a random llama of 5.8 M, or one of SmolLM2-135M's shape.",
)
@click.option(
    "--workload",
    type=click.Choice(["standard", "agentic"]),
    default="standard",
    show_default=True,
    help="A plain GRPO step, or rollouts with two searches a chain.",
)
@click.option(
    "--against",
    type=click.Choice(["mlx-lm-lora", "trl"]),
    help="Run this trainer beside ours, in an environment of its own under the user's cache.",
)
@click.option(
    "--own-blas", is_flag=True, help="Leave an MLX peer the BLAS that its wheel comes with."
)
@click.option("--steps", type=POSITIVE, default=3, show_default=True, help="After one warm-up.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True)
@click.option("--prompts", type=POSITIVE, default=4, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(2), default=256, show_default=True)
@click.option("--group", type=click.IntRange(2), default=8, show_default=True)
@click.option("--new-tokens", type=POSITIVE, default=48, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that share the standard workload's prompts.",
)
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    *,
    model: str,
    workload: str,
    against: str | None,
    own_blas: bool,
    steps: int,
    warmup: int,
    prompts: int,
    prompt_tokens: int,
    group: int,
    new_tokens: int,
    workers: int,
) -> Output | None:
    """Measure rollouts and updates, alone or beside another trainer."""
    from qagent_mlx.bench import measure, peers
    from qagent_mlx.bench.workloads import Agentic, Workload
    from qagent_mlx.distributed import launcher, world

    if workers > 1 and not world.is_worker():
        if against or workload != "standard":
            raise click.UsageError("--workers is for the standard workload alone", ctx)
        launcher.check_workers(workers, prompts)
        measure.model_folder(model, measure.cache_folder() / "models")  # once, for all
        ctx.exit(launcher.launch([*PROGRAM, *sys.argv[1:]], workers))
    work = Workload(prompts, prompt_tokens, group, new_tokens)
    if against:
        report = peers.against(against, model, work, steps, warmup, not own_blas, note)
    elif workload == "agentic":
        report = measure.agentic(model, steps, Agentic(cases=prompts, group=group))
    else:
        report = measure.standard(model, work, steps, warmup)
    if not world.current_world().is_main_process:
        return None
    report = {**measure.environment(), **report}
    return Output(report, lambda: _draw(report))


def _draw(report: dict[str, Any]) -> None:
    say(f"{report['machine']}; {report['device']}, {report['blas']}")
    if "against" in report:
        _draw_pairs(report)
    elif report["workload"] == "agentic":
        ratios = ", ".join(f"{ratio:.2f}" for ratio in report["ratios"])
        _draw_rows(
            ("rollout", f"{report['rollout_seconds']:.2f} s"),
            ("the same chains re-prefilled", f"{report['reprefill_seconds']:.2f} s"),
            ("ratio", f"{report['ratio']:.2f} ({ratios})"),
            (
                "same chains",
                f"{report['same_chains']:.0%}, log-probabilities within "
                f"{report['logprob_difference']:.0e} until they part",
            ),
            ("tokens", f"{report['tokens_per_s']:,.0f} /s"),
            ("peak memory", f"{report['peak_memory_mb']:.0f} MB"),
        )
    else:
        _draw_rows(
            ("rollout", f"{report['rollout_seconds']:.2f} s"),
            ("update", f"{report['update_seconds']:.2f} s"),
            ("tokens", f"{report['tokens_per_s']:,.0f} /s"),
            ("peak memory", f"{report['peak_memory_mb']:.0f} MB"),
            (
                "matrix products",
                f"{report['product_share']:.0%} of the step at {report['gemm_gflops']:.0f} GFLOP/s",
            ),
            *(
                (f"  {name}", f"{seconds:.2f} s  {seconds / report['seconds']:.0%}")
                for name, seconds in report["profile"].items()
            ),
        )


def _draw_rows(*rows: tuple[str, str]) -> None:
    print_table(("", ""), rows, numbers=("",))


def _draw_pairs(report: dict[str, Any]) -> None:
    """Our times beside another trainer's."""
    times = ("rollout_seconds", "update_seconds", "seconds")
    rows = [
        (
            name,
            *(f"{report[prefix + time]:.2f}" for time in times),
            f"{report[prefix + 'peak_memory_mb']:.0f}",
        )
        for name, prefix in (("qagent", ""), (report["against"], "peer_"))
    ]
    print_table(("", "rollout s", "update s", "step s", "peak MB"), rows)
    ratios = ", ".join(f"{pair['ratio']:.2f}" for pair in report["pairs"])
    say(
        f"{report['ratio']:.2f} times as fast (pair by pair: {ratios}; processor time: "
        f"{report['cpu_ratio']:.2f})"
    )
