"""Find the files of a preset: in folders, patterns, archives and behind addresses."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ...errors import QAgentError
from ..sources.archives import MAGIC, unpack, unpack_member, zip_members
from ..sources.locations import is_hidden
from ..sources.remote import fetch, file_name, is_address

_WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".ods")  # zip archives, too


def find_files(sources: Iterable[str | Path], folder: Path) -> list[tuple[Path, Path]]:
    """The files behind names, each as it is called and where its bytes are.

    Folders are searched with all below, but for what is hidden; zip and bz2 files are unpacked
    and addresses fetched into ``folder``.

    Raises:
        QAgentError: there is nothing of a name, or an archive is damaged.
    """
    files: dict[Path, Path] = {}
    for source in map(str, sources):
        if is_address(source):
            fetched = fetch(source, _own(folder))
            files |= _unpacked(Path(file_name(source) or source), fetched, folder)
            continue
        paths = list(_paths(source))
        if not paths:
            raise QAgentError(f"{source}: no such file or folder, or nothing in it")
        for path in paths:
            files |= _unpacked(path, path, folder)
    return list(files.items())


def _paths(source: str) -> Iterator[Path]:
    path = Path(source)
    if path.is_file():
        yield path
    elif path.is_dir():
        for inside in sorted(path.rglob("*")):
            parts = inside.relative_to(path).parts
            if inside.is_file() and not any(map(is_hidden, parts)):
                yield inside
    else:
        for match in sorted(glob.iglob(source, recursive=True)):  # noqa: PTH207 (absolute ones)
            yield from _paths(match)


def _unpacked(name: Path, path: Path, folder: Path) -> dict[Path, Path]:
    try:
        with path.open("rb") as opened:
            head = opened.read(4)
    except OSError as error:
        raise QAgentError(f"{name}: {error.strerror or error}") from error
    if head.startswith(MAGIC["bz2"]):
        return {name: unpack(path, "bz2", str(name), _own(folder))}
    if not head.startswith(MAGIC["zip"]) or name.suffix.lower() in _WORKBOOKS:
        return {name: path}
    return {
        name / PurePosixPath(member).name: unpack_member(path, member, str(name), _own(folder))
        for member in zip_members(path, str(name))
    }


def _own(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))
