"""The journal of a shop: what a server has acknowledged and the database does not hold yet.

    journal/<server>-<number>.log     lines of a checksum and one JSON entry

A server appends entries and flushes them to disk before it acknowledges them; whoever opens the
database for writing applies them (`ingest.journal`) and stores in the same transaction how far it
came. So each entry is applied exactly once, also after a crash. A server starts a new file once
all entries of the last one are stored, so nothing stays in the journal for long.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..utils.atomic_files import sync_folder

log = logging.getLogger("qagent.shop")

FOLDER = "journal"
CHANGES = "changes"  # an empty file there; its time says when the database was changed
CHECK_BYTES = 1 << 20  # that must be free for a disk to be no longer full
_NAME = re.compile(r"([0-9a-f]{16})-(\d{9})\.log")

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a server's journal: the file's number, and bytes from its beginning."""

    number: int = 0
    offset: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that `str` wrote."""
        number, _, offset = text.partition(":")
        return cls(int(number), int(offset))

    def __str__(self) -> str:
        return f"{self.number}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Record:
    """An entry (empty where it was damaged), and the position behind it in a server's journal."""

    server: str
    end: Position
    entry: Entry


class CannotStore(QAgentError):
    """The disk is full or broken: nothing of what was to be stored is kept."""


class JournalWriter:
    """Appends a server's entries. Thread-safe; only this object writes to the server's files.

    Raises:
        CannotStore: the folder cannot be written.
    """

    def __init__(self, shop: Path) -> None:
        self.folder = shop / FOLDER
        self.server = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._position = Position(0, 0)
        self._descriptor = -1
        self._is_unsynced = False
        self._is_torn = False  # the file holds bytes behind the position
        try:
            self.folder.mkdir(exist_ok=True)
            (self.folder / CHANGES).touch()
            self._begin(1)
        except OSError as error:
            raise self._cannot_write(error) from error

    @property
    def position(self) -> Position:
        """The position behind the last entry."""
        return self._position

    def append(self, entries: Sequence[Mapping[str, Any]]) -> Position:
        """Write entries to disk; when this returns they survive a crash.

        Raises:
            CannotStore: the disk is full or broken; nothing of the entries is kept.
        """
        return self._put(entries, is_synced=True)

    def _put(self, entries: Sequence[Mapping[str, Any]], *, is_synced: bool) -> Position:
        data = b"".join(_line(entry) for entry in entries)
        with self._lock:
            number, offset = self._position.number, self._position.offset
            try:
                if self._is_torn:
                    os.ftruncate(self._descriptor, offset)
                self._is_torn, written = True, 0
                while written < len(data):
                    written += os.write(self._descriptor, data[written:])
                if is_synced:
                    os.fsync(self._descriptor)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, offset)
                    self._is_torn = False
                raise self._cannot_write(error) from error
            self._is_torn, self._is_unsynced = False, not is_synced
            self._position = Position(number, offset + len(data))
            return self._position

    def write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Hand entries to the system without waiting for the disk (see `sync`).

        They survive the end of this process, and after `sync` that of the machine.

        Raises:
            QAgentError: as `append`.
        """
        self._put(entries, is_synced=False)

    def sync(self) -> None:
        """Bring to disk what `write` was given; nobody has to wait for it."""
        with self._lock:
            if not self._is_unsynced:
                return
            self._is_unsynced = False
            descriptor = os.dup(self._descriptor)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            os.close(descriptor)

    def check_disk(self) -> None:
        """Raise `CannotStore` while nothing can be written beside the journal's files."""
        path = self.folder / f".{self.server}.tmp"
        try:
            try:
                with path.open("wb") as file:
                    file.write(bytes(CHECK_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def start_again(self, stored: Position) -> None:
        """Begin a new file and remove the old one, if all its entries are stored."""
        with self._lock:
            if self._position != stored or not stored.offset:
                return
            old, old_path = self._descriptor, self._path(stored.number)
            with contextlib.suppress(OSError):  # a full disk: the old file still serves
                self._begin(stored.number + 1)
                old_path.unlink(missing_ok=True)
                os.close(old)

    def close(self) -> None:
        """Stop writing; a file without entries is removed."""
        with self._lock:
            if not self._position.offset:
                self._path(self._position.number).unlink(missing_ok=True)
            os.close(self._descriptor)

    def _begin(self, number: int) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC
        descriptor = os.open(self._path(number), flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # says that its server lives
        sync_folder(self.folder)
        self._descriptor, self._position = descriptor, Position(number, 0)

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.server}-{number:09}.log"

    def _cannot_write(self, error: OSError) -> CannotStore:
        return CannotStore(
            f"cannot write {self.folder}: {error.strerror}; free some space or choose a folder "
            "you may write to"
        )


def note_change(shop: Path) -> None:
    """Let servers of a shop know that its database was changed by more than their journals."""
    with contextlib.suppress(OSError):  # no server has ever run
        os.utime(shop / FOLDER / CHANGES)


def changes(shop: Path) -> int:
    """A number that is another one after each `note_change`."""
    try:
        return (shop / FOLDER / CHANGES).stat().st_mtime_ns
    except OSError:
        return 0


def has_entries(shop: Path) -> bool:
    """Whether a shop has a journal with entries, stored or not."""
    return any(path.stat().st_size for _, _, path in _files(shop) if path.exists())


def has_files(shop: Path) -> bool:
    """Whether a shop has a journal, if perhaps one without entries that a crash left."""
    return bool(_files(shop))


def is_served(shop: Path) -> bool:
    """Whether a server that takes events answers from a shop on this machine."""
    for _, _, path in _files(shop):
        with contextlib.suppress(FileNotFoundError):  # stored and removed meanwhile
            if not _has_ended(path):
                return True
    return False


def pending(shop: Path, stored: Mapping[str, Position]) -> Iterator[Record]:
    """The entries behind the stored positions of each server, in order."""
    for server, number, path in _files(shop):
        position = stored.get(server, Position())
        if number < position.number:
            continue
        offset = position.offset if number == position.number else 0
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:  # stored and removed meanwhile
            continue
        for line in data.splitlines(keepends=True):
            offset += len(line)
            if not line.endswith(b"\n"):
                break  # torn by a crash before it was acknowledged, or just being written
            entry = _entry(line)
            if entry is None:
                log.warning("%s holds a damaged entry before byte %d; it is left out", path, offset)
            yield Record(server, Position(number, offset), entry or {})


def remove_stored(shop: Path, stored: Mapping[str, Position]) -> list[str]:
    """Remove files of servers that have ended and whose entries are all stored.

    Call it while the database is open for writing, so that nobody else stores entries.

    Returns:
        The servers without any file left, whose positions can be forgotten.
    """
    left = set()
    for server, number, path in _files(shop):
        position = stored.get(server, Position())
        with contextlib.suppress(OSError):
            offset = position.offset if number == position.number else 0
            # What follows without an end of line was torn by a crash.
            is_stored = number < position.number or b"\n" not in path.read_bytes()[offset:]
            if is_stored and _has_ended(path):
                path.unlink()
                continue
        left.add(server)
    return [server for server in stored if server not in left]


def _files(shop: Path) -> list[tuple[str, int, Path]]:
    """The files of the journal as (server, number, path), in order."""
    try:
        paths = sorted((shop / FOLDER).iterdir())
    except OSError:
        return []
    matches = [(_NAME.fullmatch(path.name), path) for path in paths]
    return [(match[1], int(match[2]), path) for match, path in matches if match]


def _has_ended(path: Path) -> bool:
    """Whether the server that wrote a file has ended."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _line(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _entry(line: bytes) -> Entry | None:
    """The entry of a line; None where the checksum does not fit or it is no object."""
    checksum, _, text = line[:-1].partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
