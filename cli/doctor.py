"""``qagent doctor``."""

from __future__ import annotations

from typing import Any

import click

from .console import out, plain_table, safe, say, waiting
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
    table = plain_table("", "")
    for name in ("machine", "python", "device", "blas", "blas_path", "blas_threads"):
        table.add_row(name.replace("_", " "), safe(report[name] or "-"))
    table.add_row("matrix products", f"{report['gemm_gflops']:.1f} GFLOP/s")
    table.add_row("the same in numpy", f"{report['numpy_gemm_gflops']:.1f} GFLOP/s")
    table.add_row("compiler", safe(report["compiler"] or "-"))
    for package, version in report["versions"].items():
        table.add_row(package, safe(version or "not installed"))
    out().print(table)
    for warning in report["warnings"]:
        say(f"warning: {warning}", "yellow")
    say("all is well" if report["ok"] else "works, but see the warnings")
