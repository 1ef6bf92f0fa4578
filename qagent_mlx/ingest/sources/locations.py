"""Find the files, tables and addresses behind the names that the user gives."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ...errors import QAgentError
from .archives import split_compression, zip_members
from .remote import file_name, is_address, without_password
from .tables import SEPARATOR

STDIN = "-"
FORMS = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".jl"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), "workbook"),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db3"), "sqlite"),
    **dict.fromkeys((".duckdb", ".ddb"), "duckdb"),
    ".db": "database",
    ".zip": "zip",
}
_ABOUT = ("readme", "read_me", "liesmich", "license", "licence", "changelog", "notice")
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class Location:
    """One file, table, member of an archive, or address."""

    name: str  # of the file, as the user wrote or would write it
    table: str | None = None  # or a sheet, or a member of an archive, or member::table
    short: str = ""  # for reports and rejected rows
    partitions: tuple[tuple[str, str | None], ...] = ()  # columns from date=2026-01-01/
    partners: tuple[Location, ...] = ()  # whose rows belong to its rows by a key
    is_joined: bool = False  # whether it is the second file of a join
    query: str | None = None  # in DuckDB's SQL, instead of a file

    @property
    def shown(self) -> str:
        """The name as errors show it."""
        name = without_password(self.name)
        return name if self.table is None else f"{name}{SEPARATOR}{self.table}"


def locate(names: Iterable[str | Path | Location], joined: str | None = None) -> list[Location]:
    """The places that names stand for: patterns, folders and archives are taken apart.

    Args:
        joined: Another name, of what belongs to these files by a key. What is located already
            stays as it is.

    Raises:
        QAgentError: there is nothing behind a name.
    """
    known: list[Location] = []
    files: list[Location] = []
    for name in names:
        if isinstance(name, Location):
            known.append(name)
        else:
            files += _locate(str(name))
    if joined is None or not files:
        return known + files
    partners = _locate(joined)
    if any(location.name == STDIN for location in (*files, *partners)):
        raise QAgentError(
            "standard input can be read only once, and a join reads its files twice; write it to "
            "a file first"
        )
    return [
        *known,
        *(replace(file, partners=tuple(partners)) for file in files),
        *(replace(p, partners=tuple(files), is_joined=True) for p in partners),
    ]


def query_location(query: str) -> Location:
    """The result of a query in DuckDB's SQL as a location."""
    return Location("query", short="query", query=query)


def form_of(name: str) -> tuple[str | None, str]:
    """The form of a file and its compression by its name; no form where the name does not say."""
    inner, compression = split_compression(name)
    return FORMS.get(Path(inner).suffix.lower()), compression


def _locate(name: str) -> list[Location]:
    if name == STDIN:
        return [Location(STDIN, short="stdin")]
    if name.startswith((f"{STDIN}{SEPARATOR}", f"stdin{SEPARATOR}")) and not Path("stdin").exists():
        member = name.partition(SEPARATOR)[2]
        return [Location(STDIN, member, f"stdin{SEPARATOR}{member}")]
    if is_address(name):
        path_start = name.find("/", name.index("://") + 3)  # behind a host such as [::1]
        at = name.find(SEPARATOR, path_start) if path_start > 0 else -1
        address, table = (name, None) if at < 0 else (name[:at], name[at + len(SEPARATOR) :])
        return [Location(address, table, table or file_name(address) or address)]
    path = Path(name.removeprefix("file://"))
    if path.is_dir():
        files = _below(path)
        if not files:
            raise _no_files(name)
        return files
    if path.exists():
        return _file(path)
    base, separator, table = name.partition(SEPARATOR)
    if separator and Path(base).is_file():
        return [Location(base, table, f"{Path(base).name}{SEPARATOR}{table}")]
    if glob.has_magic(name):
        matches = sorted(glob.iglob(name, recursive=True))  # noqa: PTH207 (absolute ones too)
        named = Path(name).parts
        paths = [
            path
            for path in map(Path, matches)
            if not any(is_hidden(part) for part in path.parts if part not in named)
        ]
        # Shards may have no ending, but beside files of a known one a README is none of them.
        paths = [p for p in paths if p.is_dir() or form_of(p.name)[0]] or paths
        paths = [p for p in paths if not _is_about(p.name)] or paths
        if not paths:
            raise QAgentError(f"{name}: no file matches this pattern")
        found = [f for path in paths for f in (_below(path) if path.is_dir() else _file(path))]
        if not found:
            raise _no_files(name)
        return list(dict.fromkeys(found))
    raise QAgentError(f"{(separator and base) or name}: there is no such file")


def _below(folder: Path) -> list[Location]:
    """All files of a folder and of those in it whose names tell a form, in order."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(is_hidden(part) for part in path.relative_to(folder).parts)
        and form_of(path.name)[0]
        and not _is_about(path.name)
    )
    return [f for path in files for f in _file(path, path.relative_to(folder).as_posix())]


def _no_files(name: str) -> QAgentError:
    return QAgentError(f"{name}: no file in it can be read; those end in {', '.join(FORMS)}")


def is_hidden(name: str) -> bool:
    """Whether a folder's file is none of the data, such as `.DS_Store` or `_SUCCESS`."""
    return name.startswith((".", "_"))


def _is_about(name: str) -> bool:
    """Whether a file only tells of the others, such as README.txt."""
    path = PurePosixPath(name.lower())
    return path.suffix == ".txt" and path.stem in _ABOUT


def _file(path: Path, short: str = "") -> list[Location]:
    partitions = _partitions(path)
    short = short or (path.as_posix() if partitions and not path.is_absolute() else path.name)
    if form_of(path.name)[0] != "zip":
        return [Location(str(path), None, short, partitions)]
    members = readable_members(path, str(path))
    if not members:
        raise _no_files(str(path))
    return [
        Location(str(path), member, f"{short}{SEPARATOR}{member}", partitions) for member in members
    ]


def readable_members(path: Path, name: str) -> list[str]:
    """The files of an archive whose names tell a form, without those that are about the others."""
    return [m for m in zip_members(path, name) if form_of(m)[0] and not _is_about(m)]


def _partitions(path: Path) -> tuple[tuple[str, str | None], ...]:
    """The columns that the folders of a path stand for: ``date=2026-01-01/country=de/``."""
    partitions = {}
    for part in path.parent.parts:
        key, separator, value = part.partition("=")
        if separator and key:
            partitions[unquote(key)] = None if value == NO_PARTITION else unquote(value)
    return tuple(partitions.items())
