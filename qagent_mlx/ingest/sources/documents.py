"""Read JSON that is not one object a line: arrays, pretty-printed objects, and lists in an object.

A list may be of any size: DuckDB reads it element by element, and Python only its beginning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from ...errors import QAgentError
from .archives import read_chunks
from .source import MAX_LINE, Source
from .tabular import objects_source
from .text import TextFile

_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()
_MAX_DEPTH = 3  # of a list inside objects: {"hits": {"hits": [...]}}
_TAIL = 1 << 16  # bytes behind a list in which its end is looked for


@dataclass(frozen=True, slots=True)
class Layout:
    """How a JSON file lists its objects."""

    form: str  # lines, array or unstructured, the last two as DuckDB calls them
    list_name: str = ""  # of the list inside the one object, dotted
    start: int = 0  # of that list, in characters
    end: int | None = None  # where the object ends so near that its end was read


def json_compression(compression: str) -> str:
    """The name that DuckDB's reader of JSON has for a compression; before 2.0 no "none"."""
    return "uncompressed" if compression == "none" else compression


def json_layout(head: str, is_row: Callable[[Collection[str]], bool]) -> Layout:
    """Tell the layout from a file's beginning.

    Args:
        head: At least the first line, or 1 MiB.
        is_row: Whether an object with these keys is a product or an event itself.
    """
    text = head.lstrip()
    if text[:1] not in ("[", "{"):
        return Layout("lines")
    first, newline, rest = text.partition("\n")
    if newline and rest.strip() and is_json(first):
        return Layout("lines")
    if text[0] == "[":
        return Layout("array")
    offset = len(head) - len(text)
    try:
        document, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        document, end = None, None
    keys: list[str] = []
    found = _find_list(text, 0, "", keys)
    if document is not None:
        if text[end:].strip():  # several objects, each over several lines
            return Layout("unstructured")
        keys = list(document)
    elif is_json(rest.partition("\n")[0]):  # the first line is broken
        return Layout("lines")
    if found is not None and not is_row(keys):
        name, start = found
        return Layout("array", name, offset + start, None if end is None else offset + end)
    if document is None or not newline or not text[:end].count("\n"):
        return Layout("lines")
    return Layout("unstructured")


def document_source(
    connection: duckdb.DuckDBPyConnection, file: TextFile, layout: Layout, name: str, folder: Path
) -> Source:
    """The objects of a JSON file that has another layout than lines.

    Raises:
        QAgentError: it is no JSON, or holds no objects.
    """
    notes = file.notes
    if layout.list_name:
        file = cut_out_list(file, layout, name, folder)
        notes = (*notes, f"{name}: read the list {layout.list_name} of its object")
    try:
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE lines AS SELECT row_number() OVER () AS row,
                json::VARCHAR AS line, json_type(json) = 'OBJECT' AS good
            FROM read_json_objects(?, format='{layout.form}', compression=?,
                hive_partitioning=false, maximum_object_size={MAX_LINE})""",
            [str(file.path), json_compression(file.compression)],
        )
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise QAgentError(f"{name}: {explain_json(str(error))}") from error
    return replace(objects_source(connection, f"{name}: it holds no JSON objects"), notes=notes)


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _find_list(text: str, start: int, prefix: str, keys: list[str]) -> tuple[str, int] | None:
    """The first list of objects inside an object that begins at ``start``: its name and place.

    Stops at the end of the text. ``keys`` gets the keys before the list.
    """
    try:
        return _scan_object(text, start, prefix, keys)[0]
    except (ValueError, IndexError, RecursionError):
        return None


def _scan_object(
    text: str, position: int, prefix: str, keys: list[str]
) -> tuple[tuple[str, int] | None, int]:
    """The first list of objects and, where there is none, the place behind the object."""
    position = _skip(text, position + 1)
    while text[position] != "}":
        key: Any
        key, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        if not isinstance(key, str) or text[position] != ":":
            raise ValueError("no key")
        position = _skip(text, position + 1)
        name = f"{prefix}{key}"
        if not prefix:
            keys.append(key)
        if text[position] == "[" and text[_skip(text, position + 1)] == "{":
            return (name, position), position
        if text[position] == "{" and name.count(".") + 1 < _MAX_DEPTH:
            found, position = _scan_object(text, position, f"{name}.", keys)
            if found:
                return found, position
        else:
            _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return None, position + 1


def _skip(text: str, position: int) -> int:
    """The place behind blanks."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def cut_out_list(file: TextFile, layout: Layout, name: str, folder: Path) -> TextFile:
    """Write the list inside the one object of a file to a file of its own."""
    target = folder / "list"
    if layout.end is not None:
        _, end = _DECODER.raw_decode(file.head, layout.start)
        target.write_text(file.head[layout.start : end], encoding="utf-8")
        return replace(file, path=target, compression="none")
    skip = len(file.head[: layout.start].encode())
    with target.open("wb+") as output:
        for number, chunk in enumerate(read_chunks(file.path, file.compression, name)):
            if number == 0:
                skip += 3 if chunk.startswith(b"\xef\xbb\xbf") else 0
                chunk = chunk[skip:]
            output.write(chunk)
        size = output.tell()
        begin = max(0, size - _TAIL)
        output.seek(begin)
        last = output.read().rfind(b"]")
        if last < 0:
            raise QAgentError(f"{name}: the list {layout.list_name} has no end; is it cut short?")
        output.truncate(begin + last + 1)
    return replace(file, path=target, compression="none")


def explain_json(message: str) -> str:
    """DuckDB's error about a JSON file, without the path of a temporary one."""
    if "maximum_object_size" in message:
        return f"an object of over {MAX_LINE >> 20} MiB; is this the right file?"
    match = re.search(r"at byte \d+ in record/value (\d+): ([^.]*)", message.splitlines()[0])
    if match:
        number = int(match[1]) - 1  # DuckDB counts the place before the first one
        return f"malformed JSON in object {number} ({match[2]}); is it cut short?"
    return "malformed JSON; is it cut short?"
