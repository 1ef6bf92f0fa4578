"""The index's folder: generations of files, and a manifest that says which of them hold.

    inventory/manifest.json         which files make the index, their sizes and checksums,
                                    and the catalog version that they were made from
    inventory/catalog-7.parquet     made by generation 7; a later one may go on using it
    inventory/.lock                 held by whoever writes

A writer makes the files of the next generation beside those in use, flushes them, and then
replaces the manifest. Whoever is killed before that has changed nothing, and what was left
behind is cleared by the next writer. Readers never wait: files that an open index has mapped
stay readable after their names are gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from ..utils.atomic_files import locked, read_json, sync_folder, write_json

FORMAT = 2
MANIFEST = "manifest.json"
LOCK = ".lock"
KEYS = {"generation", "catalog_version", "products", "clicks_until", "files", "shards", "encoder"}
CHECKED = 64 << 20  # bytes; larger files are checked by size alone, or opening would read them
REMEDY = "run: qagent index"
WAIT = 600.0  # seconds for another writer, who may be building an index
BUSY = "wait until it ends, or stop it"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the index in ``folder``.

    Raises:
        QAgentError: there is none, or it is damaged or of another format.
    """
    if not (folder / MANIFEST).exists():
        raise QAgentError(f"{folder} holds no index; {REMEDY}")
    try:
        manifest = read_json(folder / MANIFEST, "the index manifest")
    except QAgentError as error:
        raise QAgentError(f"{error}; {REMEDY}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise QAgentError(f"{folder} holds an index of another format; {REMEDY}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not manifest.keys() >= KEYS or not all(map(_plain, files)):
        raise QAgentError(f"the index in {folder} is damaged ({MANIFEST}); {REMEDY}")
    whole = [manifest[key] for key in ("generation", "catalog_version", "products")]
    whole += [n for pair in files.values() for n in (pair if _pair(pair) else [None])]
    if not all(isinstance(n, int) and 0 <= n < 1 << 62 for n in whole):
        raise QAgentError(f"the index in {folder} is damaged ({MANIFEST}); {REMEDY}")
    return manifest


def _plain(name: str) -> bool:
    """Whether it names a file of the folder, and nothing outside of it."""
    return name == Path(name).name and not name.startswith(".") and "\0" not in name


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with the manifest.

    Raises:
        QAgentError: one is missing, or has another size or content.
    """
    for name, (size, checksum) in manifest["files"].items():
        path = folder / name
        if (
            not path.is_file()
            or path.is_symlink()
            or path.stat().st_size != size
            or (size <= CHECKED and _checksum(path) != checksum)
        ):
            raise QAgentError(f"the index in {folder} is damaged ({name}); {REMEDY}")


class IndexWriter:
    """Writes the next generation; see `writing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.generation = int(read_manifest(folder)["generation"]) + 1
        except QAgentError:
            # Not 1 again: an index in memory may still count on a file of that name.
            self.generation = int(time.time())
        self._fresh: list[str] = []

    def add(self, name: str, write: Callable[[Path], Any]) -> str:
        """Write a file of this generation, ``stem.suffix``, and return its name."""
        stem, _, suffix = name.partition(".")
        full = f"{stem}-{self.generation}.{suffix}"
        self._fresh.append(full)
        write(self.folder / full)
        with (self.folder / full).open("rb") as file:
            os.fsync(file.fileno())
        return full

    def commit(
        self, values: dict[str, Any], kept: dict[str, list[int]] | None = None
    ) -> dict[str, Any]:
        """Make the files that were added, and those ``kept`` from before, the index.

        Returns the manifest: ``values`` with format, generation and files.
        """
        files = dict(kept or {})
        for name in self._fresh:
            path = self.folder / name
            files[name] = [path.stat().st_size, _checksum(path)]
        manifest = {"format": FORMAT, "generation": self.generation, **values, "files": files}
        sync_folder(self.folder)
        write_json(self.folder / MANIFEST, manifest)
        clear(self.folder)
        return manifest


@contextmanager
def writing(folder: Path) -> Iterator[IndexWriter]:
    """The right to write the index, held until the block ends; waits for another writer.

    Raises:
        QAgentError: the folder cannot be written, or another process has been writing for
            `WAIT` seconds. The index is then as it was.
    """
    try:
        folder.mkdir(exist_ok=True)
        with locked(folder / LOCK, f"the index in {folder} is being written by {{}}; {BUSY}", WAIT):
            clear(folder)
            try:
                yield IndexWriter(folder)
            except BaseException:
                clear(folder)
                raise
    except (OSError, duckdb.Error) as error:
        line = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise QAgentError(
            f"cannot write the index in {folder}: {line}; "
            "free some space, or make the folder writable"
        ) from error


def clear_if_idle(folder: Path) -> None:
    """Clear what a writer left that died; nothing where one works, or where we may not write."""
    try:
        with (folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clear(folder)
    except OSError:
        return


def clear(folder: Path) -> None:
    """Remove what no manifest names: files of earlier generations and of writers that died."""
    try:
        named = {*read_manifest(folder)["files"], MANIFEST, LOCK}
    except QAgentError:
        named = {MANIFEST, LOCK}
    for path in folder.iterdir():
        if path.name not in named:
            _remove(path)
    # Before format 2 an index was built in a hidden folder beside its place.
    for path in folder.parent.glob(".inventory.*"):
        _remove(path)


def leftovers(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Names in the folder that do not belong to the index: a writer works, or has died."""
    named = {*manifest["files"], MANIFEST, LOCK}
    return sorted(path.name for path in folder.iterdir() if path.name not in named)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
