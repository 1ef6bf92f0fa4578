"""Split titles and queries into index terms: shops write numbers, units and plurals in many ways.

Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) and
Korean, whose words carry endings, are split into character bigrams, as Lucene's CJK analyser
does; no dictionary is needed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from ..utils.text import UNSPACED, character_bigrams, split_scripts, words

# Version 1 left runs without spaces, and combining marks, uncut.
ANALYZER_VERSION = 2
INITIALISM = "~"  # begins index terms that are initials; no word of a text holds it
MAX_INITIALS = 5

_SEGMENT_END = re.compile(r"[:;,()\[\]|/]|\s[-–—]\s")
_LETTERS_OR_DIGITS = re.compile(r"\d+|\D+")


def product_terms(text: str) -> list[str]:
    """Index terms of a title or query.

    Each word in singular, its letter and digit parts, and each pair of neighbours of which one
    is a number joined: "Gears of War 3" and "gears of war3" share ``war``, ``3`` and ``war3``.
    In scripts without spaces, character bigrams: 折叠帐篷 and 帐篷 share 帐篷.
    """
    terms: list[str] = []
    previous = ""
    for word in words(text):
        for part, unspaced in split_scripts(word):
            if unspaced:
                terms += character_bigrams(part)
                previous = ""
                continue
            terms += _word_terms(part)
            if previous and (part[0].isdigit() or previous[-1].isdigit()) and part != previous:
                terms.append(previous + part)
            previous = part
    return terms


@lru_cache(maxsize=1 << 17)
def _word_terms(word: str) -> tuple[str, ...]:
    parts = _LETTERS_OR_DIGITS.findall(word)
    if len(parts) > 1:  # "64gb" is found by "64" and by "gb"
        return (_singular(word), *map(_singular, parts))
    return (_singular(word),)


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        if word.endswith(("ches", "shes", "xes", "sses")):
            return word[:-2]
        return word[:-1]
    return word


def initialisms(title: str) -> list[str]:
    """Index terms for the ways in which people shorten a title, without duplicates.

    The initials of the two to five words that begin a title or a part of it (behind a colon,
    comma, bracket or dash), also with the number that follows them: "Call of Duty: Modern
    Warfare 3" is found by ``cod``, ``mw`` and ``mw3``.
    """
    terms: dict[str, None] = {}
    for segment in _SEGMENT_END.split(title):
        initials = ""
        parts = (
            (part, unspaced)
            for word in words(segment)
            for run, unspaced in split_scripts(word)
            for part in _LETTERS_OR_DIGITS.findall(run)
        )
        for part, unspaced in parts:
            if part.isdigit() and not unspaced and len(initials) > 1:
                terms[f"{INITIALISM}{initials}{part}"] = None
            # Where words begin is not known in scripts without spaces.
            if unspaced or part.isdigit() or len(initials) == MAX_INITIALS:
                break
            if part != "s":  # of a genitive
                initials += part[0]
                if len(initials) > 1:
                    terms[INITIALISM + initials] = None
    return list(terms)


def has_outdated_terms(terms: Iterable[str]) -> bool:
    """Whether version 1 made some of these terms from texts that are split differently now."""
    return any(
        UNSPACED.search(term) or any(unicodedata.category(c)[0] == "M" for c in term)
        for term in terms
        if not term.isascii()
    )
