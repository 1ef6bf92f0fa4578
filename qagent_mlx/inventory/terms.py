"""Words as shops need them: model numbers, units and plurals that are written many ways."""

from __future__ import annotations

import re
from functools import lru_cache

from ..text import words

_BREAK = re.compile(r"[:;,()\[\]|/]|\s[-–—]\s")
_PARTS = re.compile(r"\d+|[^\W\d_]+")


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


def product_terms(text: str) -> list[str]:
    """Index terms of a title or query.

    Each word in singular, its letter and digit parts, and each pair of neighbours of which
    one is a number joined: "Gears of War 3" and "gears of war3" share ``war``, ``3`` and
    ``war3``.
    """
    found = words(text)
    terms: list[str] = []
    for i, word in enumerate(found):
        terms += _forms(word)
        if i and (word[0].isdigit() or found[i - 1][-1].isdigit()) and word != found[i - 1]:
            terms.append(found[i - 1] + word)
    return terms


ALIAS = "~"  # marks index terms that are no word of the text; words never hold it
_LONGEST = 5  # words whose initials are taken


def is_word(term: str) -> bool:
    """Whether an index term is a word of letters, as opposed to a number or an alias."""
    return term.isalpha()


def aliases(title: str) -> list[str]:
    """Index terms for the ways people shorten a title, each once.

    The initials of the two to five words that a title, or a part of it after a colon, comma,
    bracket or dash, begins with, and those before a number with it: "Call of Duty: Modern
    Warfare 3" is found by ``cod``, ``mw`` and ``mw3``.
    """
    made: dict[str, None] = {}
    for segment in _BREAK.split(title):
        initials = ""
        for part in (p for word in words(segment) for p in _PARTS.findall(word)):
            if part.isdigit():
                if len(initials) > 1:
                    made[f"{ALIAS}{initials}{part}"] = None
                break
            if len(initials) == _LONGEST:
                break
            if part != "s":  # of a genitive
                initials += part[0]
                if len(initials) > 1:
                    made[ALIAS + initials] = None
    return list(made)
