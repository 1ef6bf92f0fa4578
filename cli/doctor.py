"""``qagent doctor``."""

from __future__ import annotations

from typing import Any

import click

from .console import print_table, say, waiting
from .options import Output, json_option


@click.command()
@json_option
def doctor() -> Output:
    """Check the environment and measure the speed of matrix products."""
    from qagent_mlx.utils.doctor import doctor as examine

    with waiting("measuring"):
        report = examine()
    return Output(report, lambda: _draw(report))


def _draw(report: dict[str, Any]) -> None:
    names = ("machine", "python", "device", "blas", "blas_path", "blas_threads")
    rows = [
        *((name.replace("_", " "), report[name] or "-") for name in names),
        ("matrix products", f"{report['gemm_gflops']:.1f} GFLOP/s"),
        ("the same in numpy", f"{report['numpy_gemm_gflops']:.1f} GFLOP/s"),
        ("compiler", report["compiler"] or "-"),
        *((package, version or "not installed") for package, version in report["versions"].items()),
    ]
    print_table(("", ""), rows)
    for warning in report["warnings"]:
        say(f"warning: {warning}", "yellow")
    say("all is well" if report["ok"] else "works, but see the warnings")
