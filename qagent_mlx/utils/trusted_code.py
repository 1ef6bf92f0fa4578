"""The Python files that a user has named: no shop or run from others brings its own.

A shop's settings may name a Python function as its encoder, and a run the files of its rewards.
Such a file is run only if this user has named it before, on a command line or in a call, as it is
now: `trust` stores its path and hash in the user's configuration, outside of every shop.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import QAgentError
from .atomic_files import hash_file, read_json, write_json


def _record_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "qagent" / "trusted.json"


def _known() -> dict[str, str]:
    path = _record_path()
    stored = read_json(path, "the record of trusted files") if path.exists() else {}
    return stored if isinstance(stored, dict) else {}


def trust(path: Path) -> None:
    """Trust a Python file as it is now: its user has just named it."""
    known, key = _known(), str(path.resolve())
    if known.get(key) != hash_file(path):
        _record_path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(_record_path(), {**known, key: hash_file(path)})


def require(path: Path, owner: str, remedy: str) -> None:
    """Refuse a Python file that its user has not named, or that has changed since.

    ``owner`` names it in the message; ``remedy`` says how to trust it, or do without.
    """
    if _known().get(str(path.resolve())) != hash_file(path):
        raise QAgentError(
            f"{owner} would run {path}, which you have not named as it is now; "
            f"read it, then {remedy}"
        )
