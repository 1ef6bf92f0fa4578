"""The manifest of a reproduction: from what it is made, and which stages are done."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..policy.registry import SAMPLE
from ..shop.sample import sample_data_folder
from ..utils.atomic_files import hash_file, read_json, write_json
from .config import ReproduceConfig

FORMAT = 2
PACKAGES = (
    "qagent-mlx",
    "mlx",
    "mlx-lm",
    "numpy",
    "duckdb",
    "usearch",
    "bm25s",
    "scipy",
    "tokenizers",
)


class Manifest:
    """``manifest.json`` of a folder; it is written when a stage has ended.

    The folder must be new, empty, or that of an earlier reproduction from the same ``source``
    (``sample``, or a folder of raw files) with the same files, settings and versions.
    """

    def __init__(self, folder: Path, source: str, config: ReproduceConfig) -> None:
        self._path = folder / "manifest.json"
        self.values: dict[str, Any] = {
            "format": FORMAT,
            "source": source if source == SAMPLE else str(Path(source).resolve()),
            "inputs": _input_hashes(source),
            "settings": {**asdict(config), "seeds": list(config.seeds)},
            "versions": _versions(),
            "stages": {},
        }
        if self._path.exists():
            self.values = self._read(folder)
        elif folder.exists() and any(folder.iterdir()):
            raise QAgentError(f"{folder} holds something else; choose a new or empty folder")
        else:
            write_json(self._path, self.values)

    @property
    def stages(self) -> dict[str, Any]:
        """What each stage that is done made."""
        stages: dict[str, Any] = self.values["stages"]
        return stages

    def run_stage(self, name: str, action: Callable[[], dict[str, Any]]) -> None:
        """Do a stage, and write down what it made and how long it took."""
        start = time.perf_counter()
        result = action()
        self.stages[name] = {**result, "seconds": round(time.perf_counter() - start, 1)}
        write_json(self._path, self.values)

    def _read(self, folder: Path) -> dict[str, Any]:
        """The manifest of an earlier reproduction, which must agree with this one."""
        earlier: dict[str, Any] = read_json(self._path, f"the reproduction {folder}")
        if not isinstance(earlier, dict) or earlier.get("format") != FORMAT:
            raise QAgentError(f"{self._path} is of another format; choose a new folder")
        for key in ("source", "inputs", "settings", "versions"):
            if earlier.get(key) != self.values[key]:
                raise QAgentError(
                    f"{folder} was begun with other {key}, so its numbers would not belong "
                    "together; choose a new folder"
                )
        return earlier


def _input_hashes(source: str) -> dict[str, str]:
    """The name and hash of every raw file."""
    folder = sample_data_folder() if source == SAMPLE else Path(source)
    if not folder.is_dir():
        raise QAgentError(f"{folder} is no folder; name one with raw files, or: sample")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if source == SAMPLE:
        files = [path for path in files if path.suffix in {".parquet", ".json"}]
    return {path.name: hash_file(path) for path in files}


def _versions() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
    }
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
