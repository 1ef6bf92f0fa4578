import json
import os
import re
import subprocess
import sys

import pytest

from qagent_mlx.utils import runtime
from qagent_mlx.utils.blas import _find_openblas, _missing_instructions, load_fast_blas
from qagent_mlx.utils.runtime import ARENAS, configure
from qagent_mlx.utils.settings import SettingError

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
    "import json, qagent_mlx; qagent_mlx.configure(); import mlx.core as mx\n"
    "from qagent_mlx.utils.blas import load_fast_blas\n"
    "blas = load_fast_blas()\n"
    "product = (mx.ones((64, 64)) @ mx.ones((64, 64))).tolist()[0][0]\n"
    "print(json.dumps([blas.name, blas.path, blas.problem, product]))"
)


@linux
def test_without_a_fast_blas_all_works_and_the_doctor_says_why():
    found = run(
        "import json; from qagent_mlx.utils.doctor import examine_environment; print(json.dumps(examine_environment().to_dict()))",
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
    assert "qagent_mlx.configure() first" in problem


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
        (
            line.split()[-1]
            for line in open("/proc/self/maps")
            if "/libm.so" in line or "/libm-" in line
        ),
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
@pytest.mark.parametrize("before", ["", "import qagent_mlx.models; "])
def test_products_use_one_thread_unless_the_user_says_more(monkeypatch, given, threads, before):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    count = min(threads, os.cpu_count() or 1)
    assert run(before + THREADS.format(""), **given) == [threads, count]


THREADS = (
    "import json, qagent_mlx; qagent_mlx.configure({}); from qagent_mlx.utils import blas;"
    "library = blas.load_fast_blas().library;"
    "print(json.dumps([blas.blas_threads(), library.openblas_get_num_threads()]))"
)


@linux
def test_configure_sets_the_number_of_threads():
    assert run(THREADS.format("threads=2"), OPENBLAS_NUM_THREADS="1")[0] == 2
    assert run("import qagent_mlx.models; " + THREADS.format(1))[1] == 1
    with pytest.raises(SettingError, match="threads must be at least 1"):
        configure(threads=0)


@linux
def test_without_a_compiler_mlx_does_not_try_to_compile():
    code = (
        "import json, os, qagent_mlx; qagent_mlx.configure();"
        "print(json.dumps(os.environ.get('MLX_DISABLE_COMPILE')))"
    )
    assert run(code, PATH="") == "1"


FUSED = """
import json, qagent_mlx
qagent_mlx.configure()
import mlx.core as mx
from qagent_mlx.utils.doctor import examine_environment
value = mx.compile(lambda x: mx.sin(x) * x + 2)(mx.arange(3.0)).tolist()
report = examine_environment()
print(json.dumps([value, report.ok, [w for w in report.warnings if "fused" in w]]))
"""


@linux
@pytest.mark.parametrize("trouble", ["missing", "a file", "no headers"])
def test_where_nothing_can_be_compiled_all_is_computed_and_doctor_names_the_remedy(
    trouble, tmp_path
):
    place, fake = tmp_path / "place", tmp_path / "bin"
    changes = {"TMPDIR": str(place)}
    if trouble == "a file":
        place.write_text("")
    if trouble == "no headers":
        place.mkdir()
        fake.mkdir()
        (fake / "g++").write_text(
            "#!/bin/sh\necho 'fatal error: cmath: No such file' >&2\nexit 1\n"
        )
        (fake / "g++").chmod(0o755)
        changes["PATH"] = f"{fake}:{os.environ['PATH']}"
    value, ok, warnings = run(FUSED, **changes)
    assert value == pytest.approx([2.0, 2.8414710, 3.8185949])
    words = "fatal error: cmath.*apt-get install" if trouble == "no headers" else "export TMPDIR="
    assert not ok and len(warnings) == 1 and re.search(words, warnings[0])


@linux
def test_a_compiler_that_works_is_used(tmp_path):
    _, _, warnings = run(FUSED, TMPDIR=str(tmp_path))
    assert warnings == [] and list(tmp_path.glob("mlx/*/cpu/*.so"))


def test_configuring_twice_changes_nothing():
    blas, environment = load_fast_blas(), dict(os.environ)
    configure()
    assert load_fast_blas() is blas
    assert dict(os.environ) == environment


def test_memory_is_what_this_process_may_use():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < runtime.total_memory() <= physical


HEAPS = """
import ctypes, re, sys, tempfile, threading
import qagent_mlx
if sys.argv[1:] == ["configure"]:
    qagent_mlx.configure()
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
    def heaps(*arguments, **more):
        found = subprocess.run(
            [sys.executable, "-c", HEAPS, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**{k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}, **more},
        )
        return int(found.stdout)

    assert heaps("configure") <= ARENAS
    assert heaps() > ARENAS  # importing the package sets nothing
    assert heaps("configure", MALLOC_ARENA_MAX="1") == 1
    assert heaps("configure", MALLOC_ARENA_MAX="64") > ARENAS
