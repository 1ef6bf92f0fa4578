"""Fingerprints of model folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

ADAPTER, MODEL = "adapters.safetensors", "model.safetensors"


def fingerprint(folder: Path) -> str:
    """Identifies a folder's weights: hash of their first and last megabyte and size."""
    paths = sorted([*folder.glob("model*.safetensors"), *folder.glob(ADAPTER)])
    return _fingerprint([(path.name, path) for path in paths])


def _fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        size = path.stat().st_size
        digest.update(f"{name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]
