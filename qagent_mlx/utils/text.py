"""One normalisation of text, used wherever two texts are compared.

`words` folds case (NFKC), keeps letters, digits and combining marks, and splits at everything
else. `query_key` joins the words: two queries are *equal* when their keys are, so "Gears of War3"
equals "gears of war 3". What is shown keeps the user's own spelling.

Where two texts are compared by what they share, `tokens` splits scripts that put no spaces
between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and Korean, whose words carry
endings, into characters, as ROUGE does for Chinese.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timezone
from functools import lru_cache
from itertools import pairwise

_INVISIBLE = "\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[\x00-\x1f{_INVISIBLE}]+")
_CONTROL_IN_LINES = re.compile(f"[\x00-\x09\x0b-\x1f{_INVISIBLE}]")
_SPACE = re.compile(r"\s+")
_TITLE_BREAK = re.compile(r"[,:(\[|]| - ")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN = re.compile(f"[{HAN}]")
UNSPACED = re.compile(
    f"([{HAN}\u3041-\u30ff\u31f0-\u31ff"  # kana
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\uac00-\ud7af]+)"  # Hangul
)


def words(text: str) -> list[str]:
    """The normalised words of ``text``: ``"Wi-Fi, 5GHz" -> ["wi", "fi", "5ghz"]``."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c if c.isalnum() or _is_mark(c) else " " for c in text).split()


def title_head(title: str, most: int = 4) -> str:
    """The first words of a title, up to the first comma, colon, bracket or dash; in lower case."""
    head = next((p for p in _TITLE_BREAK.split(title) if words(p)), title)
    return " ".join(head.lower().split()[:most])


def share_words(one: str, other: str) -> bool:
    """Whether two texts have a normalised word in common."""
    return not set(words(one)).isdisjoint(words(other))


def _without_accents(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", word) if not _is_mark(c))


def _is_mark(c: str) -> bool:
    return unicodedata.category(c)[0] == "M"


def split_scripts(word: str) -> list[tuple[str, bool]]:
    """Split a word into parts, each with whether its script puts no spaces between words."""
    if word.isascii() or not UNSPACED.search(word):
        return [(word, False)]
    return [(part, i % 2 == 1) for i, part in enumerate(UNSPACED.split(word)) if part]


def graphemes(run: str) -> list[str]:
    """Split a text into characters, each with the combining marks that stand on it."""
    characters: list[str] = []
    for c in run:
        if characters and _is_mark(c):
            characters[-1] += c
        else:
            characters.append(c)
    return characters


def vocabulary(text: str) -> list[str]:
    """What tells known text from unknown: words without accents, or pairs of characters.

    Single characters say little in a script without spaces, so runs of it are split into pairs of
    neighbours. Accents are left out as many leave them out who type.
    """
    if text.isascii():
        return words(text)
    parts: list[str] = []
    for word in words(text):
        for part, unspaced in split_scripts(word):
            run = graphemes(part) if unspaced else [_without_accents(part)]
            parts += map("".join, pairwise(run)) if len(run) > 1 else run
    return parts


def tokens(text: str) -> list[str]:
    """The normalised words, or characters in scripts without spaces: ``["dior", "口", "红"]``."""
    if text.isascii():
        return words(text)
    return [
        token
        for word in words(text)
        for part, unspaced in split_scripts(word)
        for token in (graphemes(part) if unspaced else [part])
    ]


@lru_cache(maxsize=1 << 16)
def query_key(text: str) -> str:
    """The identity of a query: its normalised words without the gaps between them."""
    joined = "".join(words(text))
    # Letters that meet in joining may compose, as an e and an accent do.
    return joined if joined.isascii() else unicodedata.normalize("NFKC", joined)


def clean(text: str) -> str:
    """One line of printable text: control and direction characters and runs of space go."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()  # most texts are clean already
    return _SPACE.sub(" ", _CONTROL.sub(" ", text)).strip()


def clean_id(text: str) -> str:
    """An id of a user or a product as it is stored: ``" u 1\\t"`` names the same one as ``"u 1"``.

    Ingest's SQL (`ingest.parse_fields.clean_id`) does the same to columns of ids.
    """
    return clean(text)


def strip_control_characters(text: str) -> str:
    """Replace what a terminal would obey by spaces; line breaks and columns stay."""
    return _CONTROL_IN_LINES.sub(" ", text)


def escape_control_characters(text: str) -> str:
    """The same JSON, with what a terminal would obey written as escapes."""
    return _CONTROL_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def parse_utc(text: str) -> datetime:
    """A naive UTC datetime from ISO 8601; a time without a zone is UTC.

    A ValueError if it is no time, an OverflowError if it lies outside of the years 1 to 9999.
    """
    moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    if moment.tzinfo is None:
        return moment
    return moment.astimezone(timezone.utc).replace(tzinfo=None)


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 over `tokens`, in [0, 1] (Lin, 2004); 1 for texts with equal keys."""
    from rapidfuzz.distance import LCSseq  # not needed by the command line's help

    a, b = tokens(candidate), tokens(reference)
    if not a or not b:
        return 0.0
    if "".join(a) == "".join(b):
        return 1.0
    return 2.0 * LCSseq.similarity(a, b) / (len(a) + len(b))


@lru_cache(maxsize=1 << 17)
def character_bigrams(run: str) -> tuple[str, ...]:
    """Pairs of neighbouring characters, and each Han character, which is a word of its own."""
    characters = graphemes(run)
    if len(characters) == 1:
        return (run,)
    han = [character for character in characters if _HAN.match(character)]
    return (*(a + b for a, b in pairwise(characters)), *han)
