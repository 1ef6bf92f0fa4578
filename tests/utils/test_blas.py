import json
import os
import subprocess
import sys

import pytest

from qagent_mlx.utils import runtime
from qagent_mlx.utils.blas import (
    ARENAS,
    _find_openblas,
    _missing_instructions,
    blas_state,
    load_fast_blas,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux needs another BLAS")


def run(code, **env):
    """What a new process prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


STATE = (
    "import json; from qagent_mlx.utils.blas import blas_state as state; import mlx.core as mx\n"
    "product = (mx.ones((64, 64)) @ mx.ones((64, 64))).tolist()[0][0]\n"
    "print(json.dumps([state().name, state().path, state().problem, product]))"
)


@linux
def test_without_a_fast_blas_all_works_and_the_doctor_says_why():
    found = run(
        "import json; from qagent_mlx.utils.doctor import doctor; print(json.dumps(doctor()))",
        QAGENT_BLAS="off",
    )
    assert found["ok"] is False
    assert found["blas"] == "reference"
    assert any("QAGENT_BLAS=off" in warning for warning in found["warnings"])
    assert found["gemm_gflops"] > 0 and found["numpy_gemm_gflops"] > 0
    keys = {"device", "blas", "gemm_gflops", "numpy_gemm_gflops", "mlx", "mlx_lm", "ok"}
    assert keys <= found.keys()


@linux
def test_mlx_that_was_imported_first_is_noticed():
    name, path, problem, product = run("import mlx.core\n" + STATE)
    assert (name, path, product) == ("reference", None, 64)
    assert "import qagent_mlx first" in problem


@linux
@pytest.mark.skipif(_find_openblas() is None, reason="no OpenBLAS package is installed")
def test_the_installed_blas_is_used():
    name, path, problem, product = run(STATE)
    assert (name, problem, product) == ("OpenBLAS", None, 64)
    assert "openblas" in path.rpartition("/")[2]


class FixedBuild:
    """An OpenBLAS that was built for one kind of processor."""

    def __init__(self, config):
        self.openblas_get_config = lambda: config


@linux
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86 instruction sets")
@pytest.mark.parametrize(
    ("config", "flags", "missing"),
    [
        (b"OpenBLAS 0.3.31 NO_AFFINITY SKYLAKEX MAX_THREADS=4", "flags : fma avx avx2", "avx512f"),
        (b"OpenBLAS 0.3.31 NO_AFFINITY SKYLAKEX MAX_THREADS=4", "flags : avx2 avx512f", ""),
        (b"OpenBLAS 0.3.33 DYNAMIC_ARCH NO_AFFINITY SkylakeX", "flags : avx", ""),
        (b"OpenBLAS 0.3.31 HASWELL", "flags : avx", "avx2"),
    ],
)
def test_a_blas_built_for_other_processors_is_refused_before_it_can_crash(
    config, flags, missing, monkeypatch
):
    monkeypatch.setattr(runtime.Path, "read_text", lambda _self: flags)
    assert _missing_instructions(FixedBuild(config)) == missing


@linux
@pytest.mark.parametrize("wanted", ["/none/libfast.so", sys.executable])
def test_a_library_that_cannot_be_loaded_is_named_and_done_without(wanted):
    name, path, problem, product = run(STATE, QAGENT_BLAS=wanted)
    assert (name, path, product) == ("reference", None, 64)
    assert wanted.rpartition("/")[2] in problem


@linux
def test_a_library_that_is_no_blas_is_named(tmp_path):
    libm = next(
        (line.split()[-1] for line in open("/proc/self/maps") if "/libm" in line and ".so" in line),
        None,
    )
    if libm is None:
        pytest.skip("no libm to try")
    name, _, problem, product = run(STATE, QAGENT_BLAS=libm)
    assert (name, product) == ("reference", 64)
    assert "cblas_sgemm" in problem


@linux
@pytest.mark.parametrize(
    ("given", "threads"),
    [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, 2), ({"OMP_NUM_THREADS": "2"}, 2)],
)
def test_products_use_one_thread_unless_the_user_says_more(monkeypatch, given, threads):
    code = (
        "import json, qagent_mlx; from qagent_mlx.utils import blas;"
        "library = blas.blas_state().handles[-1];"
        "print(json.dumps([blas.blas_threads(), library.openblas_get_num_threads()]))"
    )
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(code, **given) == [threads, min(threads, os.cpu_count() or 1)]


@linux
def test_without_a_compiler_mlx_does_not_try_to_compile():
    code = "import json, os, qagent_mlx; print(json.dumps(os.environ.get('MLX_DISABLE_COMPILE')))"
    assert run(code, PATH="") == "1"


def test_preparing_twice_changes_nothing():
    state = blas_state()
    handles = list(state.handles)
    assert load_fast_blas() is state
    assert state.handles == handles


def test_importing_the_package_loads_no_model_library():
    code = "import json, sys, qagent_mlx; print(json.dumps(sorted(sys.modules)))"
    loaded = run(code)
    assert not {"mlx.core", "duckdb", "numpy", "transformers"} & set(loaded)


def test_memory_is_what_this_process_may_use():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < runtime.total_memory() <= physical


HEAPS = """
import ctypes, re, sys, tempfile, threading
import qagent_mlx
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
meet = threading.Barrier(24)
def work():
    libc.malloc(1000)
    meet.wait()
threads = [threading.Thread(target=work) for _ in range(24)]
[t.start() for t in threads]
[t.join() for t in threads]
with tempfile.NamedTemporaryFile("r") as file:
    libc.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(len(re.findall("<heap nr=", file.read())))
"""


@linux
def test_threads_share_a_few_heaps_unless_the_user_says_how_many():
    def heaps(**more):
        found = subprocess.run(
            [sys.executable, "-c", HEAPS],
            capture_output=True,
            text=True,
            check=True,
            env={**{k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}, **more},
        )
        return int(found.stdout)

    assert heaps() <= ARENAS
    assert heaps(MALLOC_ARENA_MAX="1") == 1
    assert heaps(MALLOC_ARENA_MAX="64") > ARENAS
