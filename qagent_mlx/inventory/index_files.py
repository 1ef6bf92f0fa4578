"""The index's folder: generations of files, and a manifest that names those in force.

    inventory/manifest.json         the files of the index, their sizes and checksums, and the
                                    catalog version that they were built from
    inventory/catalog-7.parquet     written by generation 7; a later one may go on using it
    inventory/.lock                 held by the writer

A writer puts the files of the next generation beside those in use, flushes them, and then
replaces the manifest. A writer that is killed before that has changed nothing, and the next one
clears what it left. Readers never wait: files that an open index has mapped into memory stay
readable after their names are gone.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import duckdb
import msgspec
from msgspec import Meta

from ..errors import QAgentError
from ..utils.atomic_files import locked, sync_folder, write_json
from .encoders.registry import EncoderSpec
from .relevance import VERSION, RelevanceFloor

FORMAT = 2
MANIFEST = "manifest.json"
LOCK = ".lock"
MAX_CHECKSUM_BYTES = 64 << 20  # larger files are checked by size alone, for speed of opening
REMEDY = "run: qagent index"
WRITER_WAIT = 600.0  # seconds; another writer may be building an index

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]


class FileStamp(NamedTuple):
    """Size and checksum of a file of the index."""

    size: Count
    checksum: Count


class StoredShard(NamedTuple):
    """A file of vectors, and the slots that it holds."""

    file: str
    start: Count
    size: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The parts of an index, and what they were built from; stored in this order."""

    format: int = FORMAT
    generation: Count
    catalog_version: Count
    products: Count
    encoder: EncoderSpec
    clicks_until: Annotated[datetime, Meta(tz=False)] | None  # the encoder learned until then
    clicked_pairs: Count = 0  # that it learned from
    clicks: str = ""  # a digest of these; empty in indexes of before there was one
    dimensions: Count
    shards: tuple[StoredShard, ...] = ()
    terms: int = 1  # version of the analyzer
    relevance: RelevanceFloor | None = None  # None in indexes of before there was one
    published: str = ""  # in a lake, the published generation that it is, or follows from
    taken: bool = False  # whether another machine has built it
    files: dict[str, FileStamp] = field(default_factory=dict)


class _AnyFormat(msgspec.Struct):
    format: int


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the index in ``folder``.

    Raises:
        QAgentError: there is none, or it is damaged or of another format.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
        if msgspec.json.decode(content, type=_AnyFormat).format != FORMAT:
            raise QAgentError(f"{folder} holds an index of another format; {REMEDY}")
        manifest = checked(msgspec.json.decode(content, type=Manifest))
    except (FileNotFoundError, NotADirectoryError):
        raise QAgentError(f"{folder} holds no index; {REMEDY}") from None
    except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:
        raise damaged(folder, MANIFEST) from error
    return manifest


def checked(manifest: Manifest) -> Manifest:
    """A manifest as this version of the program reads it.

    Raises:
        ValueError: it names files outside of its folder.
    """
    if manifest.relevance is not None and manifest.relevance.version != VERSION:
        manifest = replace(manifest, relevance=None)  # of a newer version of the program
    shard_files = {shard.file for shard in manifest.shards}
    if not all(map(_is_plain, manifest.files)) or not shard_files <= manifest.files.keys():
        raise ValueError("it names files outside of the folder")
    return manifest


def damaged(folder: Path, detail: str) -> QAgentError:
    """The error for an index that cannot be used."""
    return QAgentError(f"the index in {folder} is damaged ({detail}); {REMEDY}")


def _is_plain(name: str) -> bool:
    """Whether this is a file's name inside the folder, not a path out of it."""
    return name == Path(name).name and not name.startswith(".") and "\0" not in name


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its stamp.

    Raises:
        QAgentError: one is missing, or has another size or content.
    """
    for name, stamp in manifest.files.items():
        path = folder / name
        if (
            not path.is_file()
            or path.is_symlink()
            or path.stat().st_size != stamp.size
            or (stamp.size <= MAX_CHECKSUM_BYTES and checksum(path) != stamp.checksum)
        ):
            raise damaged(folder, name)


class IndexWriter:
    """Writes the next generation; see `writing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.generation = read_manifest(folder).generation + 1
        except QAgentError:
            # Not 1 again: an index in memory may still rely on a file of that name.
            self.generation = int(time.time())
        self.published = ""  # of the manifest that `commit` writes
        self._added: list[str] = []

    def add(self, name: str, write: Callable[[Path], Any]) -> str:
        """Write a file of this generation, ``stem.suffix``, and return its name."""
        stem, _, suffix = name.partition(".")
        full_name = f"{stem}-{self.generation}.{suffix}"
        self._added.append(full_name)
        write(self.folder / full_name)
        with (self.folder / full_name).open("rb") as file:
            os.fsync(file.fileno())
        return full_name

    def commit(self, manifest: Manifest, reused: Mapping[str, FileStamp]) -> Manifest:
        """Make the added and the reused files the index; returns the manifest with all files."""
        files = dict(reused)
        for name in self._added:
            path = self.folder / name
            files[name] = FileStamp(path.stat().st_size, checksum(path))
        manifest = replace(manifest, files=files, published=self.published)
        sync_folder(self.folder)
        write_json(self.folder / MANIFEST, msgspec.to_builtins(manifest))
        clear(self.folder)
        return manifest


@contextmanager
def writing(folder: Path) -> Iterator[IndexWriter]:
    """Hold the right to write the index until the block ends; waits for another writer.

    Raises:
        QAgentError: another process has been writing for `WRITER_WAIT` seconds, or the folder
            cannot be written. The index is then as it was.
    """
    busy = f"the index in {folder} is being written by {{}}; wait until it ends, or stop it"
    try:
        folder.mkdir(exist_ok=True)
        with locked(folder / LOCK, busy, WRITER_WAIT):
            clear(folder)
            try:
                yield IndexWriter(folder)
            except BaseException:
                clear(folder)
                raise
    except (OSError, duckdb.Error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise QAgentError(
            f"cannot write the index in {folder}: {reason}; "
            "free some space, or make the folder writable"
        ) from error


def leftovers(folder: Path, manifest: Manifest | None) -> list[Path]:
    """Files in the folder that do not belong to the index: of a writer at work, or a killed one."""
    named = {*(manifest.files if manifest else ()), MANIFEST, LOCK}
    return sorted(path for path in folder.iterdir() if path.name not in named)


def clear(folder: Path) -> None:
    """Remove files of earlier generations and of killed writers."""
    try:
        manifest = read_manifest(folder)
    except QAgentError:
        manifest = None
    # Before format 2 an index was built in a hidden folder beside its place.
    for path in (*leftovers(folder, manifest), *folder.parent.glob(".inventory.*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def clear_if_idle(folder: Path) -> None:
    """Clear what a killed writer left, unless a writer is at work or the folder is read-only."""
    with suppress(OSError, QAgentError), locked(folder / LOCK, "another process writes"):
        clear(folder)


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
