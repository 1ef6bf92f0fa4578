"""Writing files so that a crash leaves either the old one or the new one."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import QAgentError

_TEMPORARY = re.compile(r"\.[0-9a-f]{12}-(.+)", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    The bytes are flushed to disk before the rename, so a power cut cannot leave a file
    that has its new name and not its new content.

    Raises:
        QAgentError: the folder cannot be written or the disk is full; ``path`` is as before.
    """
    with replacing_files([path]) as (temporary,):
        yield temporary


@contextmanager
def replacing_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """As `replacing`, for files that belong together: one rename follows right on the other.

    A kill between two renames leaves some old files and some new ones; what is missing lies
    beside them under the same token (`unfinished_replacements`), so that a reader can end the work.
    For that the last file should say what the others hold. What earlier works on the same files
    left when they were killed goes as soon as the new files are there.
    """
    token = secrets.token_hex(6)
    temporaries: list[Path] = []
    folders = list(dict.fromkeys(path.parent for path in paths))
    busy = ExitStack()
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            busy.enter_context(_in_use(folder))
        for path in paths:
            # The suffix stays: some writers (MLX's safetensors) insist on theirs.
            temporaries.append(path.with_name(f".{token}-{path.name}"))
            temporaries[-1].touch(0o644, exist_ok=False)
        yield temporaries
        for temporary in temporaries:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        for path, temporary in zip(paths, temporaries, strict=True):
            try:
                temporary.replace(path)
            except FileNotFoundError:
                if not path.exists():  # else a reader came in between and ended it
                    raise
        for folder in folders:
            sync_folder(folder)
    except OSError as error:
        place = paths[0] if len(paths) == 1 else paths[0].parent
        raise QAgentError(
            f"cannot write {place}: {error.strerror or error}; "
            "free some space or choose a folder you may write to"
        ) from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
        busy.close()
    for folder in folders:
        clear_leftovers(folder, {path.name for path in paths if path.parent == folder})


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder`` that takes its place when the block ends well.

    Raises:
        OSError: it cannot be written; ``folder`` is as before.
    """
    parent, start = folder.parent, f".{folder.name}.writing-"
    parent.mkdir(parents=True, exist_ok=True)
    with _in_use(parent, alone=True) as mine:
        for left in parent.glob(f"{glob.escape(start)}????????") if mine else ():
            shutil.rmtree(left, ignore_errors=True)  # of a writer that was killed
    with _in_use(parent):
        made = Path(tempfile.mkdtemp(dir=parent, prefix=start))
        try:
            made.chmod(0o755)
            yield made
            if folder.exists():
                shutil.rmtree(folder)
            made.replace(folder)
            sync_folder(parent)
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _in_use(folder: Path, *, alone: bool = False) -> Iterator[bool]:
    """Inside the block nobody clears the folder; the system ends it with the process.

    Where the file system knows no locks nobody ever clears it.

    Args:
        folder: Files are being made in it.
        alone: Not if anybody else makes files in it; then the block gets False.
    """
    with ExitStack() as stack:
        mine = False
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            mine = True
        yield mine


def clear_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove the temporary files that killed writers left in a folder.

    Nothing is removed while somebody writes there.

    Args:
        folder: Where files were replaced.
        names: Only those of files of these names; by default all.
    """
    with contextlib.suppress(OSError):
        left = [
            path
            for path in folder.iterdir()
            if (found := _TEMPORARY.fullmatch(path.name)) and (names is None or found[1] in names)
        ]
        if not left:
            return
        with _in_use(folder, alone=True) as mine:
            for path in left if mine else ():
                path.unlink(missing_ok=True)


def unfinished_replacements(last: Path) -> Iterator[list[Path]]:
    """What `replacing_files` left of a work that a kill ended, one list a work.

    Args:
        last: The last file of the work; those that lie there without it were never ready.

    Yields:
        Temporary files in one folder, in any order; `finish_replacement` gives them their names.
    """
    names = sorted(path.name for path in last.parent.iterdir())
    for name in names:
        token, found, rest = name.partition("-")
        if found and rest == last.name and token.startswith("."):
            yield [last.parent / n for n in names if n.startswith(f"{token}-")]


def finish_replacement(temporaries: Sequence[Path]) -> None:
    """Give the files of an unfinished work their names."""
    for temporary in temporaries:
        name = temporary.name.partition("-")[2]
        with contextlib.suppress(FileNotFoundError):  # somebody else did
            temporary.replace(temporary.with_name(name))


@contextmanager
def locked(path: Path, refusal: str, wait: float = 0.0) -> Iterator[None]:
    """Inside the block no other process holds the lock ``path``, which names its holder.

    The system lets go of it when the process ends, however it ends.

    Args:
        path: A file for the lock alone; stays there.
        refusal: What to say where somebody else holds it, with a ``{}`` for who.
        wait: Seconds to wait for that somebody.

    Raises:
        QAgentError: another process holds it.
        OSError: the file cannot be written.
    """
    with path.open("a+", encoding="utf-8") as file:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                file.seek(0)
                held = file.read(20).strip()
                who = f"process {held}" if held.isdecimal() else "another process"
                raise QAgentError(refusal.replace("{}", who)) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


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


def json_text(value: Any) -> str:
    """A value as indented JSON, as all our files have it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` with ``value`` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


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
    except (OSError, ValueError, RecursionError) as error:  # also of numbers that are too long
        raise QAgentError(f"{what} is damaged: {path}: {error}") from error
