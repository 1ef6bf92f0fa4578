"""Delete a user's own events of a query or of a category, so that memory holds them no more."""

from __future__ import annotations

from ..memory import sessions
from ..memory.store import MemoryStore
from ..shop.rewriting import rewrite_database
from ..shop.shop import Shop
from ..utils.database import literal
from ..utils.text import query_key

_IN_CATEGORY = """FROM events e JOIN products p USING (product_id) WHERE e.user_id = $user
    AND (lower(p.category) = lower($category)
         OR starts_with(lower(p.category), lower($category) || ' > '))"""
# A search is of a category if what was engaged with under it lies in the category.
_OF_CATEGORY = f"""event_id IN (SELECT e.event_id {_IN_CATEGORY}
    UNION ALL SELECT e.search_id {_IN_CATEGORY} AND e.search_id IS NOT NULL)"""
_OF_QUERY = """(query_key = $key OR search_id IN (
    SELECT event_id FROM events WHERE user_id = $user AND query_key = $key))"""


def forget_events(
    shop: Shop, user: str, query: str | None = None, category: str | None = None
) -> int:
    """Delete what a user did under a query, or with products of a category; for good.

    Searches of the query and engagements that followed them go, and that it was shown; of a
    category, events of its products and the searches that led to them.

    Args:
        shop: Open for writing.
        user: Only this user's events.
        query: In any spelling of `query_key`.
        category: A path, with all below it.

    Returns:
        The number of events that were deleted.
    """
    if category is not None:
        where, values = _OF_CATEGORY, {"user": user, "category": category}
    else:
        where, values = _OF_QUERY, {"user": user, "key": query_key(query or "")}
    with shop.transaction() as connection:
        deleted = connection.execute(
            f"DELETE FROM events WHERE user_id = $user AND {where} RETURNING 1", values
        ).fetchall()
        if category is None:
            for table in ("recommendations", "impressions"):
                connection.execute(
                    f"DELETE FROM {table} WHERE user_id = $user AND query_key = $key", values
                )
        if deleted:
            sessions.refresh_sessions(connection, shop.config.memory, f"SELECT {literal(user)}")
            MemoryStore(connection, shop.config.memory).update([user], None)
    rewrite_database(shop)  # else they stay in the file's blocks
    return len(deleted)
