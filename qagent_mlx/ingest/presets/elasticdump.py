"""elasticdump, ``_bulk`` files and saved search answers whose documents are of no other format."""

from __future__ import annotations

import shlex

from ...errors import QAgentError
from ..columns import FIELDS
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles, documents

_IDS = ("product_id", "sku", "item_id", "id")


def _column(file: RawFile, kind: str, field: str) -> str | None:
    """The document's key that holds a field, by the names that columns usually have."""
    names = FIELDS[kind][field].split()
    keys = {key.lower(): key for key in reversed(file.columns)}
    return next((keys[name] for name in names if name in keys), None)


def _recognise(file: RawFile) -> str | None:
    if file.form != "json" or file.container not in ("bulk", "elasticdump"):
        return None
    if _column(file, "events", "user_id") and _column(file, "events", "time"):
        return "events"
    return "products" if _column(file, "products", "title") else None


def _read(raw: RawFiles) -> Extract:
    """Documents that elasticdump wrote (``_source``), ``_bulk`` lines, or ``hits.hits``.

    Their keys are read as columns of products or of events are; ``_id`` is the product's id
    where the document has none. UBI and other formats inside are recognised as those. Mappings,
    settings and aliases are not read.
    """
    products = [_select(file, "products") for file in raw.of("products")]
    events = [_select(file, "events") for file in raw.of("events")]
    return Extract(
        products=" UNION ALL BY NAME ".join(products) or None,
        events=" UNION ALL BY NAME ".join(events) or None,
    )


def _select(file: RawFile, kind: str) -> str:
    keys = {field: key for field in FIELDS[kind] if (key := _column(file, kind, field))}
    if kind == "products" and not any(file.has(name) for name in _IDS):
        if not file.has("_id"):
            raise QAgentError(f"{file.path}: the documents have no id")
        keys["product_id"] = "_id"
    objects = [
        (field, key)
        for field, key in keys.items()
        if isinstance(file.record.get(key), dict) and field != "attributes"
    ]
    if objects:
        are = " and ".join(f"{key} (the {field})" for field, key in objects)
        arguments = f"{kind} {shlex.quote(str(file.path))}"
        for field, key in keys.items():
            command = f"qagent ingest {arguments} --map {field}={shlex.quote(_path(file, key))}"
            arguments = command.removeprefix("qagent ingest ")
        raise QAgentError(
            f"{file.path}: {are}: an object; name the part that counts, and all other fields: "
            f"{command}"
        )
    texts = ", ".join(f"d->>'$.\"{key}\"' AS {field}" for field, key in keys.items())
    return f"(SELECT {texts} FROM {documents([file])})"


def _path(file: RawFile, key: str) -> str:
    """The path to a document's field in its file; of an object, to its first number or text."""
    path = key if key == "_id" or file.container == "bulk" else f"_source.{key}"
    value = file.record.get(key)
    if not isinstance(value, dict):
        return path
    plain = [name for name, part in value.items() if not isinstance(part, (dict, list))]
    numbers = [name for name in plain if isinstance(value[name], (int, float))]
    return ".".join([path, *[*numbers, *plain, *value, "name"][:1]])


PRESET = Preset("elasticdump", _recognise, _read)
