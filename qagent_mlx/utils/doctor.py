"""Report on the environment: device, BLAS, speed of matrix products, versions."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .blas import blas_threads, load_fast_blas
from .runtime import compile_trouble, device_name, total_memory


@dataclass(frozen=True, slots=True)
class EnvironmentReport:
    """What ``qagent doctor`` shows; speeds are in GFLOP/s.

    ``ok`` is false when the environment works but is far slower than it could be, or
    when a needed package is missing; ``warnings`` says why.
    """

    device: str
    machine: str
    python: str
    blas: str
    blas_path: str | None
    blas_threads: int
    gemm_gflops: float
    numpy_gemm_gflops: float
    compiler: str | None
    mlx: str | None
    mlx_lm: str | None
    versions: dict[str, str | None]
    warnings: list[str]
    ok: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def examine_environment() -> EnvironmentReport:
    """Look for missing packages and slow settings, and measure matrix products."""
    from importlib.metadata import PackageNotFoundError, version

    warnings: list[str] = []
    versions: dict[str, str | None] = {}
    for package in ("qagent-mlx", "mlx", "mlx-lm", "duckdb", "usearch", "scipy", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
            warnings.append(f"{package} is not installed; run: pip install {package}")
    mlx_speed, numpy_speed = gemm_gflops()
    device, blas, compiler = device_name(), load_fast_blas(), shutil.which("g++")
    linux_cpu = device == "cpu" and sys.platform == "linux"
    if blas.problem:
        warnings.append(f"matrix products use MLX's reference BLAS: {blas.problem}")
    elif linux_cpu and mlx_speed < 0.15 * numpy_speed:
        warnings.append(
            f"{blas.name} was loaded but MLX runs at {mlx_speed:.0f} GFLOP/s against numpy's "
            f"{numpy_speed:.0f}; call qagent_mlx.configure() before mlx is imported"
        )
    if linux_cpu and (trouble := compile_trouble()):
        warnings.append(trouble)
    return EnvironmentReport(
        device=device,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{total_memory() / 2**30:.0f} GiB",
        python=platform.python_version(),
        blas=blas.name,
        blas_path=blas.path,
        blas_threads=blas_threads(),
        gemm_gflops=round(mlx_speed, 1),
        numpy_gemm_gflops=round(numpy_speed, 1),
        compiler=compiler,
        mlx=versions["mlx"],
        mlx_lm=versions["mlx-lm"],
        versions=versions,
        warnings=warnings,
        ok=not warnings,
    )


def gemm_gflops(
    seconds: float = 0.3, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Measured GFLOP/s of MLX and of numpy for a 512x576 by 576x1536 float32 product.

    Seconds are those of ``clock``; `time.process_time` does not mind a busy machine.
    """
    load_fast_blas()
    import mlx.core as mx
    import numpy as np

    n, k, m = 512, 576, 1536
    a, b = mx.random.normal((n, k)), mx.random.normal((k, m))
    mx.eval(a, b)
    left, right = np.array(a), np.array(b)
    operations = 2e-9 * n * k * m
    return (
        operations / _fastest(lambda: mx.eval(a @ b), seconds, clock),
        operations / _fastest(lambda: left @ right, seconds, clock),
    )


def _fastest(call: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of many calls."""
    call()
    fastest, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = clock()
        call()
        fastest = min(fastest, clock() - start)
    return fastest
