"""The language in which a user says where fields lie: paths, renamed values and keys of joins."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar, get_args

from ..utils.database import literal
from ..utils.settings import SettingError
from .columns import ATTRIBUTE, FIELDS, TYPE_NAMES, parse_mapping
from .options import Kind

T = TypeVar("T")
_STEP = re.compile(r'\."([^"]*)"|\.([^.\[\]]+)|\[(\d*)\]')


@dataclass(frozen=True, slots=True)
class FieldPath:
    """A value inside a column: ``items[].offer.id`` is the offer's id of each of the items."""

    column: str
    steps: tuple[str | int | None, ...] = ()  # a key, an element's number, or None for each one

    def lists(self) -> list[tuple[str | int | None, ...]]:
        """The steps up to each list that is spread over rows."""
        return [self.steps[:i] for i, step in enumerate(self.steps) if step is None]


def resolve_path(text: str, columns: Collection[str]) -> FieldPath | None:
    """The path that a text means among these columns; None where no column begins it.

    A column whose own name has dots wins over a path into another.
    """
    ends = [len(text), *reversed([match.start() for match in re.finditer(r"[.\[]", text)])]
    for end in ends:
        steps = _parse_steps(text[end:]) if text[:end] in columns else None
        if steps is not None:
            return FieldPath(text[:end], steps)
    return None


def _parse_steps(text: str) -> tuple[str | int | None, ...] | None:
    steps: list[str | int | None] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            return None
        quoted, key, number = match.groups()
        if number is None:
            steps.append(key if quoted is None else quoted)
        else:
            steps.append(int(number) if number else None)
        position = match.end()
    return tuple(steps)


def json_path(steps: Iterable[str | int | None]) -> str:
    """Steps without lists as SQL: a path as DuckDB's JSON functions take it."""
    # Letters beyond ASCII stay as they are: DuckDB's paths know no \\u escapes.
    parts = (
        f"[{step}]" if isinstance(step, int) else "." + json.dumps(step, ensure_ascii=False)
        for step in steps
    )
    return literal("$" + "".join(parts))


def parse_values(entries: Iterable[str], kind: Kind) -> tuple[tuple[str, str, str], ...]:
    """``["type:view_item=view"]`` to triples of field, the file's value, and ours.

    Raises:
        SettingError: an entry cannot be read, or names a field or an event type that does not
            exist.
    """
    values = []
    for entry in entries:
        field, colon, change = entry.partition(":")
        given, equals, meant = change.rpartition("=")
        if not (field and colon and equals and given):
            raise SettingError(
                "values", f"{entry!r} cannot be read: write it as field:value=meaning"
            )
        is_attribute = kind == "products" and field.startswith(ATTRIBUTE)
        if field not in FIELDS[kind] and not is_attribute:
            known = ", ".join(FIELDS[kind])
            raise SettingError("values", f"{entry!r}: {kind} have no field {field!r}, only {known}")
        if field == "type" and normal(meant) not in {"", *TYPE_NAMES}:
            known = ", ".join(dict.fromkeys(TYPE_NAMES.values()))
            raise SettingError("values", f"{entry!r}: {meant!r} is no event type; use {known}")
        values.append((field, given, meant))
    return tuple(values)


def parse_any_kind(
    pairs: Iterable[str], entries: Iterable[str]
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, str], ...]]:
    """`parse_mapping` and `parse_values` of fields that some kind has.

    Raises:
        SettingError: an entry cannot be read, or names a field of no kind.
    """
    return (
        tuple(pair for text in pairs for pair in _of_any_kind(parse_mapping, text)),
        tuple(value for text in entries for value in _of_any_kind(parse_values, text)),
    )


def _of_any_kind(parse: Callable[[list[str], Kind], tuple[T, ...]], text: str) -> tuple[T, ...]:
    for kind in get_args(Kind):
        with contextlib.suppress(SettingError):
            return parse([text], kind)
    return parse([text], "events")


def normal(value: str) -> str:
    """A value as values are compared: ``"View-Item "`` is ``"view_item"``."""
    return re.sub("[ -]", "_", value.strip(" ").lower())


def changed_value(
    field: str, text: str, values: Iterable[tuple[str, str, str]], nothing: str = ""
) -> str:
    """SQL: a field's text with the values that the user renamed.

    Args:
        nothing: Begins the text of a value with an empty meaning, which else is NULL.
    """
    changes = {normal(given): meant for name, given, meant in values if name == field}
    if not changes:
        return text
    unknown = {given: f"{nothing}{given}" if nothing else None for given in changes}
    meanings = {given: meant or unknown[given] for given, meant in changes.items()}
    cases = " ".join(
        f"WHEN {literal(given)} THEN {'NULL' if meant is None else literal(meant)}"
        for given, meant in meanings.items()
    )
    compared = f"replace(replace(lower(trim({text})), ' ', '_'), '-', '_')"
    return f"CASE {compared} {cases} ELSE {text} END"


@dataclass(frozen=True, slots=True)
class JoinKey:
    """The columns by which rows of two files belong together."""

    file: str
    joined: str


def parse_key(text: str) -> JoinKey:
    """``"query_id"``, or ``"id=query_id"`` where the joined file calls it otherwise."""
    file, _, joined = text.partition("=")
    if not file:
        raise SettingError("on", f"{text!r} cannot be read: write a column, or column=column")
    return JoinKey(file, joined or file)


def key_value(text: str) -> str:
    """SQL: a key as it is compared: ids are the same with and without dashes and capitals."""
    return f"nullif(lower(replace(trim({text}), '-', '')), '')"
