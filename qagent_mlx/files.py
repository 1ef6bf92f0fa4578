"""Writing files so that a crash leaves either the old one or the new one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import QAgentError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    The bytes are flushed to disk before the rename, so a power cut cannot leave a file
    that has its new name and not its new content.

    Raises:
        QAgentError: the folder cannot be written or the disk is full; ``path`` is as before.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays: some writers (MLX's safetensors) insist on theirs.
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
        os.close(descriptor)
        temporary = Path(name)
        temporary.chmod(0o644)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise QAgentError(
            f"cannot write {path}: {error.strerror or error}; "
            "free some space or choose a folder you may write to"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` with ``value`` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_with(path: Path, writer: Callable[[str], Any]) -> None:
    """Replace ``path`` with what ``writer(temporary_path)`` writes."""
    with replacing(path) as temporary:
        try:
            writer(str(temporary))
        except RuntimeError as error:  # MLX's, for a full disk among others
            raise QAgentError(
                f"cannot write {path}: {error}; free some space or choose a folder you may write to"
            ) from error


def read_json(path: Path, what: str) -> Any:
    """The JSON in ``path``, or a `QAgentError` that names ``what`` it should have been."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QAgentError(f"{what} has no {path.name} ({path})") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise QAgentError(f"{what} is damaged: {path}: {error}") from error
