"""``qagent bench``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from msgspec import Meta

from qagent_mlx.utils.settings import Natural, Positive

from .console import note, print_table, say
from .options import PROGRAM, Output, json_option, setting_options, shop_option


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how often."""

    model: Annotated[
        Literal["tiny", "small", "smol"],
        Meta(
            description="Policy that is trained: the shipped one, a random llama of 5.8 M, or one "
            "of SmolLM2-135M's shape."
        ),
    ] = "tiny"
    workload: Annotated[
        Literal["standard", "agentic", "serving"],
        Meta(
            description="Workload: a plain GRPO step, rollouts with two searches a chain, or the "
            "answers of a shop's server and where their time goes."
        ),
    ] = "standard"
    against: Annotated[
        Literal["mlx-lm-lora", "mlxrl", "trl"] | None,
        Meta(
            description="Trainer to run beside ours, in an environment of its own under the "
            "user's cache."
        ),
    ] = None
    own_blas: Annotated[
        bool, Meta(description="Leave an MLX peer the BLAS that its wheel comes with.")
    ] = False
    steps: Annotated[Positive, Meta(description="Measured steps, after the warm-up.")] = 3
    warmup: Annotated[Natural, Meta(description="Steps before the measured ones.")] = 1
    prompts: Annotated[Positive, Meta(description="Prompts in a step.")] = 4
    prompt_tokens: Annotated[int, Meta(ge=2, description="Tokens of each prompt.")] = 256
    group: Annotated[int, Meta(ge=2, description="Chains sampled for each prompt.")] = 8
    new_tokens: Annotated[Positive, Meta(description="Tokens that each chain samples.")] = 48
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Processes that share the standard workload's prompts, or that serve.",
        ),
    ] = 1
    seconds: Annotated[
        float,
        Meta(
            gt=0,
            extra={"unit": "seconds"},
            description="How long each load of the serving workload takes: 1, 4 and 16 clients.",
        ),
    ] = 5.0


@click.command()
@setting_options(BenchOptions, into="options", build=True)
@shop_option
@json_option
@click.pass_context
def bench(ctx: click.Context, options: BenchOptions, shop_path: Path) -> Output | None:
    """Measure rollouts and updates, alone or beside another trainer, or a server's answers.

    Only --workload serving needs a shop, with the policy that would be served; it stays as it is.
    """
    from qagent_mlx.bench import measure, peers
    from qagent_mlx.bench.workloads import Agentic, Workload, model_folder
    from qagent_mlx.distributed import launcher, world

    if options.workload == "serving":
        from qagent_mlx.bench.serving import serving

        if options.against:
            raise click.UsageError("--against is for the standard workload alone", ctx)
        report = {**measure.environment(), **serving(shop_path, options.seconds, options.workers)}
        return Output(report, lambda: _draw_serving(report))
    model, steps, warmup = options.model, options.steps, options.warmup
    if options.workers > 1 and not world.is_worker():
        if options.against or options.workload != "standard":
            raise click.UsageError("--workers is for the standard workload alone", ctx)
        launcher.check_workers(options.workers, options.prompts)
        model_folder(model)  # once, for all
        ctx.exit(launcher.launch([*PROGRAM, *sys.argv[1:]], options.workers))
    work = Workload(options.prompts, options.prompt_tokens, options.group, options.new_tokens)
    if options.against:
        mend_blas = not options.own_blas
        report = peers.against(options.against, model, work, steps, warmup, mend_blas, note)
    elif options.workload == "agentic":
        agentic = Agentic(cases=options.prompts, group=options.group)
        report = measure.agentic(model, steps, agentic)
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
                f"{report['product_share']:.0%} of the step and "
                f"{report['update_product_share']:.0%} of the update's processor time at "
                f"{report['gemm_gflops']:.0f} GFLOP/s",
            ),
            *(
                (f"  {name}", f"{seconds:.2f} s  {seconds / report['seconds']:.0%}")
                for name, seconds in report["profile"].items()
            ),
        )


def _draw_serving(report: dict[str, Any]) -> None:
    """A row for each load, and where the time of an answer goes."""
    say(f"{report['machine']}; {report['device']}, {report['blas']}")
    version = f"@{report['version']}" if report["version"] else ""
    say(f"{report['policy']}{version}, {report['workers']} processes, {report['users']:,} users")
    loads = report["loads"]
    names = ("clients", "p50_ms", "p95_ms", "per_second", "fallbacks")
    print_table(
        ("clients", "p50 ms", "p95 ms", "answers/s", "fallbacks"),
        [tuple(f"{load[name]:,}" for name in names) for load in loads],
    )
    stages = sorted({stage for load in loads for stage in load["stages"]})
    print_table(
        ("ms of an answer", *(f"{load['clients']} clients" for load in loads)),
        [(stage, *(f"{load['stages'].get(stage, 0):.1f}" for load in loads)) for stage in stages],
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
