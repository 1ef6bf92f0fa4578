"""elasticdump, ``_bulk`` files and saved search answers whose documents are of no other format."""

from __future__ import annotations

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
    for field, key in keys.items():
        value = file.record.get(key)
        if isinstance(value, dict) and field != "attributes":
            raise QAgentError(
                f"{file.path}: {key} is an object; name the part that is the {field}: qagent "
                f"ingest {kind} {file.path} --map {field}=_source.{key}.{next(iter(value), 'name')}"
            )
    texts = ", ".join(f"d->>'$.\"{key}\"' AS {field}" for field, key in keys.items())
    return f"(SELECT {texts} FROM {documents([file])})"


PRESET = Preset("elasticdump", _recognise, _read)
