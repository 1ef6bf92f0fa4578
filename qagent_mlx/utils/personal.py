"""Text that looks like somebody's own data: mail addresses, phone and card numbers, long digits."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

LONG_DIGITS = 8  # in a row: numbers of customers, orders and accounts; a year has four

_DOMAINS = "com|net|org|de|at|ch|fr|es|it|nl|pl|uk|co|eu|us|me|info"
_MAIL = re.compile(
    rf"""\S\s?@\s?\S|\S@\s*$          # also while it is typed
    |\S+\s*(?:\(at\)|\[at\])\s*\S
    |\b(?:gmail|googlemail|hotmail|icloud|outlook|protonmail|yahoo|gmx|web)
      (?:\s?\.\s?|\s|)(?:{_DOMAINS})\b""",
    re.IGNORECASE | re.VERBOSE,
)
_LONG = re.compile(rf"\d{{{LONG_DIGITS},}}")
# Groups of digits with a single mark between them: 0171 234 5678, (030) 12345-67, +1.555.010.9999.
_GROUPS = re.compile(r"(?<![\w.,])(?:\+|\(|\d)[\d()./ -]*\d")
_AMERICAN = re.compile(r"(?<!\d)\(?\d{3}\)?[-. /]\s?\d{3}[-. ]\d{4}(?!\d)")
_CARD_DIGITS = range(13, 20)
_PHONE_DIGITS = range(7, 16)


@lru_cache(maxsize=200_000)
def looks_personal(text: str) -> bool:
    """Whether a query looks like a mail address, a phone or card number, or holds long digits.

    It errs to the safe side: a long article number looks like any other long number.
    """
    text = unicodedata.normalize("NFKC", text)
    if _MAIL.search(text):
        return True
    if not any(character.isdigit() for character in text):
        return False
    if _LONG.search(text) or _AMERICAN.search(text):
        return True
    return any(_is_number(match[0]) for match in _GROUPS.finditer(text))


def _is_number(group: str) -> bool:
    """Whether digits in groups are a phone's or a card's."""
    digits = "".join(character for character in group if character.isdigit())
    is_dialled = group[0] in "+(" or digits[0] == "0"
    return (is_dialled and len(digits) in _PHONE_DIGITS) or (
        len(digits) in _CARD_DIGITS and luhn(digits)
    )


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit that cards have (Luhn's)."""
    total = 0
    for place, character in enumerate(reversed(digits)):
        value = int(character)
        if place % 2:
            value = 2 * value - 9 * (value > 4)
        total += value
    return total % 10 == 0
