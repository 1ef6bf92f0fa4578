"""A fast BLAS for MLX on Linux CPUs, loaded before MLX.

MLX's Linux wheel links the reference BLAS, whose matrix products are one to two orders
of magnitude slower than OpenBLAS. The dynamic linker resolves ``cblas_*`` in the global
scope first, so an OpenBLAS that is loaded there *before* ``mlx.core`` takes over every
product with no rebuild. `load_fast_blas` does that. Each package that imports MLX calls it
in its ``__init__``.

macOS needs none of it: MLX uses Metal and Accelerate there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

# Dispatches by processor at run time; cmeel's x86 build runs on AVX-512 machines only.
BLAS_PACKAGE = "ngsolve-openblas" if platform.machine() == "x86_64" else "cmeel-openblas"
THREAD_ENVS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # OpenBLAS reads them in this order
BLAS_ENV = "QAGENT_BLAS"  # "off", or the path of a library that exports cblas_sgemm


@dataclass(frozen=True, slots=True)
class Blas:
    """The BLAS that MLX's matrix products use."""

    name: str = "reference"  # or OpenBLAS, Accelerate, or a library's file name
    path: str | None = None  # the library that was loaded; None where MLX's own answers
    problem: str | None = None  # why no fast BLAS was loaded, where one is needed
    library: Any = field(default=None, repr=False, compare=False)


@cache
def load_fast_blas() -> Blas:
    """Load a fast BLAS into the global symbol scope, once, and say which one it is.

    Must run before ``mlx.core`` is imported: afterwards MLX's symbols are bound. Never raises;
    what went wrong is the result's ``problem``, which ``qagent doctor`` shows.
    """
    if sys.platform == "darwin":
        return Blas("Accelerate")
    if sys.platform != "linux":
        return Blas(problem=f"no fast BLAS is known for {sys.platform}")
    wanted = os.environ.get(BLAS_ENV, "")
    if wanted == "off":
        return Blas(problem=f"switched off by {BLAS_ENV}=off")
    if "mlx.core" in sys.modules:
        return Blas(problem="mlx was imported before; call qagent_mlx.configure() first")
    path = Path(wanted) if wanted else _find_openblas()
    if path is None:
        return Blas(problem=f"{BLAS_PACKAGE} is not installed; pip install {BLAS_PACKAGE}")
    try:
        library = _load_global(path)
    except (OSError, AttributeError) as error:
        return Blas(problem=f"{path.name} could not be loaded: {error}")
    return Blas("OpenBLAS" if "openblas" in path.name else path.name, str(path), None, library)


def _find_openblas() -> Path | None:
    """The library of the installed OpenBLAS package."""
    spec = importlib.util.find_spec("ngsolve_openblas")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("libopenblas*.so*")):
            return path
    spec = importlib.util.find_spec("cmeel")
    roots = [Path(p).parent for p in (spec.submodule_search_locations or [])] if spec else []
    roots += [Path(p) for p in sys.path if p.endswith("-packages")]
    paths = (root / "cmeel.prefix" / "lib" / "libopenblas.so" for root in roots)
    return next((path for path in paths if path.exists()), None)


def _load_global(path: Path) -> ctypes.CDLL:
    """Load a BLAS so that libraries that are loaded later use its symbols."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        # A machine without a Fortran compiler has no libgfortran.so.5 of its own, but
        # MLX's CPU wheel carries one under a hashed name.
        if "libgfortran" not in str(error):
            raise
        _lend_gfortran(error)
        library = ctypes.CDLL(str(path))
    library.cblas_sgemm  # noqa: B018  (AttributeError here means that it is no BLAS)
    missing = _missing_instructions(library)
    if missing:
        raise OSError(f"it was built for processors with {missing}, which this one lacks")
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


# The instruction sets of OpenBLAS builds without runtime dispatch, by their processor.
_INSTRUCTIONS = {
    "SKYLAKEX": "avx512f",
    "COOPERLAKE": "avx512f",
    "SAPPHIRERAPIDS": "avx512f",
    "HASWELL": "avx2",
    "ZEN": "avx2",
    "SANDYBRIDGE": "avx",
}


def _missing_instructions(library: ctypes.CDLL) -> str:
    """The instruction set that a fixed OpenBLAS build needs and this processor lacks.

    Such a build ends the process with an illegal instruction at its first product.
    """
    try:
        library.openblas_get_config.restype = ctypes.c_char_p
        config = library.openblas_get_config().decode(errors="replace").upper().split()
        flags = Path("/proc/cpuinfo").read_text().split()
    except (AttributeError, OSError):
        return ""
    if "DYNAMIC_ARCH" in config or platform.machine() != "x86_64":
        return ""
    needed = (_INSTRUCTIONS[word] for word in config if word in _INSTRUCTIONS)
    return next((instructions for instructions in needed if instructions not in flags), "")


def _lend_gfortran(error: OSError) -> None:
    """Give the linker the MLX wheel's libgfortran under the name that OpenBLAS asks for.

    The loader matches by the SONAME inside the file, so a copy in memory gets its
    (longer, hashed) SONAME overwritten with ``libgfortran.so.5``. Nothing on disk changes.
    """
    spec = importlib.util.find_spec("mlx")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        libraries = Path(folder).parent / "mlx_cpu.libs"
        path = next(iter(sorted(libraries.glob("libgfortran*.so.5*"))), None)
        if path is None:
            continue
        for helper in sorted(libraries.glob("libquadmath*.so*")):
            ctypes.CDLL(str(helper), mode=ctypes.RTLD_GLOBAL)
        soname, wanted = path.name.encode() + b"\0", b"libgfortran.so.5\0"
        image = path.read_bytes()
        if image.count(soname) != 1 or len(wanted) > len(soname):
            continue
        descriptor = os.memfd_create("libgfortran.so.5")
        with os.fdopen(descriptor, "wb") as file:
            file.write(image.replace(soname, wanted.ljust(len(soname), b"\0")))
            file.flush()
            ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_GLOBAL)
        return
    raise OSError(f"{error} (install libgfortran5, or mlx[cpu] with its bundled copy)")


def blas_threads() -> int:
    """The number of threads that a matrix product on the CPU may use."""
    for name in THREAD_ENVS:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def set_blas_threads(threads: int) -> None:
    """Let OpenBLAS use this many threads, where it is what MLX's products use."""
    library = load_fast_blas().library
    if hasattr(library, "openblas_set_num_threads"):
        library.openblas_set_num_threads(threads)


@contextmanager
def one_blas_thread(when: bool = True) -> Iterator[None]:
    """Products inside the block use one thread, where OpenBLAS is what answers.

    Thin products gain nothing from a second thread, and on a busy machine its waiting costs
    many times the product.
    """
    library = load_fast_blas().library
    if not when or not hasattr(library, "openblas_set_num_threads"):
        yield
        return
    before = library.openblas_get_num_threads()
    library.openblas_set_num_threads(1)
    try:
        yield
    finally:
        library.openblas_set_num_threads(before)
