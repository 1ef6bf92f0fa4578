"""Queries for logs without any, from what was engaged with: nobody typed them.

What is engaged with makes a search of its product's derived query just before it, as Ai et al.
(SIGIR 2017, arXiv:1708.08123) do with category paths. Such a query measures whether the next
*kind of product* is foreseen; the shop says so, and every report on it carries the mark.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import replace
from datetime import timedelta

from ..errors import QAgentError
from ..inventory.analyzer import character_bigrams
from ..memory import sessions as event_memory
from ..memory.store import MemoryStore
from ..shop.shop import Shop
from ..utils.text import query_key, split_scripts, words
from .ingest import append, register_functions
from .report import IngestReport

SOURCES = {"categories": "from category paths", "titles": "from titles"}
_STOP = frozenset(
    """a an and the of for with by in on to from or at as per new pack set inch inches count ct oz
    lb lbs pcs pc piece pieces box size x w h""".split()  # noqa: SIM905
)


def category_queries(categories: dict[str, str | None]) -> dict[str, str]:
    """Product -> the query that its category path makes (Ai et al., 2017).

    The path's levels from the second on, each word once, stop words left out, the first level
    kept where it is the only one: ``Office > Paper > Copy Paper`` makes ``paper copy``.
    """
    made = {}
    for product, path in categories.items():
        levels = [level for level in (path or "").split(">") if words(level)]
        kept = levels[1:] or levels
        distinct = dict.fromkeys(w for level in kept for w in words(level) if w not in _STOP)
        if distinct:
            made[product] = " ".join(distinct)
    return made


def title_queries(titles: dict[str, str], brands: dict[str, str | None]) -> dict[str, str]:
    """Product -> a short query made of its title's most telling words.

    The one or two words that say what kind of thing it is: words of the title that name no
    brand, number or stop word and stand in several titles of the catalog, of which the two
    that most products share come first; so that products of a kind share a query. In scripts
    without spaces pairs of characters stand for words.
    """
    shared: Counter[str] = Counter()
    terms: dict[str, list[str]] = {}
    for product, title in titles.items():
        brand = brands.get(product) or ""
        known_brand = {*words(brand), *_telling(brand)}
        # What comes behind the first comma or dash is detail.
        head = re.split(r"[,(\[|]| - ", title, maxsplit=1)[0]
        for text in (head, title):
            found = [w for w in _telling(text) if w not in known_brand]
            if found:
                break
        terms[product] = list(dict.fromkeys(_singular(w) for w in found))
        shared.update(terms[product])
    made = {}
    for product, found in terms.items():
        known = [w for w in found if shared[w] > 1] or found
        best = sorted(known, key=lambda w: (-shared[w], known.index(w)))[:2]
        if best:
            made[product] = " ".join(sorted(best, key=known.index))
    return made


def _telling(text: str) -> list[str]:
    """Words of three letters or more that are no stop words, and pairs of characters."""
    found = []
    for word in words(text):
        for piece, unspaced in split_scripts(word):
            if unspaced:
                found += [pair for pair in character_bigrams(piece) if len(pair) > 1]
            elif len(piece) > 2 and piece not in _STOP and all(map(_is_letter, piece)):
                found.append(piece)
    return found


def _is_letter(c: str) -> bool:
    return c.isalpha() or unicodedata.category(c)[0] == "M"


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def derive_queries(shop: Shop, source: str | None = None) -> IngestReport:
    """Give a log without searches derived ones; new events of such a log get theirs the same way.

    The first click, cart or purchase of a session that has a query makes a search of it one
    second before; whatever was engaged with bears its query, so that each of several things
    that were bought at once is found by its own search.

    Args:
        shop: Open for writing. Its memory is put off until `qagent index`.
        source: Of `SOURCES`; by default as before, else categories where most products have
            one, and titles where they have not.

    Raises:
        QAgentError: people typed the log's queries, or nothing was engaged with.
    """
    connection = shop.connection
    before = shop.config.derived_queries
    ((searches, engaged),) = connection.execute(
        """SELECT count(*) FILTER (type = 'search'),
               count(*) FILTER (type IN ('click', 'cart', 'purchase')) FROM events"""
    ).fetchall()
    if searches and before is None:
        raise QAgentError(
            f"{shop.path}: queries are derived only for a log without searches, and this one has "
            f"{searches:,}"
        )
    if not engaged:
        raise QAgentError(
            f"{shop.path} holds no click, cart or purchase to derive queries from; views alone say "
            "too little: ingest them with --type click if they are all that you have"
        )
    goods = connection.execute(
        """SELECT product_id, title, brand, category,
               product_id IN (SELECT product_id FROM events WHERE type <> 'search')
        FROM products"""
    ).fetchall()
    if source is None:
        again = [name for name, how in SOURCES.items() if how == before]
        used = [bool(category) for *_, category, seen in goods if seen]
        source = again[0] if again else "categories" if 2 * sum(used) >= len(used) else "titles"
    if before is not None and before != SOURCES[source]:
        raise QAgentError(
            f"{shop.path}: its queries are derived {before}; to derive them {SOURCES[source]} "
            "make a new shop"
        )
    if source == "categories":
        queries = category_queries({p: category for p, _, _, category, _ in goods})
    else:
        queries = title_queries(
            {p: title for p, title, *_ in goods}, {p: brand for p, _, brand, *_ in goods}
        )
    mark_as_derived(shop, SOURCES[source])
    return _derived(shop, queries)


def mark_as_derived(shop: Shop, how: str) -> None:
    """Say in the shop that its queries are derived, before any is stored: so that whatever
    happens nobody takes them for typed ones."""
    shop.config = replace(shop.config, derived_queries=how)
    shop.save_config()


def _derived(shop: Shop, queries: dict[str, str]) -> IngestReport:
    register_functions(
        shop.connection
    )  # before the transaction: one that fails would take them away
    with shop.transaction() as connection:
        MemoryStore(connection, shop.config.memory).discard()
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE derived (product_id VARCHAR, text VARCHAR, key VARCHAR)"
        )
        with connection.appender("derived") as appender:
            for product, text in queries.items():
                appender.append_row(product, text, query_key(text))
        fresh = """events.type IN ('click', 'cart', 'purchase') AND events.query_key IS NULL
            AND derived.product_id = events.product_id"""
        users = "SELECT DISTINCT user_id FROM underived"
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE underived AS
            SELECT event_id, user_id, session_id, ts, text, key FROM events, derived WHERE {fresh};
            UPDATE events SET query = derived.text, query_key = derived.key
            FROM derived WHERE {fresh}"""
        )
        searches = connection.execute(
            """SELECT f.user_id, f.ts, f.text FROM underived f
            WHERE NOT EXISTS (FROM events s WHERE s.type = 'search'
                AND s.session_id = f.session_id AND s.query_key = f.key AND s.ts <= f.ts)
            QUALIFY row_number() OVER (PARTITION BY session_id, key ORDER BY ts, event_id) = 1
            ORDER BY f.ts, f.event_id"""
        ).fetchall()
        report = append(
            shop,
            (
                {
                    "user_id": user,
                    "time": ts - timedelta(seconds=1),
                    "type": "search",
                    "query": text,
                }
                for user, ts, text in searches
            ),
        )
        event_memory.refresh_sessions(connection, shop.config.memory, users)
        connection.execute("DROP TABLE derived; DROP TABLE underived")
    return report
