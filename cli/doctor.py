"""``qagent doctor``."""

from __future__ import annotations

import click

from .common import emit, json_option, out, plain_table, shown, waiting


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check the environment and measure the speed of matrix products."""
    from qagent_mlx.utils.doctor import doctor as examine

    with waiting("measuring"):
        report = examine()
    if as_json:
        emit(report)
        return
    table = plain_table("", "")
    table.show_header = False
    for name in ("machine", "python", "device", "blas", "blas_path", "blas_threads"):
        table.add_row(name.replace("_", " "), shown(str(report[name] or "-")))
    table.add_row("matrix products", f"{report['gemm_gflops']:.1f} GFLOP/s")
    table.add_row("the same in numpy", f"{report['numpy_gemm_gflops']:.1f} GFLOP/s")
    table.add_row("compiler", shown(report["compiler"] or "-"))
    for package, version in report["versions"].items():
        table.add_row(package, shown(version or "not installed"))
    console = out()
    console.print(table)
    for warning in report["warnings"]:
        console.print(shown(f"warning: {warning}", "yellow"))
    console.print("all is well" if report["ok"] else "works, but see the warnings")
