"""``qagent doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import print_table, say, waiting
from .options import Output, json_option

if TYPE_CHECKING:
    from qagent_mlx.utils.doctor import EnvironmentReport


@click.command()
@json_option
def doctor() -> Output:
    """Check the environment and measure the speed of matrix products."""
    from qagent_mlx.utils.doctor import examine_environment

    with waiting("measuring"):
        report = examine_environment()
    return Output(report.to_dict(), lambda: _draw(report))


def _draw(report: EnvironmentReport) -> None:
    names = ("machine", "python", "device", "blas", "blas_path", "blas_threads")
    rows = [
        *((name.replace("_", " "), getattr(report, name) or "-") for name in names),
        ("matrix products", f"{report.gemm_gflops:.1f} GFLOP/s"),
        ("the same in numpy", f"{report.numpy_gemm_gflops:.1f} GFLOP/s"),
        ("compiler", report.compiler or "-"),
        *((package, version or "not installed") for package, version in report.versions.items()),
    ]
    print_table(("", ""), rows)
    for warning in report.warnings:
        say(f"warning: {warning}", "yellow")
    say("all is well" if report.ok else "works, but see the warnings")
