"""What kind of thing a product is, by the words of its title."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

from .text import character_bigrams, split_scripts, words

STOP_WORDS = frozenset(
    """a an and the of for with by in on to from or at as per new pack set inch inches count ct oz
    lb lbs pcs pc piece pieces box size x w h""".split()  # noqa: SIM905
)


def title_kinds(titles: Mapping[str, str], brands: Mapping[str, str | None]) -> dict[str, str]:
    """What kind of thing each product is, by words of its title (`title_queries`).

    None in a catalog without brands: there a title is a name (games, books). ``brands`` are those
    of the whole catalog.
    """
    return title_queries(titles, brands) if any(brands.values()) else {}


def title_queries(titles: Mapping[str, str], brands: Mapping[str, str | None]) -> dict[str, str]:
    """Derive a query of one or two words from the title of each product.

    They are to say what kind of thing it is: words of the title that name no brand, number or
    stop word, and of these the two that most titles of the catalog share, so that products of a
    kind share a query. In scripts without spaces character bigrams stand for words.
    """
    frequency: Counter[str] = Counter()
    terms_of: dict[str, list[str]] = {}
    for product, title in titles.items():
        brand = brands.get(product) or ""
        brand_words = {*words(brand), *_content_words(brand)}
        # Behind the first comma or dash stand details.
        head = re.split(r"[,(\[|]| - ", title, maxsplit=1)[0]
        for text in (head, title):
            content = [word for word in _content_words(text) if word not in brand_words]
            if content:
                break
        terms_of[product] = list(dict.fromkeys(_singular(word) for word in content))
        frequency.update(terms_of[product])
    queries = {}
    for product, terms in terms_of.items():
        shared = [term for term in terms if frequency[term] > 1] or terms
        best = sorted(shared, key=lambda term: -frequency[term])[:2]
        if best:
            queries[product] = " ".join(sorted(best, key=shared.index))
    return queries


def _content_words(text: str) -> list[str]:
    """Words of three letters or more that are no stop words, and character bigrams."""
    content: list[str] = []
    for word in words(text):
        for part, unspaced in split_scripts(word):
            if unspaced:
                content += [pair for pair in character_bigrams(part) if len(pair) > 1]
            elif len(part) > 2 and part not in STOP_WORDS and all(map(_is_letter, part)):
                content.append(part)
    return content


def _is_letter(c: str) -> bool:
    return c.isalpha() or unicodedata.category(c)[0] == "M"


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
