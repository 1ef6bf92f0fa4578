"""Make columns of the paths that a mapping names, and rows of the elements of lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import duckdb

from ...utils.database import identifier
from ...utils.settings import SettingError
from ..mapping import FieldPath, json_path, resolve_path
from .source import Source

LOOKED_AT = 1000  # rows, for objects where a text belongs


def add_paths(source: Source, names: Iterable[str]) -> Source:
    """The source with a column for each name that is a path into one of its columns.

    Paths with ``[]`` make a row of each element of their list, with one row where it is empty.

    Raises:
        SettingError: the paths go through two lists beside each other.
    """
    paths = {}
    for name in names:
        path = None if name in source.columns else resolve_path(name, source.columns)
        if path is not None:
            paths[name] = path
    if not paths:
        return source
    lists = _nested_lists(paths)

    def text(column: str) -> str:
        if column not in paths:
            return source.text(column)
        whole, steps = _start(source, paths[column])
        return f"json_extract_string({whole}, {json_path(steps)})"

    columns = [*source.columns, *paths]
    if not lists:
        return replace(source, columns=columns, text=text)
    relation = (
        f"(SELECT {source.row} AS qa_row, {source.broken} AS qa_broken, * FROM {source.relation})"
    )
    for number, path in enumerate(lists):
        whole, steps = _start(source, path)
        found = f"json_extract({whole}, {json_path(steps)})"
        relation = (
            f"(SELECT * EXCLUDE (qa_list), unnest({_elements('qa_list')}) AS {_element(number)} "
            f"FROM (SELECT *, {found} AS qa_list FROM {relation}))"
        )
    return replace(
        source, columns=columns, text=text, relation=relation, row="qa_row", broken="qa_broken"
    )


def refuse_objects(
    connection: duckdb.DuckDBPyConnection, table: str, chosen: Mapping[str, str], name: str
) -> None:
    """Refuse a file some of whose columns hold objects where a text belongs.

    Args:
        table: What was staged of it.
        chosen: Columns by field.
        name: Of the file, in errors.

    Raises:
        SettingError: with a mapping to parts of the objects.
    """
    fields = [field for field in chosen if not field.startswith(("attributes", "aliases"))]
    # Few texts begin as an object does, and only those are read as JSON.
    is_object = (
        "json_type(try_cast(CASE WHEN starts_with({0}, '{{') THEN {0} END AS JSON)) = 'OBJECT'"
    )
    counts = ", ".join(
        f"count({field}), any_value({field}) FILTER ({is_object.format(field)}), "
        f"count(*) FILTER ({is_object.format(field)})"
        for field in fields
    )
    (row,) = connection.execute(f"SELECT {counts} FROM (FROM {table} LIMIT {LOOKED_AT})").fetchall()
    parts = {
        field: f"{field}={chosen[field]}.{_main_part(field, json.loads(first))}"
        for number, field in enumerate(fields)
        for filled, first, objects in [row[3 * number : 3 * number + 3]]
        if objects and 2 * objects >= filled  # a shopper may type anything
    }
    if parts:
        what = f"{' and '.join(parts)} {'is an object' if len(parts) == 1 else 'are objects'}"
        helps = f"map what counts of it, as in {', '.join(parts.values())}"
        raise SettingError("mapping", f"{name}: {what}; {helps}")


def _main_part(field: str, value: dict[str, Any]) -> str:
    """The key of an object's id, else of its first number, else of its first text."""
    plain = [key for key, part in value.items() if isinstance(part, (str, int, float))]
    ids = [key for key in plain if field.endswith("_id") and key.lower().endswith(("id", "sku"))]
    numbers = [key for key in plain if re.fullmatch(r"[\d.,]+", str(value[key]))]
    return [*ids, *numbers, *plain, *value, "KEY"][0]


def _nested_lists(paths: dict[str, FieldPath]) -> list[FieldPath]:
    """The lists that paths go through, the outermost first."""
    names = {
        FieldPath(path.column, steps): name
        for name, path in paths.items()
        for steps in path.lists()
    }
    lists = sorted(names, key=lambda path: len(path.steps))
    for outer, inner in pairwise(lists):
        if outer.column != inner.column or inner.steps[: len(outer.steps)] != outer.steps:
            raise SettingError(
                "mapping",
                f"{names[outer]} and {names[inner]} lie in two lists; only one can be spread over "
                "rows, so take one element of the other ([0]), or ingest the file twice",
            )
    return lists


def _start(source: Source, path: FieldPath) -> tuple[str, tuple[str | int | None, ...]]:
    """SQL of the JSON where a path begins, behind its last list, and the steps from there."""
    lists = path.lists()
    if not lists:
        return source.json(path.column), path.steps
    return _element(len(lists) - 1), path.steps[len(lists[-1]) + 1 :]


def _element(number: int) -> str:
    return identifier(f"qa_element{number}")


def _elements(column: str) -> str:
    """SQL: the elements of a JSON list; of another value the value itself."""
    return (
        f"CASE WHEN json_type({column}) = 'ARRAY' AND json_array_length({column}) > 0 "
        f"THEN json_extract({column}, '$[*]') WHEN json_type({column}) = 'ARRAY' "
        f"THEN [NULL::JSON] ELSE [{column}] END"
    )
