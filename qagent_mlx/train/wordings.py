"""Queries that a shopper might ask for a product with: its kind, brand and kind, detail and kind.

Where nobody's queries are known, a policy learns to write from these: a product that a user went on
to engage with is turned into the queries that would have led there.
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from ..inventory.catalog import Catalog
from ..utils.text import share_words, words
from ..utils.title_words import title_queries

MOST_DETAIL_WORDS = 2  # of an attribute's value; longer ones are descriptions
_Attributes = msgspec.json.Decoder(dict[str, object])


class Wordings:
    """Queries for the products of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._queries: dict[int, tuple[str, ...]] = {}

    @cached_property
    def _title_kinds(self) -> dict[str, str]:
        """Product id -> what kind of thing its title says it is."""
        catalog = self._catalog
        titles = dict(zip(catalog.ids, catalog.titles, strict=True))
        return title_queries(titles, dict(zip(catalog.ids, catalog.brands, strict=True)))

    def queries(self, row: int) -> tuple[str, ...]:
        """Different queries for the product of a catalog row, the widest first.

        Its kind is the last level of its category path, or what titles like its own share.
        """
        if row not in self._queries:
            self._queries[row] = tuple(self._compose(row))
        return self._queries[row]

    def _compose(self, row: int) -> dict[str, None]:
        catalog = self._catalog
        leaf = " ".join(words(catalog.leaf(row)))
        named = self._title_kinds.get(catalog.ids[row], "")
        kinds = list(dict.fromkeys(kind for kind in (leaf, named) if kind))
        brand = " ".join(words(catalog.brands[row] or ""))
        queries = dict.fromkeys(kinds)
        for kind in kinds:
            for detail in [brand, *self._details(row)]:
                if detail and not share_words(detail, kind):
                    queries[f"{detail} {kind}"] = None
        return queries

    def _details(self, row: int) -> list[str]:
        """Short values of a product's attributes that its title names, such as a size."""
        text = self._catalog.attributes[row]
        attributes = _Attributes.decode(text) if text else {}
        title = set(words(self._catalog.titles[row]))
        details = [words(str(value)) for value in attributes.values()]
        return [
            " ".join(detail)
            for detail in details
            if 0 < len(detail) <= MOST_DETAIL_WORDS and set(detail) <= title
        ]
