"""Other trainers, each in an environment of its own, beside ours on the same prompts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import QAgentError
from ..models.download import cache_folder
from ..utils import blas
from ..utils.atomic_files import read_json, write_json
from ..utils.runtime import ARENAS
from ..utils.settings import SettingError
from .measure import peak_memory
from .workloads import Standard, Step, Workload, model_folder, open_policy, prompts, vocabulary

MLX = "mlx[cpu]" if sys.platform == "linux" else "mlx"
PACKAGES = {
    "mlx-lm-lora": ("mlx-lm-lora==5.10.2", MLX),
    # Its wheel asks for these on macOS only, and reads caches and random states as these have them.
    "mlxrl": ("inductive-mlxrl==0.2.0", "mlx-lm==0.31.3", f"{MLX}==0.31.2"),
    # The plain torch package of Linux brings a CUDA build of several gigabytes.
    "trl": ("torch==2.13.0", "trl==1.16.0", "peft"),
}


def installed(name: str, note: Callable[[str], None]) -> Path:
    """The Python of a peer's environment, which is made at the first call."""
    if name not in PACKAGES:
        raise SettingError("against", f"cannot be {name}; choose one of {', '.join(PACKAGES)}")
    folder = cache_folder() / "peers" / name
    python, ready = folder / "bin" / "python", folder / "ready.json"
    wanted = list(PACKAGES[name])
    if ready.exists() and read_json(ready, f"the environment {folder}") == wanted:
        return python
    note(f"installing {' '.join(wanted)} in {folder}, once")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *wanted],
    ):
        process = subprocess.run(  # ``-m`` looks into the folder that it is started in
            command, cwd=folder.parent, capture_output=True, text=True, check=False
        )
        if process.returncode:
            message = (process.stderr.strip() or "no message").splitlines()[-1]
            raise QAgentError(
                f"{name} cannot be installed ({message}); check the network and the disk, then run "
                "qagent bench again"
            )
    write_json(ready, wanted)
    return python


class Peer:
    """A peer's trainer in its own process, which takes one step when it is asked to."""

    def __init__(
        self,
        name: str,
        python: Path,
        folder: Path,
        work: Workload,
        all_prompts: list[list[list[int]]],
        fast_blas: bool,
    ) -> None:
        self.name = name
        script = Path(__file__).with_name(f"peer_{name.replace('-', '_')}.py")
        settings = {
            **asdict(work),
            "folder": str(folder),
            "blas_module": blas.__file__,
            "all_prompts": all_prompts if name == "trl" else [],
        }
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("PYTHONPATH", None)
        path = blas.load_fast_blas().path
        environment[blas.BLAS_ENV] = path if fast_blas and path else "off"
        environment.setdefault("MALLOC_ARENA_MAX", str(ARENAS))
        log = cache_folder() / "peers" / f"{name}.log"
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [str(python), str(script), json.dumps(settings)],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.ready = self._answer()

    def step(self, ids: list[list[int]]) -> dict[str, float]:
        """One step on these prompts: ``rollout`` and ``update`` seconds, ``peak_memory``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(ids) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise QAgentError(f"{self.name} ended; it said why in {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._log.close()


def against(
    name: str,
    model: str,
    work: Workload,
    steps: int,
    warmup: int = 1,
    fast_blas: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Our steps and those of a peer (`PACKAGES`) in turn, from the same weights and prompts.

    The ``warmup`` pairs of steps do not count. ``fast_blas`` gives an MLX peer our BLAS in place
    of the one that it comes with; ``note`` is told what is going on.
    """
    python = installed(name, note)
    folder = model_folder(model)
    ours = Standard(open_policy(folder, work), work)
    known = vocabulary(ours.policy)
    all_prompts = [prompts(work, known, number) for number in range(warmup + steps)]
    peer = Peer(name, python, folder, work, all_prompts, fast_blas)
    pairs: list[dict[str, float]] = []
    memory = 0.0
    try:
        for number, ids in enumerate(all_prompts):
            own, other = ours.step(number), peer.step(ids)
            memory = other["peak_memory"]
            pair = _paired(own, other)
            note(
                f"{name} {pair['peer_seconds']:.2f} s, ours {pair['seconds']:.2f} s, "
                f"ratio {pair['ratio']:.2f}" + (" (warm-up)" if number < warmup else "")
            )
            pairs.append(pair)
    finally:
        peer.close()
    pairs = pairs[warmup:]
    return {
        "workload": "standard",
        "model": model,
        "against": name,
        "peer": peer.ready,
        "peer_fast_blas": fast_blas,
        "sizes": asdict(work),
        "pairs": pairs,
        **{k: median(p[k] for p in pairs) for k in pairs[0]},
        "peak_memory_mb": peak_memory() / 2**20,
        "peer_peak_memory_mb": memory / 2**20,
    }


def _paired(own: Step, other: dict[str, float]) -> dict[str, float]:
    """The times of our step and of a peer's, and how many times longer the peer took."""
    seconds = other["rollout"] + other["update"]
    return {
        "rollout_seconds": own.rollout,
        "update_seconds": own.update,
        "seconds": own.seconds,
        "cpu_seconds": own.cpu,
        "peer_rollout_seconds": other["rollout"],
        "peer_update_seconds": other["update"],
        "peer_seconds": seconds,
        "peer_cpu_seconds": other["cpu"],
        "ratio": seconds / own.seconds,
        "cpu_ratio": other["cpu"] / own.cpu,
    }
