"""A user's memory and the shop's search as plain values, for whatever shows them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from .memory.graph import graph
from .memory.profile import SECTIONS, CountTokens, Memory
from .memory.reader import Moment
from .memory.worth import Worth
from .policy.text_generation import open_summarizer, token_counter
from .shop.shop import Shop

if TYPE_CHECKING:
    pass


def inspect_memory(
    shop: Shop,
    user: str,
    as_of: datetime | None = None,
    count: CountTokens | None = None,
    summarizer: str | None = None,
    memory: Memory | None = None,
) -> dict[str, Any]:
    """A user's profile and interest graph at a moment.

    Args:
        shop: Read only is enough.
        user: An id; somebody unknown has the memory of a new user.
        as_of: Nothing at or after it is seen; by default the moment after the log.
        count: Counts tokens; `token_counter` by default.
        summarizer: A model folder or policy that writes the identity line; off by default.
        memory: One that is open, in place of a new one with ``count`` and ``summarizer``.

    Returns:
        user, as_of, events (before the moment), tokens, raw_tokens (of the log itself),
        text, sections (name -> texts of its lines), graph.
    """

    moment = Moment(user, as_of or shop.end_of_log())
    if memory is None:
        memory = Memory(
            shop.connection, shop.config.memory, count or token_counter(shop),
            Worth.of_shop(shop), open_summarizer(shop, summarizer) if summarizer else None,
        )  # fmt: skip
    profile = memory.profiles([moment])[0]
    sections: dict[str, list[str]] = {name: [] for name in SECTIONS}
    for line in profile.lines:
        sections[line.section].append(line.text)
    row = shop.connection.execute(
        "SELECT count(*) FROM events WHERE user_id = ? AND ts < ?", [user, moment.as_of]
    ).fetchone()
    return {
        "user": user,
        "as_of": moment.as_of.isoformat(),
        "events": row[0] if row else 0,
        "tokens": profile.tokens,
        "raw_tokens": memory.raw_tokens(moment),
        "text": profile.text,
        "sections": sections,
        "graph": graph(memory, moment),
    }


