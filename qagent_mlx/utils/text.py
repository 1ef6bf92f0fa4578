"""One normalisation of text, used wherever two texts are compared.

`words` folds case (NFKC), keeps letters, digits and combining marks, and splits at
everything else. `query_key` joins the words: two queries are *equal* when their keys are,
so "Gears of War3" equals "gears of war 3". Display text keeps the user's own spelling.

Where two texts are compared by what they share, `tokens` cuts scripts that put no spaces
between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and Korean, whose words carry
endings, into characters, as ROUGE does for Chinese.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timezone
from functools import lru_cache

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069]+")
_COMMANDS = re.compile(  # the same without line breaks
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069]"
)
_SPACE = re.compile(r"\s+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
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
    kept = [c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text]
    return "".join(kept).split()


def split_scripts(word: str) -> list[tuple[str, bool]]:
    """A word's parts, and whether each is of a script that puts no spaces between words."""
    if word.isascii() or not UNSPACED.search(word):
        return [(word, False)]
    return [(part, i % 2 == 1) for i, part in enumerate(UNSPACED.split(word)) if part]


def graphemes(run: str) -> list[str]:
    """A run's characters, each with the signs that stand on it."""
    made: list[str] = []
    for c in run:
        if made and unicodedata.category(c)[0] == "M":
            made[-1] += c
        else:
            made.append(c)
    return made


def tokens(text: str) -> list[str]:
    """The normalised words, of scripts without spaces the characters: ``["dior", "口", "红"]``."""
    found = words(text)
    if text.isascii():
        return found
    return [
        token
        for word in found
        for piece, unspaced in split_scripts(word)
        for token in (graphemes(piece) if unspaced else [piece])
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


def strip_control_characters(text: str) -> str:
    """Text of several lines that a terminal obeys nothing of; columns stay where they are."""
    return _COMMANDS.sub(" ", text)


def escape_control_characters(text: str) -> str:
    """The same JSON, with what a terminal might obey written as escapes."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def parse_utc(text: str) -> datetime:
    """A naive UTC datetime of ISO 8601; one without a zone is UTC.

    Raises:
        ValueError: it is no time.
        OverflowError: in UTC it lies outside of the years 1 to 9999.
    """
    moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    if moment.tzinfo is None:
        return moment
    return moment.astimezone(timezone.utc).replace(tzinfo=None)


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 over `tokens`, in [0, 1] (Lin, 2004); 1 for texts with equal keys."""
    a, b = tokens(candidate), tokens(reference)
    if not a or not b:
        return 0.0
    if "".join(a) == "".join(b):
        return 1.0
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return 2.0 * row[-1] / (len(a) + len(b))
