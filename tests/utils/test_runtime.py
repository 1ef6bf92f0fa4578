"""A process ends with its own exit code, also after a thread computed, and keeps what it needs."""

import subprocess
import sys

import pytest

from qagent_mlx.models.download import sample_folder
from qagent_mlx.utils import runtime

PROGRAM = """
import qagent_mlx
qagent_mlx.configure()
import threading
from pathlib import Path
{imports}
thread = threading.Thread(target=lambda: {work})
thread.start()
thread.join()
raise SystemExit(3)
"""


def exit_codes(work, imports, times):
    program = PROGRAM.format(work=work, imports=imports)
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        for _ in range(times)
    ]
    assert not any(run.stderr for run in runs), runs
    return {run.returncode for run in runs}


def test_a_thread_that_used_mlx_and_ended_does_not_abort_the_process():
    imports = "import mlx.core as mx\nfrom qagent_mlx.utils.runtime import release_mlx_with_thread"
    # Without the release four of five such processes abort.
    assert exit_codes("(release_mlx_with_thread(), mx.random.seed(0))", imports, 6) == {3}


def test_a_thread_that_loaded_a_policy_and_ended_does_not_abort_the_process():
    imports = "from qagent_mlx.policy.files import load_policy"
    assert exit_codes(f"load_policy(Path({str(sample_folder())!r}))", imports, 3) == {3}


def test_only_a_large_process_gives_free_memory_back(monkeypatch):
    """A small one would only fetch its pages again, in every step of a training."""
    trimmed = []
    monkeypatch.setattr(runtime, "_malloc_trim", lambda: trimmed.append)
    for held in (runtime.RELEASED_FROM - 1, runtime.RELEASED_FROM):
        monkeypatch.setattr(runtime, "resident_memory", lambda held=held: held)
        runtime.release_memory()
    assert trimmed == [0]


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_memory_that_a_process_holds_grows_by_what_it_takes():
    before = runtime.resident_memory()
    taken = b"1" * (32 << 20)
    assert 24 << 20 < runtime.resident_memory() - before < 48 << 20
    del taken


@pytest.mark.skipif(sys.platform != "linux", reason="MLX compiles CPU kernels there")
def test_mlx_loads_no_library_that_others_could_have_put_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    trouble = runtime.compile_trouble.__wrapped__
    assert "written by others" not in trouble()
    assert (tmp_path / "mlx").stat().st_mode & 0o077 == 0
    kernels = tmp_path / "mlx" / "0.0" / "cpu"
    kernels.mkdir(parents=True)
    assert "written by others" not in trouble()
    for place in (kernels, kernels.parent, tmp_path / "mlx"):
        place.chmod(0o777)
        assert "can be written by others; set TMPDIR" in trouble()
        place.chmod(0o755)
