"""A user's memory as people look at it: the profile beside the log and the interest graph.

As JSON, or as one self-contained HTML page that needs no network.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from ..protocol.config import SECTIONS
from .interest_graph import InterestGraph, interest_graph
from .profile import Memory
from .types import Moment


class MemoryView(msgspec.Struct, frozen=True):
    """A user's profile and interest graph at a moment."""

    user: str
    as_of: datetime
    events: int  # before the moment
    tokens: int  # of the profile
    raw_tokens: int  # of the log that it stands for
    text: str
    sections: dict[str, list[str]]  # the texts of each section's lines
    graph: InterestGraph
    wishes: list[dict[str, Any]] = []  # what the user wants no more (`live.wishes`)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        view: dict[str, Any] = msgspec.to_builtins(self)
        return view


def memory_view(memory: Memory, moment: Moment) -> MemoryView:
    """A user's memory at a moment; somebody unknown has that of a new user."""
    profile = memory.profiles([moment])[0]
    sections: dict[str, list[str]] = {name: [] for name in SECTIONS}
    for line in profile.lines:
        sections[line.section].append(line.text)
    ((events,),) = memory.connection.execute(
        "SELECT count(*) FROM events WHERE user_id = ? AND ts < ?", [moment.user_id, moment.as_of]
    ).fetchall()
    return MemoryView(
        user=moment.user_id,
        as_of=moment.as_of,
        events=events,
        tokens=profile.tokens,
        raw_tokens=memory.raw_tokens(moment),
        text=profile.text,
        sections=sections,
        graph=interest_graph(memory.loader, moment),
    )


def page(view: MemoryView) -> str:
    """The HTML of a user's memory: ``page.html`` with the view as its data."""
    # "<" is escaped, so that text from data can close no tag.
    data = json.dumps(view.to_dict(), ensure_ascii=True).replace("<", "\\u003c")
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/", data)
