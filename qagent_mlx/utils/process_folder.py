"""Temporary files that hold what users did: they end with their process, however that ends.

A process has one folder for them, which nobody else may read, and holds a lock in it. What a killed
process leaves is deleted by the next one that needs such a folder.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

PREFIX = "qagent-process-"
LOCK = "in-use"
LARGE_FILES = Path("/var/tmp")
UNLOCKED_SECONDS = 3600.0  # after which a folder without a lock is nobody's


def process_folder() -> Path:
    """This process's folder for temporary files; it is deleted at the process's end."""
    folder = _own_folder(os.getpid())
    if not (folder / LOCK).exists():  # what clears old files away has taken it
        folder.mkdir(mode=0o700, exist_ok=True)
        _hold(folder)
    return folder


@cache
def _own_folder(process: int) -> Path:
    delete_abandoned()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_parent()))
        if _hold(folder):
            break
    atexit.register(_delete, folder, process)
    return folder


def _parent() -> Path:
    """``TMPDIR``, else ``/var/tmp``, which is for files too large for a ``/tmp`` in memory."""
    chosen = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    if not chosen and os.access(LARGE_FILES, os.W_OK | os.X_OK):
        return LARGE_FILES
    return Path(tempfile.gettempdir())


def _delete(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not one that was forked from it
        shutil.rmtree(folder, ignore_errors=True)


def _hold(folder: Path) -> bool:
    """Lock a folder until the process ends; False where another process has just taken it."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # a file system without locks, where nobody deletes it either
        pass
    return (folder / LOCK).exists()


def delete_abandoned() -> None:
    """Delete the folders of this user's processes that have ended."""
    with suppress(OSError):
        for folder in _parent().glob(f"{PREFIX}*"):
            with suppress(OSError):
                if _is_abandoned(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return False
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # it is being made, or was cleared away
        return time.time() - status.st_mtime > UNLOCKED_SECONDS
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
