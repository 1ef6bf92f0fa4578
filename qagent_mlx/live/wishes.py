"""What users want no more: queries and categories that are never recommended to them again.

The table ``wishes`` keeps them until they are withdrawn. To forget goes further: the user's own
events of a query or category are deleted, too (`ingest.forgetting`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from typing import Any

import msgspec

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import fetch_dicts
from ..utils.stamps import utc_now
from ..utils.text import clean, query_key

ENTRY = "wishes"  # kind of entries of the journal
MAX_TEXT = 300  # characters of a query or category


@dataclass(frozen=True, slots=True)
class Wish:
    """A query or a category that a user wants no more; one of the two is None."""

    wish_id: str
    user_id: str
    query: str | None
    category: str | None
    created: datetime
    withdrawn: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def new_wish(user: str, query: str | None = None, category: str | None = None) -> Wish:
    """A wish that can be stored.

    Raises:
        QAgentError: it names no user, or not exactly one of query and category.
    """
    query, category = clean(query or "")[:MAX_TEXT], clean(category or "")[:MAX_TEXT]
    if not user or bool(query) == bool(category):
        raise QAgentError("name a user and either a query or a category")
    if query and not query_key(query):
        raise QAgentError("the query has no letters or digits")
    return Wish(secrets.token_hex(4), user, query or None, category or None, utc_now())


def wishes_of(shop: Shop, users: Sequence[str] | None = None) -> list[Wish]:
    """What some users, or all, want no more, the oldest first."""
    if not shop.has_table("wishes"):
        return []
    rows = fetch_dicts(
        shop.connection.execute(
            """SELECT * FROM wishes WHERE withdrawn IS NULL
            AND ($users IS NULL OR list_contains($users::VARCHAR[], user_id))
            ORDER BY created, wish_id""",
            {"users": None if users is None else list(users)},
        )
    )
    return [Wish(**row) for row in rows]


def withdrawn_wish(shop: Shop, user: str, wish_id: str) -> Wish:
    """A user's wish, as it is once it is withdrawn.

    Raises:
        QAgentError: the user has none of that id.
    """
    for wish in wishes_of(shop, [user]):
        if wish.wish_id == wish_id:
            return replace(wish, withdrawn=utc_now())
    raise QAgentError(
        f"{user} has no wish {wish_id}; list them with: qagent memory unwanted {user}"
    )


def wishes_entry(wishes: Sequence[Wish]) -> dict[str, Any]:
    """An entry of the journal that adds wishes or withdraws them."""
    return {ENTRY: [wish.to_dict() for wish in wishes]}


def store_wishes(shop: Shop, values: Sequence[Mapping[str, Any]]) -> int:
    """Store the wishes of entries, in a transaction; returns their number."""
    wishes = [wish for wish in map(_wish, values) if wish is not None]
    for wish in wishes:
        connection = shop.connection
        connection.execute("DELETE FROM wishes WHERE wish_id = ?", [wish.wish_id])
        connection.execute("INSERT INTO wishes VALUES (?, ?, ?, ?, ?, ?)", astuple(wish))
    return len(wishes)


def change_wishes(shop: Shop, wishes: Sequence[Wish]) -> None:
    """Store wishes in a shop that is open for writing; servers take them up within seconds."""
    with shop.transaction():
        store_wishes(shop, wishes_entry(wishes)[ENTRY])


def _wish(value: Mapping[str, Any]) -> Wish | None:
    """The wish of an entry; None for what nobody of us has written."""
    try:
        times = {
            name: datetime.fromisoformat(value[name])
            for name in ("created", "withdrawn")
            if value.get(name)
        }
        wish = Wish(**{**value, **times})
    except (KeyError, TypeError, ValueError):
        return None
    is_whole = isinstance(wish.wish_id, str) and isinstance(wish.user_id, str)
    return wish if is_whole and bool(wish.query) != bool(wish.category) else None
