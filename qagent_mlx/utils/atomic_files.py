"""Write files so that a crash leaves either the old content or the new."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import QAgentError

LARGEST_TEXT = 1 << 28  # bytes of a JSON file or a Python file that is read whole
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}-(.+)", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block ends well.

    The bytes are flushed to disk before the rename, so a power cut cannot leave a file
    that has its new name and not its new content.
    """
    with replacing_files([path]) as (temporary,):
        yield temporary


@contextmanager
def replacing_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """As `replacing`, for files that belong together: the renames follow right on each other.

    A kill between two renames leaves some old files and some new ones; the others lie beside
    them under the same token, so that a reader can end the work (`unfinished_replacements`). For
    that the last file should say what the others hold. What killed writers of the same files
    left is removed.
    """
    token = secrets.token_hex(6)
    # The suffix stays: some writers (MLX's safetensors) insist on theirs.
    temporaries = [path.with_name(f".{token}-{path.name}") for path in paths]
    folders = list(dict.fromkeys(path.parent for path in paths))
    with ExitStack() as stack:
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_folder_in_use(folder))
            for temporary in temporaries:
                temporary.touch(exist_ok=False)
                stack.callback(temporary.unlink, missing_ok=True)
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
            raise _cannot_write(place, error.strerror or error) from error
    for folder in folders:
        clear_leftovers(folder, {path.name for path in paths if path.parent == folder})


def _cannot_write(path: Path, reason: object) -> QAgentError:
    return QAgentError(
        f"cannot write {path}: {reason}; free some space or choose a folder you may write to"
    )


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` that takes its place when the block ends well."""
    parent, prefix = folder.parent, f".{folder.name}.writing-"
    parent.mkdir(parents=True, exist_ok=True)
    with _folder_in_use(parent, exclusive=True) as is_alone:
        for left in parent.glob(f"{glob.escape(prefix)}????????") if is_alone else ():
            shutil.rmtree(left, ignore_errors=True)  # of a writer that was killed
    with _folder_in_use(parent):
        temporary = new_folder(parent, prefix)
        try:
            yield temporary
            if folder.exists():
                shutil.rmtree(folder)
            temporary.replace(folder)
            sync_folder(parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that nobody changes a second, new name; where the disk cannot, copy it."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def new_folder(parent: Path, prefix: str) -> Path:
    """Make a folder of a new name, which others may read as the user's umask says.

    `tempfile.mkdtemp` makes folders that are for its user alone.
    """
    folder = parent / f"{prefix}{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


@contextmanager
def _folder_in_use(folder: Path, *, exclusive: bool = False) -> Iterator[bool]:
    """Keep others from clearing a folder while files are written in it; ends with the process.

    A shared lock on the folder itself, which filelock does not have. An ``exclusive`` one is
    False if anybody else writes there. Where the file system knows no locks nobody ever clears.
    """
    with ExitStack() as stack:
        is_locked = False
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            mode = fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH
            fcntl.flock(descriptor, mode)
            is_locked = True
        yield is_locked


def clear_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove the temporary files of killed writers, unless somebody writes in the folder.

    ``names`` are those of the replaced files; all by default.
    """
    with contextlib.suppress(OSError):
        leftovers = [
            path
            for path in folder.iterdir()
            if (match := _TEMPORARY.fullmatch(path.name)) and (names is None or match[1] in names)
        ]
        if leftovers:
            with _folder_in_use(folder, exclusive=True) as is_alone:
                for path in leftovers if is_alone else ():
                    path.unlink(missing_ok=True)


def unfinished_replacements(last: Path) -> Iterator[list[Path]]:
    """Temporary files of each `replacing_files` that was killed between its renames.

    A replacement without its ``last`` file was never ready; each yielded one is for
    `finish_replacement`.
    """
    names = sorted(path.name for path in last.parent.iterdir())
    for name in names:
        token, dash, rest = name.partition("-")
        if dash and rest == last.name and token.startswith("."):
            yield [last.parent / n for n in names if n.startswith(f"{token}-")]


def finish_replacement(temporaries: Sequence[Path]) -> None:
    """Rename the files of an unfinished replacement to their names."""
    for temporary in temporaries:
        name = temporary.name.partition("-")[2]
        with contextlib.suppress(FileNotFoundError):  # somebody else did
            temporary.replace(temporary.with_name(name))


@contextmanager
def locked(path: Path, refusal: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path``, which names its holder, until the block or the process ends.

    Where another process holds it after ``wait`` seconds, the error is ``refusal``, with its
    ``{}`` replaced by who that is.
    """
    from filelock import FileLock, Timeout  # slow to import

    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        holder = path.read_text(encoding="utf-8", errors="replace")[:20].strip()
        who = f"process {holder}" if holder.isdecimal() else "another process"
        raise QAgentError(refusal.replace("{}", who)) from None
    try:
        path.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_text(value: Any) -> str:
    """A value as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` with a text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` with ``value`` as indented JSON."""
    write_text(path, json_text(value))


def write_with(path: Path, write: Callable[[str], Any]) -> None:
    """Replace ``path`` with what ``write(temporary_path)`` writes."""
    with replacing(path) as temporary:
        try:
            write(str(temporary))
        except RuntimeError as error:  # MLX's, for a full disk among others
            raise _cannot_write(path, error) from error


def require_plain_file(path: Path, owner: str) -> None:
    """Refuse a pipe, device or folder in place of a file, and one that is absurdly large.

    Opening a pipe waits for ever, and reading a device has no end. A file that is not there is
    left to whoever reads it.
    """
    try:
        status = path.stat()
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise QAgentError(f"{owner} is damaged: {path} is no file; put a file in its place")
    if status.st_size > LARGEST_TEXT:
        size = f"{status.st_size >> 20:,} MB"
        raise QAgentError(f"{owner} is damaged: {path} has {size}; put the right file in its place")


def read_json(path: Path, owner: str) -> Any:
    """The JSON in ``path``; errors name its owner, as in "the policy base"."""
    require_plain_file(path, owner)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QAgentError(f"{owner} has no {path.name} ({path})") from None
    except (OSError, ValueError, RecursionError) as error:  # also of numbers that are too long
        raise QAgentError(f"{owner} is damaged: {path}: {error}") from error
