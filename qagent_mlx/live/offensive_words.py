"""A list of offensive English words that somebody else keeps, as rules of the merchant."""

from __future__ import annotations

from importlib import resources

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.text import vocabulary

PACKAGE, FILE = "better_profanity", "profanity_wordlist.txt"


def offensive_words() -> list[str]:
    """The words and phrases of the package better-profanity (MIT).

    Raises:
        QAgentError: it is not installed.
    """
    try:
        text = resources.files(PACKAGE).joinpath(FILE).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise QAgentError(
            "the list of offensive words is not installed; run: pip install 'qagent-mlx[offensive]'"
        ) from error
    return text.splitlines()


def without_catalog_words(shop: Shop, lines: list[str]) -> list[str]:
    """Of a list of words or phrases, those of which the catalog has not all words.

    What a shop sells is asked for by name, whatever else the name may mean.
    """
    rows = shop.connection.execute("SELECT title, brand, category FROM products").fetchall()
    sold = {word for texts in rows for text in texts for word in vocabulary(text or "")}
    return [line for line in lines if not sold.issuperset(vocabulary(line) or [""])]
