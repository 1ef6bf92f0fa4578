"""Importing the package changes nothing in its host process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import qagent_mlx

CHANGES = """
import ctypes, json, os, sys, threading

def state():
    return {{
        "environment": dict(os.environ),
        "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))],
        "arenas": arenas(),
        "finders": [repr(finder) for finder in sys.meta_path],
    }}

def arenas():
    libc = ctypes.CDLL(None)
    buffer, size = ctypes.c_void_p(), ctypes.c_size_t()
    libc.open_memstream.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(buffer), ctypes.byref(size)))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    return ctypes.string_at(buffer.value).count(b"<heap nr=")

before = state()
{imports}
after = state()
heavy = ("mlx", "mlx.core", "mlx_lm", "numpy", "duckdb", "transformers", "msgspec", "click")
print(json.dumps([[k for k in before if before[k] != after[k]],
                  [name for name in heavy if name in sys.modules],
                  type(sys.modules.get("mlx_lm")).__name__]))
"""


def changes(imports):
    """What imports change in a new process: parts of its state, heavy modules, mlx_lm's type."""
    done = subprocess.run(
        [sys.executable, "-c", CHANGES.format(imports=imports)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and glibc's malloc")
def test_importing_the_package_changes_nothing():
    assert changes("import qagent_mlx") == [[], [], "NoneType"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and glibc's malloc")
@pytest.mark.parametrize("module", ["protocol.config", "policy.lora"])
def test_settings_load_no_computing_library(module):
    _, heavy, _ = changes(f"import qagent_mlx.{module}")
    assert set(heavy) <= {"msgspec"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and glibc's malloc")
def test_rooms_that_compute_leave_the_environment_and_mlx_lm_alone():
    # The environment of this test holds what mlx-lm itself sets.
    changed, heavy, kind = changes("import qagent_mlx.policy.policy")
    assert "environment" not in changed
    assert "mlx.core" in heavy and kind == "module"


def test_the_package_lists_its_public_names():
    names = dir(qagent_mlx)
    assert names == sorted(qagent_mlx.__all__)
    assert {"configure", "Shop", "recommend", "train_grpo", "QAgentError"} <= set(names)
    for name in names:
        assert getattr(qagent_mlx, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = qagent_mlx.nothing
