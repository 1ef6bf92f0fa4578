"""``qagent_mlx.ingest``: load files into a shop from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..shop.shop import Shop
from .columns import parse_mapping
from .ingest import ingest_files
from .options import Kind, ReadOptions
from .report import IngestReport


def ingest(
    shop: Shop | str | Path,
    files: str | Path | Sequence[str | Path],
    kind: Kind,
    mapping: Mapping[str, str] | None = None,
    values: Mapping[str, Mapping[str, str]] | None = None,
    **options: Any,
) -> IngestReport:
    """Load files into a shop, as ``qagent ingest products`` and ``events`` do.

        qa.ingest("shop", "clicks.csv", "events", mapping={"product_id": "sku"}, event_type="click")

    Args:
        shop: Its folder, or a `Shop` that is open for writing.
        files: One or more files, patterns, folders, tables or addresses.
        kind: ``products``, ``events``, ``impressions`` (products that users were shown) or
            ``recommendations`` (queries that they were shown).
        mapping: The column, or a path into one, of each field that is not called as usual.
        values: By field, what values that are called otherwise mean: ``{"type": {"buy": "cart"}}``.
        options: Further fields of `ReadOptions`, such as ``dry_run`` or ``max_rejects``.

    Raises:
        QAgentError: a file cannot be read, or most of its rows are bad; nothing of it is stored.
    """
    paths = [files] if isinstance(files, (str, Path)) else list(files)
    pairs = [f"{field}={column}" for field, column in (mapping or {}).items()]
    renamed = [
        (field, value, meaning)
        for field, meanings in (values or {}).items()
        for value, meaning in meanings.items()
    ]
    reading = ReadOptions(parse_mapping(pairs, kind), values=tuple(renamed), **options)
    with writable(shop) as opened:
        return ingest_files(opened, kind, paths, reading)


@contextmanager
def writable(shop: Shop | str | Path) -> Iterator[Shop]:
    """The shop of a folder, open for writing in the block; or the shop itself.

    Raises:
        QAgentError: the shop is open for reading.
    """
    if not isinstance(shop, Shop):
        with Shop.open(shop, read_only=False) as opened:
            yield opened
    elif shop.read_only:
        raise QAgentError(
            f"{shop.path} is open for reading; close it and give its folder, or open it with "
            "Shop.open(path, read_only=False)"
        )
    else:
        yield shop
