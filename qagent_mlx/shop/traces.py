"""What files tell of a user: rows of theirs, and queries that nobody but them has typed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from ..utils.atomic_files import replacing, write_text
from ..utils.database import identifier, literal, open_duckdb, write_parquet
from ..utils.text import query_key, words

# Numbers only, or files with a way of forgetting of their own.
_LEFT_OUT = (".safetensors", ".npy", ".npz", ".usearch", ".duckdb", ".wal", ".lock")
# Nobody can tell what these hold: copies of a database, and what is compressed.
_CLOSED = (".duckdb", ".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz", ".7z", ".rar", ".xlsx")
_OWN_DATABASE = ("shop.duckdb", "shop.duckdb.wal")  # rewritten without the user
_SHORTEST = 5  # characters of an id or a query that files of unknown kinds are searched for


class Traces:
    """A user's id, and the queries that only this user has typed.

    Args:
        user: The id.
        queries: As they were typed.
        common: Words of the catalog. A query of one of them alone is no trace inside a longer
            text, where anybody may have written it.
    """

    def __init__(self, user: str, queries: Iterable[str], common: Collection[str] = ()) -> None:
        self.user, self.queries = user, tuple(queries)
        self.keys = sorted({query_key(query) for query in self.queries})
        inside: list[str] = []  # patterns that are looked for in longer texts
        whole: list[str] = []  # of texts, lines and JSON strings
        for parts in {tuple(words(query)) for query in self.queries} - {()}:
            is_common = len(parts) == 1 and parts[0] in common
            pattern = r"[\W_]*".join(map(re.escape, parts))
            (whole if is_common else inside).append(pattern)
        alternatives = [rf"(?<!\w)(?:{'|'.join(inside)})(?!\w)"] if inside else []
        alternatives += [rf'(?:^|["\n])(?:{"|".join(whole)})(?:["\n]|$)'] if whole else []
        self._pattern = re.compile("|".join(alternatives)) if alternatives else None

    def in_text(self, text: str | None) -> bool:
        """Whether a text is the id, or holds one of the queries."""
        if not text:
            return False
        if text == self.user:
            return True
        if self._pattern is None:
            return False
        if text[0] in "{[" and "\\u" in text:  # JSON that writes letters as escapes
            with contextlib.suppress(ValueError, RecursionError):
                return self.in_value(json.loads(text))
        if not text.isascii():
            text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return self._pattern.search(text.lower()) is not None

    def in_value(self, value: Any) -> bool:
        """Whether any text in nested plain values is a trace."""
        if isinstance(value, str):
            return self.in_text(value)
        if isinstance(value, dict):
            return any(map(self.in_value, (*value, *value.values())))
        return isinstance(value, list) and any(map(self.in_value, value))

    def in_json(self, text: str) -> bool:
        """Whether any text in a JSON document is a trace."""
        return self.in_value(json.loads(text))

    def in_bytes(self, data: bytes) -> bool:
        """Whether a file of any kind holds the id or a query, also with JSON's escapes."""
        said = data.decode("utf-8", "replace").casefold()
        texts = [t for t in (self.user, *self.queries) if len(t) >= _SHORTEST]
        texts += [json.dumps(text)[1:-1] for text in texts]
        return any(text.casefold() in said for text in texts)


def erase_from_files(folder: Path, traces: Traces, skip: Collection[str] = ()) -> dict[str, int]:
    """Delete the rows that hold a trace from all tables of a folder.

    Args:
        folder: Searched with all below it.
        traces: What to look for.
        skip: Names of entries of the folder itself that are left alone.

    Returns:
        Numbers of deleted rows by the file's path, where there were any.
    """
    erased = {}
    for path in _files(folder, skip):
        erase = _ERASERS.get(path.suffix)
        rows = erase(path, traces) if erase is not None else 0
        if rows:
            erased[str(path)] = rows
    return erased


def files_with_traces(folder: Path, traces: Traces, skip: Collection[str] = ()) -> list[Path]:
    """The files of a folder that hold a trace and are no tables, such as a tokenizer's words.

    And those that cannot be looked into, so that somebody does.
    """
    found = []
    for path in _files(folder, (*skip, *_OWN_DATABASE)):
        is_closed = path.suffix.lower() in _CLOSED
        if is_closed or (_is_text(path) and traces.in_bytes(path.read_bytes())):
            found.append(path)
    return found


def _is_text(path: Path) -> bool:
    return path.suffix not in _LEFT_OUT and path.suffix not in _ERASERS


def _files(folder: Path, skip: Collection[str]) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name in skip or entry.is_symlink():
            continue
        for path in [entry] if entry.is_file() else sorted(entry.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path


def _erase_from_parquet(path: Path, traces: Traces) -> int:
    try:
        with open_duckdb() as connection:
            connection.create_function("in_text", traces.in_text, ["VARCHAR"], "BOOLEAN")
            connection.create_function("in_json", traces.in_json, ["VARCHAR"], "BOOLEAN")
            table = f"read_parquet({literal(path)})"
            columns = connection.execute(f"DESCRIBE FROM {table}").fetchall()
            texts: list[str] = []
            conditions: list[str] = []
            for name, kind, *_ in columns:
                quoted = identifier(name)
                if kind == "VARCHAR":
                    texts.append(quoted)
                elif kind == "VARCHAR[]":
                    texts.append(f"array_to_string({quoted}, chr(10))")
                    conditions.append(f"list_contains({quoted}, {literal(traces.user)})")
                elif re.search(r"[\[(]|BLOB|JSON|UUID", kind) and not kind.startswith("DECIMAL"):
                    conditions.append(f"in_json(to_json({quoted})::VARCHAR)")
            conditions += [f"in_text({text})" for text in texts]
            if not conditions:
                return 0
            # NULL holds nothing.
            holds = " OR ".join(f"coalesce({condition}, false)" for condition in conditions)
            ((rows,),) = connection.execute(
                f"SELECT count(*) FROM {table} WHERE {holds}"
            ).fetchall()
            if rows:
                write_parquet(connection, f"FROM {table} WHERE NOT ({holds})", path)
            return int(rows)
    except duckdb.Error as error:
        raise QAgentError(f"{path} is damaged; delete it and try again") from error


def _erase_from_json_lines(path: Path, traces: Traces) -> int:
    kept, erased = [], 0
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        try:
            holds = traces.in_value(json.loads(line)) if line.strip() else False
        except (ValueError, RecursionError):  # torn by a crash
            holds = traces.in_bytes(line.encode("utf-8", "surrogateescape"))
        erased += holds
        if not holds:
            kept.append(line)
    if erased:
        _replace_text(path, "\n".join(kept))
    return erased


def _erase_from_csv(path: Path, traces: Traces) -> int:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size + 1))
        try:
            rows = list(csv.reader(file))
        except csv.Error as error:
            raise QAgentError(f"{path} is damaged ({error}); delete it and try again") from error
    kept = [row for row in rows if not traces.in_value(row)]
    if len(kept) < len(rows):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(kept)
        _replace_text(path, text.getvalue())
    return len(rows) - len(kept)


def _replace_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


_ERASERS = {
    ".parquet": _erase_from_parquet,
    ".jsonl": _erase_from_json_lines,
    ".csv": _erase_from_csv,
}


# ---------------------------------------------------------------- files outside of the shop

_EXPORTS = "exports.jsonl"


def note_export(shop: Path, path: Path) -> None:
    """Remember that a file or folder got what the shop holds of users, for `known_exports`.

    Where the shop's folder cannot be written nothing is remembered.
    """
    place = str(path.resolve())
    known = _noted(shop)
    if place not in known:
        try:
            write_text(shop / _EXPORTS, "".join(json.dumps(p) + "\n" for p in (*known, place)))
        except QAgentError:
            return


def known_exports(shop: Path) -> list[Path]:
    """Files and folders outside of the shop that got what it held of users, and are still there."""
    places = map(Path, _noted(shop))
    inside = shop.resolve()
    return [p for p in places if p.exists() and not p.is_relative_to(inside)]


def _noted(shop: Path) -> list[str]:
    try:
        lines = (shop / _EXPORTS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    noted = []
    for line in lines:
        try:
            place = json.loads(line)
        except ValueError:
            continue
        if isinstance(place, str):
            noted.append(place)
    return noted
