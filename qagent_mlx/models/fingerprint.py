"""Fingerprints identify the weights in a folder."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from ..errors import QAgentError

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
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise QAgentError(f"{path} is no file; put the model's weights in its place")
        size = status.st_size
        digest.update(f"{name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END))
            file.seek(max(0, size - _END))
            digest.update(file.read())
    return digest.hexdigest()[:16]
