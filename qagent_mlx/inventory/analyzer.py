"""Words as shops need them: model numbers, units and plurals that are written many ways.

Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and
Korean, whose words carry endings, are cut into overlapping pairs of characters, as Lucene's
CJK analyser does; no dictionary is needed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

from ..utils.text import HAN, UNSPACED, graphemes, split_scripts, words

# Version 1 left runs without spaces, and combining marks, uncut.
ANALYZER_VERSION = 2

_BREAK = re.compile(r"[:;,()\[\]|/]|\s[-–—]\s")
_PARTS = re.compile(r"\d+|\D+")  # of a word, which holds only letters, their signs, and digits
_SIGN = re.compile(f"[{HAN}]")


@lru_cache(maxsize=1 << 17)
def _forms(word: str) -> tuple[str, ...]:
    parts = _PARTS.findall(word)
    forms = [_singular(word)]
    if len(parts) > 1:  # "war3" is found by "war" and "3", "64gb" by "64" and "gb"
        forms += [_singular(p) for p in parts]
    return tuple(forms)


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        if word.endswith(("ches", "shes", "xes", "sses")):
            return word[:-2]
        return word[:-1]
    return word


@lru_cache(maxsize=1 << 17)
def character_bigrams(run: str) -> tuple[str, ...]:
    """A run's neighbouring characters, each with its signs; and Han characters by themselves,
    as they are words."""
    signs = graphemes(run)
    if len(signs) == 1:
        return (run,)
    alone = [sign for sign in signs if _SIGN.match(sign)]
    return (*(a + b for a, b in pairwise(signs)), *alone)


def product_terms(text: str) -> list[str]:
    """Index terms of a title or query.

    Each word in singular, its letter and digit parts, and each pair of neighbours of which
    one is a number joined: "Gears of War 3" and "gears of war3" share ``war``, ``3`` and
    ``war3``. Of scripts without spaces the pairs of characters: 折叠帐篷 and 帐篷 share 帐篷.
    """
    terms: list[str] = []
    before = ""
    for word in words(text):
        for piece, unspaced in split_scripts(word):
            if unspaced:
                terms += character_bigrams(piece)
                before = ""
                continue
            terms += _forms(piece)
            if before and (piece[0].isdigit() or before[-1].isdigit()) and piece != before:
                terms.append(before + piece)
            before = piece
    return terms


def has_outdated_terms(terms: Iterable[str]) -> bool:
    """Whether version 1 made some of these terms of texts that are cut differently now."""
    return any(
        UNSPACED.search(term) or any(unicodedata.category(c)[0] == "M" for c in term)
        for term in terms
        if not term.isascii()
    )


INITIALISM = "~"  # marks index terms that are no word of the text; words never hold it
_LONGEST = 5  # words whose initials are taken


def is_word(term: str) -> bool:
    """Whether an index term is a word of letters, as opposed to a number or an alias."""
    return term.isalpha()


def initialisms(title: str) -> list[str]:
    """Index terms for the ways people shorten a title, each once.

    The initials of the two to five words that a title, or a part of it after a colon, comma,
    bracket or dash, begins with, and those before a number with it: "Call of Duty: Modern
    Warfare 3" is found by ``cod``, ``mw`` and ``mw3``.
    """
    made: dict[str, None] = {}
    for segment in _BREAK.split(title):
        initials = ""
        parts = (
            (part, unspaced)
            for word in words(segment)
            for piece, unspaced in split_scripts(word)
            for part in _PARTS.findall(piece)
        )
        for part, unspaced in parts:
            if unspaced:  # where words begin is not known
                break
            if part.isdigit():
                if len(initials) > 1:
                    made[f"{INITIALISM}{initials}{part}"] = None
                break
            if len(initials) == _LONGEST:
                break
            if part != "s":  # of a genitive
                initials += part[0]
                if len(initials) > 1:
                    made[INITIALISM + initials] = None
    return list(made)
