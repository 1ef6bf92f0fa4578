"""Unpack compressed files, a MiB at a time and never without end."""

from __future__ import annotations

import bz2
import gzip
import math
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import QAgentError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_UNPACKED, MAX_RATIO = 256 << 20, 200  # of an archive: bytes, and against its own size
CHUNK = 1 << 20  # bytes

SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "zip": b"PK\x03\x04"}
_OPEN = {"gzip": gzip.open, "zstd": zstd.open, "bz2": bz2.open}
_DAMAGED = (EOFError, zlib.error, zstd.ZstdError, zipfile.BadZipFile)


def split_compression(name: str) -> tuple[str, str]:
    """``"events.csv.gz"`` to ``("events.csv", "gzip")``; the compression is "none" without one."""
    suffix = Path(name).suffix.lower()
    compression = SUFFIXES.get(suffix, "none")
    return (name, "none") if compression == "none" else (name[: -len(suffix)], compression)


def read_chunks(path: Path, compression: str, name: str) -> Iterator[bytes]:
    """The file's bytes, unpacked, a MiB at a time.

    Raises:
        QAgentError: unreadable, damaged, or unpacking to far more than a log does.
    """
    try:
        limit = math.inf if compression == "none" else _limit(path.stat().st_size)
        with path.open("rb") as file:
            _check_magic(file, compression, name)
            if compression != "none":
                file = _OPEN[compression](file)  # type: ignore[operator]
            yield from _limited(file, limit, name)
    except _DAMAGED as error:
        raise QAgentError(
            f"{name}: the {compression} file is cut short or damaged; get it again"
        ) from error
    except OSError as error:
        if compression == "bz2" and error.errno is None:  # "Invalid data stream"
            raise QAgentError(f"{name}: the bz2 file is damaged; get it again") from error
        raise QAgentError(f"{name}: {error.strerror or error}") from error


def unpack(path: Path, compression: str, name: str, folder: Path) -> Path:
    """Unpack a compressed file into a folder."""
    target = folder / "unpacked"
    with target.open("wb") as file:
        file.writelines(read_chunks(path, compression, name))
    return target


def zip_members(path: Path, name: str) -> list[str]:
    """Names of the files in a zip archive, without the hidden ones that systems add."""
    with _open_zip(path, name) as archive:
        members = [info.filename for info in archive.infolist() if not info.is_dir()]
    return sorted(
        member for member in members if not any(part[0] in "._" for part in Path(member).parts)
    )


def unpack_member(path: Path, member: str, name: str, folder: Path) -> Path:
    """Unpack one file of a zip archive into a folder."""
    target = folder / "member"
    with _open_zip(path, name) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError:
            held = ", ".join(archive.namelist()[:20])
            raise QAgentError(
                f"{name}: the archive has no file {member!r}; it has {held}"
            ) from None
        try:
            with archive.open(info) as packed, target.open("wb") as file:
                file.writelines(_limited(packed, _limit(info.compress_size), name))
        except (*_DAMAGED, OSError) as error:
            raise QAgentError(f"{name}: the zip file is damaged; get it again") from error
        except (RuntimeError, NotImplementedError) as error:  # a password, a rare compression
            raise QAgentError(
                f"{name}: {error}; unpack it yourself (unzip) and ingest what is in it"
            ) from error
    return target


def check_unpacked_size(path: Path, name: str) -> None:
    """Refuse a workbook, which is a zip archive, that says it unpacks to far more than its size."""
    if not zipfile.is_zipfile(path):
        return
    with _open_zip(path, name) as archive:
        if sum(info.file_size for info in archive.infolist()) > _limit(path.stat().st_size):
            raise _bomb(name)


def _open_zip(path: Path, name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise QAgentError(f"{name}: the zip file is cut short or damaged; get it again") from error
    except OSError as error:
        raise QAgentError(f"{name}: {error.strerror or error}") from error


def _check_magic(file: IO[bytes], compression: str, name: str) -> None:
    if compression == "none":
        return
    magic = MAGIC[compression]
    start = file.read(len(magic))
    if start and not magic.startswith(start):
        suffix = next(s for s, known in SUFFIXES.items() if known == compression)
        raise QAgentError(f"{name}: not a {compression} file; rename it without {suffix}")
    file.seek(0)


def _limit(size: int) -> int:
    return max(MAX_UNPACKED, MAX_RATIO * size)


def _limited(file: IO[bytes], limit: float, name: str) -> Iterator[bytes]:
    size = 0
    while chunk := file.read(CHUNK):
        size += len(chunk)
        if size > limit:
            raise _bomb(name)
        yield chunk


def _bomb(name: str) -> QAgentError:
    return QAgentError(
        f"{name}: unpacks to over {MAX_RATIO} times its size, as no log does; if it is meant so, "
        "unpack it yourself and ingest that"
    )
