"""Profiles: a user's memory as a few lines that a small model can read.

Each section turns rows into scored lines; `pack` fits the lines with the most worth a token
into the budget. A line's worth is the chance that its query is what the user wants next (see
`worth`), so the same code shows a fast-moving shop its trends and a shop of regulars their
habits. Lines about the user come first, then the lines with a query, the likeliest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import duckdb
import numpy as np

from ..errors import QAgentError
from ..protocol.escape import safe
from ..protocol.profile_text import _written, render
from ..shop.config import MemoryConfig
from ..types import Line, Profile
from .k_anonymity import drop_private_candidates
from .loader import MemoryLoader, concatenate_candidates
from .ranker import MemoryRanker
from .ranking_features import features
from .raw_history import RAW, raw_lines
from .sections import _context, _graph_lines, _identity_lines, _query_lines, _seen_lines
from .statistics_cache import StatisticsCache
from .summarizer import Summarizer
from .types import CountTokens, Moment, UserMemory
from .user_state import UserState

SECTIONS = ("latest", "graph", "identity", "neighbours", "trending")
TOGETHER = 64  # moments whose candidates are weighed together
COUNTED = 100_000  # lines whose tokens are remembered


class Memory:
    """Makes profiles from a shop's database.

    Args:
        connection: The shop's database; read only is enough.
        config: How events weigh and how long a profile may be.
        count: Tokens of each of some texts, by the tokenizer of the model that will read them.
        worth: How lines are valued; the defaults when None.
        summarizer: Writes the identity line instead of marks; none by default.
        knowledge: What another memory of the same database has read already.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        config: MemoryConfig,
        count: CountTokens,
        worth: MemoryRanker | None = None,
        summarizer: Summarizer | None = None,
        knowledge: StatisticsCache | None = None,
    ) -> None:
        self.summarizer = summarizer
        self.connection = connection
        self.worth = worth or MemoryRanker.default()
        self.config = config
        self._count = count
        self._counted: dict[str, int] = {}
        self.reader = MemoryLoader(connection, config, knowledge)

    def profiles(
        self,
        moments: Sequence[Moment],
        sections: Iterable[str] = SECTIONS,
        budget: int | None = None,
    ) -> list[Profile]:
        """A profile for each moment, in one pass over the log.

        Args:
            moments: In any order; a user may come more than once.
            sections: Which sections to write; leave some out for ablations. ``("raw",)``
                writes the newest events themselves instead of an abstraction of them.
            budget: Tokens a profile may have; the shop's setting by default.

        Raises:
            QAgentError: there is no such section.
        """
        wanted = check_sections(sections)
        if not moments:
            return []
        if wanted == {RAW}:
            allowed = self.config.budget if budget is None else budget
            return [
                self._cut(moment, lines, allowed)
                for moment, lines in zip(
                    moments, raw_lines(self.connection, moments, allowed), strict=True
                )
            ]
        rows = self.reader.rows(moments)
        if self.config.least_users > 1:
            drop_private_candidates(self.connection, moments, rows, self.config.least_users)
        made = []
        for moment, mine, table in zip(moments, rows, tables_of(rows), strict=True):
            chances = self.worth.at(moment.as_of).probabilities(table)
            lines = [
                *_graph_lines(mine.state.nodes),
                *_identity_lines(mine.state),
                *_seen_lines(mine.state.products),
                # Far more than fit, so that what a short line gains by its price is not lost.
                *_query_lines(
                    mine.candidates,
                    chances,
                    3 * self.config.references,
                    {key: query for key, query, *_ in mine.state.own},
                ),
            ]
            lines = [line for line in lines if line.section in wanted]
            if self.summarizer and "identity" in wanted:
                lines = self._summarized(moment, mine, lines)
            context = _context(mine.state)
            allowed = self.config.budget if budget is None else budget
            made.append(self._pack(moment, lines, context, allowed))
        return made

    def read_all(self, as_of: datetime) -> None:
        """Read what the shop knew on the day, so that nobody who asks then has to wait."""
        self.reader.read_all(as_of)

    def raw_tokens(self, moment: Moment) -> int:
        """Tokens of the user's whole log before a moment, an event a line."""
        return sum(self.count(raw_history(self.connection, moment)))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; remembered, as lines come back often."""
        if len(self._counted) > COUNTED:
            self._counted.clear()
        fresh = [t for t in dict.fromkeys(texts) if t not in self._counted]
        if fresh:
            self._counted.update(zip(fresh, self._count(fresh), strict=True))
        return [self._counted[t] for t in texts]

    def _pack(
        self, moment: Moment, lines: list[Line], context: dict[str, Any], budget: int
    ) -> Profile:
        """Choose lines by worth a token."""
        # The last reference is the longest one, where a tokenizer spells them out.
        last = self.config.references - 1
        costs = self.count([_written(line, last) + "\n" for line in lines])
        order = sorted(range(len(lines)), key=lambda i: (-lines[i].score / costs[i], i))
        chosen, spent, references = [], 0, 0
        for i in order:
            if spent + costs[i] > budget:
                continue
            if lines[i].query is not None:
                if references >= self.config.references:
                    continue
                references += 1
            chosen.append(i)
            spent += costs[i]
        return self._made(moment, [lines[i] for i in sorted(chosen)], spent, context)

    def _summarized(self, moment: Moment, rows: UserMemory, lines: list[Line]) -> list[Line]:
        """The lines with the model's line of identity, where it wrote one."""
        assert self.summarizer is not None
        text = self.summarizer.line(moment.user_id, rows)
        return [
            replace(line, text=text) if text and line.section == "identity" else line
            for line in lines
        ]

    def _cut(self, moment: Moment, lines: list[Line], budget: int) -> Profile:
        """The first lines, as many as fit; beyond the last reference queries have none."""
        last = self.config.references - 1
        kept: list[Line] = []
        spent = references = 0
        for line in lines:
            if line.query is not None and references > last:
                line = replace(line, query=None, reason="")
            cost = self.count([_written(line, last) + "\n"])[0]
            if spent + cost > budget:
                break
            kept.append(line)
            spent += cost
            references += line.query is not None
        return self._made(moment, kept, spent, _context(UserState()))

    def _made(
        self, moment: Moment, kept: list[Line], spent: int, context: dict[str, Any]
    ) -> Profile:
        queries = [line.query for line in kept if line.query is not None]
        return Profile(
            user_id=moment.user_id,
            as_of=moment.as_of,
            text=render(kept),
            lines=tuple(kept),
            references=tuple(queries),
            tokens=spent,
            raw_tokens=0,
            context=context,
        )


def tables_of(rows: Sequence[UserMemory]) -> Iterator[np.ndarray]:
    """`features` of the candidates of some moments, computed in one go."""
    for start in range(0, len(rows), TOGETHER):
        some = rows[start : start + TOGETHER]
        whole = features(concatenate_candidates(some))
        at = 0
        for mine in some:
            # Of its own: a sum over columns must not depend on what lies beside it.
            size = len(mine.candidates["back"])
            yield whole[at : at + size].copy()
            at += size


def check_sections(sections: Iterable[str]) -> set[str]:
    """The names as a set.

    Raises:
        QAgentError: there is no such section, or ``raw`` is not alone.
    """
    wanted = set(sections)
    if unknown := sorted(wanted - {*SECTIONS, RAW}):
        raise QAgentError(
            f"no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}, or raw alone"
        )
    if RAW in wanted and len(wanted) > 1:
        raise QAgentError("the section raw is the whole profile; leave the other sections out")
    return wanted


def count_words(texts: Sequence[str]) -> list[int]:
    """A token a word and a tag: what stands in for a tokenizer where there is none yet."""
    return [len(text.replace("<", " <").split()) + 1 for text in texts]


def raw_history(connection: duckdb.DuckDBPyConnection, moment: Moment) -> list[str]:
    """The log itself as text, an event a line, oldest first: what a profile stands in for."""
    return [
        f"{ts:%Y-%m-%d %H:%M} {kind} {safe(text)}"
        for ts, kind, text in connection.execute(
            """SELECT e.ts, e.type, coalesce(CASE WHEN e.type = 'search' THEN e.query END,
                      p.title, e.query, '')
            FROM events e LEFT JOIN products p USING (product_id)
            WHERE e.user_id = ? AND e.ts < ? ORDER BY e.ts, e.event_id""",
            [moment.user_id, moment.as_of],
        ).fetchall()
    ]


# ---------------------------------------------------------------- sections
