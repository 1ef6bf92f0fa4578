"""Fingerprints identify the weights in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

ADAPTER, MODEL = "adapters.safetensors", "model.safetensors"
_END = 1 << 20  # bytes that are hashed at each end of a file


def fingerprint(folder: Path) -> str:
    """Identify a folder's weights by its model and adapter files."""
    paths = sorted([*folder.glob("model*.safetensors"), *folder.glob(ADAPTER)])
    return fingerprint_files({path.name: path for path in paths})


def fingerprint_files(files: dict[str, Path]) -> str:
    """16 hexadecimal digits: a hash of names, sizes, and each file's first and last megabyte.

    Args:
        files: Name that is hashed -> file, in the order of hashing.
    """
    digest = hashlib.sha256()
    for name, path in files.items():
        size = path.stat().st_size
        digest.update(f"{name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END))
            file.seek(max(0, size - _END))
            digest.update(file.read())
    return digest.hexdigest()[:16]
