"""The process: its device, the memory it may use, and memory that it gives back."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any


def release_memory() -> None:
    """Return memory that is free inside of this process to the system.

    MLX keeps freed buffers for later, and glibc keeps what lies between arrays still in use.
    Training's phases (decoding, update) want buffers of other sizes, so that without this a
    process grows to the sum of what each takes.
    """
    import mlx.core as mx

    mx.clear_cache()
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Any:
    """glibc's function of that name; None where the C library has none."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def device_name() -> str:
    """``"gpu"`` where MLX computes on Metal or CUDA, else ``"cpu"``."""
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
