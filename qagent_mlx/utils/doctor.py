"""Report on the environment: device, BLAS, matrix-product speed, versions."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from typing import Any

from .blas import blas_threads, load_fast_blas
from .runtime import device_name, total_memory


def gemm_gflops(seconds: float = 0.3) -> tuple[float, float]:
    """Measured GFLOP/s of MLX and of numpy for a 512x576 by 576x1536 float32 product."""
    load_fast_blas()
    import mlx.core as mx
    import numpy as np

    n, k, m = 512, 576, 1536
    a, b = mx.random.normal((n, k)), mx.random.normal((k, m))
    mx.eval(a, b)
    left, right = np.array(a), np.array(b)
    return (
        2e-9 * n * k * m / _best(lambda: mx.eval(a @ b), seconds),
        2e-9 * n * k * m / _best(lambda: left @ right, seconds),
    )


def _best(call: Any, seconds: float) -> float:
    call()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def doctor() -> dict[str, Any]:
    """What ``qagent doctor`` reports: device, BLAS and its measured speed, versions.

    ``ok`` is false when the environment works but is far slower than it could be, or
    when a needed package is missing; ``warnings`` says why.
    """
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
    device, blas = device_name(), load_fast_blas()
    if blas.problem:
        warnings.append(f"matrix products use MLX's reference BLAS: {blas.problem}")
    elif device == "cpu" and sys.platform == "linux" and mlx_speed < 0.15 * numpy_speed:
        warnings.append(
            f"{blas.name} was loaded but MLX runs at {mlx_speed:.0f} GFLOP/s against numpy's "
            f"{numpy_speed:.0f}; call qagent_mlx.configure() before mlx is imported"
        )
    compiler = shutil.which("g++")
    if device == "cpu" and sys.platform == "linux" and compiler is None:
        warnings.append("no g++: MLX's fused CPU kernels are off (slower); install g++")
    return {
        "device": device,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{total_memory() / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "blas": blas.name,
        "blas_path": blas.path,
        "blas_threads": blas_threads(),
        "gemm_gflops": round(mlx_speed, 1),
        "numpy_gemm_gflops": round(numpy_speed, 1),
        "compiler": compiler,
        "mlx": versions["mlx"],
        "mlx_lm": versions["mlx-lm"],
        "versions": versions,
        "warnings": warnings,
        "ok": not warnings,
    }
