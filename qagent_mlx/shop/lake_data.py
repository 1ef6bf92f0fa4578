"""Files that machines of a lake publish for each other, beside the lake's rows.

Below a folder of the lake's data, which is a folder that all machines see or a store of objects.
A file is there whole or not at all.
"""

from __future__ import annotations

import re
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import msgspec

from ..errors import QAgentError
from ..utils.atomic_files import clear_leftovers, link_or_copy, replacing
from ..utils.database import literal
from .lake_catalog import LakeCatalog
from .lake_files import scratch

T = TypeVar("T")

GONE = "-"  # what a file holds that was removed where nothing can be deleted
_NAME = re.compile(r"[0-9a-z][0-9a-z._-]*(/[0-9a-z][0-9a-z._-]*)*")


def open_lake_data(catalog: LakeCatalog, folder: str) -> LakeData:
    """The files below a folder of a lake's data.

    Raises:
        QAgentError: the lake does not answer, or its files are elsewhere than they must be.
    """
    place = f"{catalog.data.rstrip('/')}/{folder}"
    return ObjectsOfLake(catalog, place) if "://" in place else FilesOfLake(Path(place))


class LakeData(ABC):
    """Files by their names: small letters, digits, dots, dashes and underscores, in folders."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int]:
        """The size of each file in a folder and below, in bytes, by its name.

        Raises:
            QAgentError: the place cannot be read; as all others.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a small file that `sizes` has named."""

    @abstractmethod
    def put(self, name: str, file: Path) -> None:
        """Publish a file, in place of what has its name."""

    @abstractmethod
    def take(self, name: str, target: Path) -> None:
        """Get a file, as a new one at ``target``."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take a file back."""

    def read_record(
        self, name: str, record: type[T], limit: int, sizes: Mapping[str, int]
    ) -> T | None:
        """What a file of JSON says, as others wrote it; None where it is not there.

        Args:
            record: What it must be, see `msgspec.json.decode`.
            limit: Of its size, in bytes.
            sizes: As `sizes` has just told them.

        Raises:
            QAgentError: it is no such record, or cannot be read.
        """
        size = sizes.get(name)
        if size is None:
            return None
        if size > limit:
            raise QAgentError(f"{name} has {size:,} bytes")
        try:
            return msgspec.json.decode(self.read(name), type=record)
        except (ValueError, RecursionError) as error:
            raise QAgentError(str(error)) from error

    def write(self, name: str, content: bytes) -> None:
        """Publish a content."""
        with scratch() as folder:
            (folder / "content").write_bytes(content)
            self.put(name, folder / "content")


class FilesOfLake(LakeData):
    """In a folder. What others took or gave is the same file, where both lie on one disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sizes(self, folder: str = "") -> dict[str, int]:
        """As in `LakeData`."""
        try:
            entries = [
                (path.relative_to(self._folder).as_posix(), path.lstat())
                for path in (self._folder / folder).rglob("*")
            ]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._problem("read", error) from error
        return {
            name: status.st_size
            for name, status in entries
            if _NAME.fullmatch(name) and stat.S_ISREG(status.st_mode)
        }

    def read(self, name: str) -> bytes:
        """As in `LakeData`."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise self._problem("read", error) from error

    def put(self, name: str, file: Path) -> None:
        """As in `LakeData`."""
        with replacing(self._folder / name) as temporary:
            temporary.unlink()
            link_or_copy(file, temporary)

    def take(self, name: str, target: Path) -> None:
        """As in `LakeData`."""
        try:
            if not stat.S_ISREG((self._folder / name).lstat().st_mode):
                raise QAgentError(f"{self._folder / name} is no file; remove it")
            link_or_copy(self._folder / name, target)
        except OSError as error:
            raise self._problem("read", error) from error

    def remove(self, name: str) -> None:
        """As in `LakeData`."""
        path = self._folder / name
        with suppress(OSError):
            path.unlink()
        clear_leftovers(path.parent)
        if path.parent != self._folder:
            with suppress(OSError):  # something is left in it
                path.parent.rmdir()

    def _problem(self, what: str, error: OSError) -> QAgentError:
        return QAgentError(
            f"cannot {what} {self._folder}: {error.strerror}; see that this machine may"
        )


class ObjectsOfLake(LakeData):
    """In a store of objects, by way of DuckDB, which cannot delete there: see `GONE`."""

    def __init__(self, catalog: LakeCatalog, place: str) -> None:
        self._catalog, self._place = catalog, place

    def sizes(self, folder: str = "") -> dict[str, int]:
        """As in `LakeData`."""
        files = literal(f"{self._place}/{folder and folder + '/'}**")
        names = self._run(f"SELECT file FROM glob({files})")
        if not names:
            return {}
        rows = self._run(f"SELECT filename, size FROM read_blob({files})")
        start = len(self._place) + 1
        found = {str(path)[start:]: int(size) for path, size in rows}
        return {
            name: size for name, size in found.items() if size > len(GONE) and _NAME.fullmatch(name)
        }

    def read(self, name: str) -> bytes:
        """As in `LakeData`."""
        ((content,),) = self._run(f"SELECT content FROM read_blob({self._literal(name)})")
        return content

    def put(self, name: str, file: Path) -> None:
        """As in `LakeData`."""
        with scratch() as folder:  # the lake's connection reads nothing else
            link_or_copy(file, folder / "file")
            self._copy(f"SELECT content FROM read_blob({literal(folder / 'file')})", name)

    def take(self, name: str, target: Path) -> None:
        """As in `LakeData`."""
        with scratch() as folder:
            self._run(
                f"COPY (SELECT content FROM read_blob({self._literal(name)})) "
                f"TO {literal(folder / 'file')} (FORMAT blob)"
            )
            shutil.move(folder / "file", target)

    def remove(self, name: str) -> None:
        """As in `LakeData`."""
        with suppress(QAgentError):
            self._copy(f"SELECT {literal(GONE)}::BLOB", name)

    def _copy(self, query: str, name: str) -> None:
        self._run(f"COPY ({query}) TO {self._literal(name)} (FORMAT blob)")

    def _literal(self, name: str) -> str:
        return literal(f"{self._place}/{name}")

    def _run(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self._catalog.cursor()
        try:
            return cursor.execute(statement).fetchall()
        except duckdb.Error as error:
            raise self._catalog.unreachable(error) from error
        finally:
            cursor.close()
