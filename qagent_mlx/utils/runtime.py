"""The process: how it computes, its device, and its memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from .blas import THREAD_ENVS, load_fast_blas, set_blas_threads
from .lazy_imports import defer_imports
from .settings import SettingError

ARENAS = 4  # heaps of glibc's malloc, at most; by itself it would open eight for each core
RELEASED_FROM = 1 << 30  # bytes that a process holds when it begins to return free memory
_M_ARENA_MAX = -8  # of malloc.h


def configure(threads: int | None = None) -> None:
    """Prepare this process for computing with MLX and numpy on a CPU.

    Call it once, before numpy, MLX and mlx-lm are imported. Importing `qagent_mlx` changes
    nothing in its host process. This function loads a fast BLAS and sets what holds for the whole
    process, on Linux: the number of BLAS threads, a bound on the heaps of glibc's malloc, and
    ``MLX_DISABLE_COMPILE`` where MLX could not compile (see `compile_trouble`). On every system
    it defers the import of what mlx-lm needs for other models than a shop's own (see
    `lazy_imports`).

    ``threads`` of a matrix product are by default what ``OPENBLAS_NUM_THREADS`` or
    ``OMP_NUM_THREADS`` says, else one: a second thread gains a tenth on a quiet machine, costs up
    to eight times on a busy one, and rounds sums differently.
    """
    if threads is not None and threads < 1:
        raise SettingError("threads", f"must be at least 1, not {threads}")
    if sys.platform == "linux":
        if threads is None and not any(name in os.environ for name in THREAD_ENVS):
            threads = 1
        if threads is not None:
            os.environ[THREAD_ENVS[0]] = str(threads)
            set_blas_threads(threads)
        _bound_arenas()
        # Texts are tokenised a few at a time: threads of the tokenizer would only wait.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if "MLX_DISABLE_COMPILE" not in os.environ and compile_trouble():
            os.environ["MLX_DISABLE_COMPILE"] = "1"
    load_fast_blas()
    defer_imports()


@cache
def compile_trouble() -> str:
    """Why MLX cannot compile its fused CPU kernels, with the remedy; empty where it can.

    MLX runs g++ when a kernel is first used, in the folder for temporary files; what fails there
    would end the process's work, though all of it can be computed without, only slower.
    """
    names = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # as std::filesystem looks for it
    name = next((n for n in names if os.environ.get(n)), "")
    folder = Path(os.environ[name] if name else "/tmp")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        where = f"{name} is {folder}, which" if name else f"{folder}"
        other = "/tmp" if name else "/var/tmp"
        return (
            f"MLX's fused CPU kernels are off (slower): {where} is no folder that can be written "
            f"to; set TMPDIR to one that can, such as: export TMPDIR={other}"
        )
    if _others_may_write(folder / "mlx"):
        return (
            f"MLX's fused CPU kernels are off (slower): {folder}/mlx, from which MLX loads what it "
            "compiled, can be written by others; set TMPDIR to a folder of your own"
        )
    compiler = shutil.which("g++")
    if compiler is None:
        return "MLX's fused CPU kernels are off (slower): there is no g++; install it"
    if any(folder.glob("mlx/*/cpu/*.so")):  # which it compiled before
        return ""
    program = "#include <cmath>\n#include <complex>\n#include <cstdint>\n"
    command = [compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    try:
        subprocess.run(command, input=program, text=True, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines() or ["no message"]
        return (
            f"MLX's fused CPU kernels are off (slower): {compiler} compiles no C++ "
            f"({said[0][:200]}); install the standard library's headers (apt-get install g++)"
        )
    return ""


def _others_may_write(folder: Path) -> bool:
    """Whether somebody else could put code into a folder, or into one of those in it.

    One that is not there is made for this user alone: MLX would load a library that another user
    of the machine had put in its place.
    """
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        for place in (folder, *folder.glob("*"), *folder.glob("*/cpu")):
            status = place.lstat()
            is_shared = status.st_mode & 0o020 and status.st_gid != os.getgid()
            if status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o002 or is_shared:
                return True
    except OSError:
        return True
    return False


def _bound_arenas() -> None:
    """Let threads share a few heaps of glibc's malloc.

    By default a thread gets a heap of its own while there are fewer than eight for each core,
    and each heap keeps what its largest work took. A process that starts threads now and then
    (DuckDB's with each database that is opened, MLX's with each thread that computes) would
    grow until all heaps are that large. A number in the environment takes precedence.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    if "malloc.arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, min(ARENAS, max(2, os.cpu_count() or 1)))


def release_memory() -> None:
    """Return memory that is free inside of this process to the system.

    MLX keeps freed buffers for later, and glibc keeps what lies between arrays still in use.
    Training's phases (decoding, update) want buffers of other sizes, so that without this a
    process grows to the sum of what each takes. A small process keeps what it has: to get its pages
    again would cost it a tenth of its time.
    """
    if resident_memory() < RELEASED_FROM:
        return
    if "mlx.core" in sys.modules:
        sys.modules["mlx.core"].clear_cache()
    if trim := _malloc_trim():
        trim(0)


def resident_memory() -> int:
    """Bytes of memory that this process holds; infinite where no file says so."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return sys.maxsize
    return pages * os.sysconf("SC_PAGE_SIZE")


_thread = threading.local()


class _MlxOfThread:
    """Releases what MLX keeps for a thread when the thread's Python part ends."""

    def __init__(self) -> None:
        self._ident = threading.get_ident()

    def __del__(self) -> None:
        # At the interpreter's end the main thread drops what daemon threads hold.
        if threading.get_ident() == self._ident and not sys.is_finalizing():
            sys.modules["mlx.core"].clear_streams()


def release_mlx_with_thread() -> None:
    """Release MLX's streams and random state of the calling thread when that thread ends.

    Functions that load or create models call it. MLX keeps the random state of ``mx.random`` in a
    thread-local Python list, whose C++ destructor (`PyKeySequence` in python/src/random.cpp) takes
    the GIL. It runs after `Thread.join` has returned; if the interpreter is ending by then, Python
    ends the thread inside of the destructor and the process aborts: "terminate called without an
    active exception", exit 134. MLX asks programs to call ``mx.clear_streams()`` at the end of each
    thread (ml-explore/mlx pull request 4110). This can go when MLX's destructors do without the
    GIL.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main and not hasattr(_thread, "mlx"):
        _thread.mlx = _MlxOfThread()


@cache
def _malloc_trim() -> Any:
    """The C library's ``malloc_trim``; None where it has none, as on macOS."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def device_name() -> str:
    """The name of MLX's default device: ``gpu`` (Metal or CUDA) or ``cpu``."""
    load_fast_blas()
    import mlx.core as mx

    return "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"


def total_memory() -> int:
    """Bytes of memory that this process may use (the machine's, or its control group's)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total
