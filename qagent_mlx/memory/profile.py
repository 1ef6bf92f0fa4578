"""Profiles: a user's memory as a few lines that a small model can read.

Each section of a profile is a list of scored lines. A line's score is the probability that its
query is what the user wants next (see `ranker`), so the same code shows a fast-moving shop its
trends and a shop of regulars their habits. Lines are packed into the token budget by score per
token. Lines about the user come first, then the lines with a query, the most probable first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import duckdb
import numpy as np

from ..errors import QAgentError
from ..protocol.config import SECTIONS
from ..protocol.escape import safe
from ..protocol.profile_text import render, written_line
from ..shop.config import MemoryConfig
from ..types import Line, Profile, UserContext
from .event_log import start_of_day
from .k_anonymity import drop_private_candidates, drop_private_queries
from .loader import MemoryLoader
from .neighbours import likeliest_needs
from .ranker import MemoryRanker
from .ranking_features import feature_tables
from .raw_history import RAW, raw_lines
from .sections import (
    graph_lines,
    identity_lines,
    need_lines,
    popular_lines,
    product_lines,
    query_lines,
    search_context,
    viewed_lines,
)
from .sql import sql
from .statistics_cache import StatisticsCache
from .summarizer import Summarizer
from .types import CountTokens, Moment, UserMemory
from .user_state import UserState

MAX_COUNTED = 100_000  # lines whose token counts are remembered


class Memory:
    """Writes profiles from a shop's database.

    Args:
        connection: The shop's database; read only is enough.
        config: How events weigh and how long a profile may be.
        count: Counts the tokens of each text, by the tokenizer of the model that will read them.
        ranker: Ranks candidate queries; with default weights when None.
        summarizer: Writes the identity line instead of marks; none by default.
        statistics: What another memory of the same database has read already.
        settled: Nobody changes the database while this memory is used.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        config: MemoryConfig,
        count: CountTokens,
        ranker: MemoryRanker | None = None,
        summarizer: Summarizer | None = None,
        statistics: StatisticsCache | None = None,
        settled: bool = False,
    ) -> None:
        self.connection, self.config = connection, config
        self.ranker = ranker or MemoryRanker.default()
        self.summarizer = summarizer
        self.loader = MemoryLoader(connection, config, statistics, settled)
        self._count = count
        self._counts: dict[str, int] = {}

    def profiles(
        self,
        moments: Sequence[Moment],
        sections: Iterable[str] = SECTIONS,
        budget: int | None = None,
    ) -> list[Profile]:
        """A profile for each moment, in any order, in one pass over the log.

        ``sections`` are those to write: fewer for ablations, or ``("raw",)`` for the newest events
        themselves. A profile may have ``budget`` tokens; the shop's setting by default.
        """
        wanted = check_sections(sections)
        budget = self.config.budget if budget is None else budget
        if not moments:
            return []
        if wanted == {RAW}:
            logs = raw_lines(self.connection, moments, budget)
            return [
                self._truncate(moment, lines, budget)
                for moment, lines in zip(moments, logs, strict=True)
            ]
        memories = self._memories(moments)
        tables = feature_tables([memory.candidates for memory in memories])
        alone = [m for m, memory in zip(moments, memories, strict=True) if self._is_alone(memory)]
        popular = self.loader.statistics.popular(moment.as_of for moment in alone)
        profiles = []
        for moment, memory, table in zip(moments, memories, tables, strict=True):
            probabilities = self.ranker.at(moment.as_of).probabilities(table)
            kinds = popular.get(start_of_day(moment.as_of), ())
            lines = self._lines(moment, memory, probabilities, wanted, kinds)
            profiles.append(self._pack(moment, lines, memory, budget))
        return profiles

    def candidate_keys(self, moments: Sequence[Moment]) -> list[set[str]]:
        """The keys of the queries that each moment's profile was chosen from."""
        memories = self._memories(moments) if moments else []
        return [set(memory.candidates.query_key.tolist()) for memory in memories]

    def drop_private(self, queries: Mapping[str, str], as_of: datetime) -> dict[str, str]:
        """Of queries (key to text), those that anybody may see at a moment."""
        if self.config.own_only:
            return {}
        self.loader.prepare()
        return drop_private_queries(self.loader.statistics.public, queries, as_of, self.config)

    def _memories(self, moments: Sequence[Moment]) -> list[UserMemory]:
        memories = self.loader.load(moments)
        public = self.loader.statistics.public
        return drop_private_candidates(public, moments, memories, self.config)

    def _is_alone(self, memory: UserMemory) -> bool:
        """Whether a profile has nobody else's queries: there are none, or it may not hold them."""
        return self.config.own_only or not len(memory.candidates)

    def _lines(
        self,
        moment: Moment,
        memory: UserMemory,
        probabilities: np.ndarray,
        sections: set[str],
        popular: Sequence[str],
    ) -> list[Line]:
        """The lines of some sections, many more than fit."""
        state = memory.state
        identity = identity_lines(state)
        summarizer = self.summarizer if "identity" in sections else None
        if summarizer and (summary := summarizer.line(moment.user_id, state)):
            identity = [replace(line, text=summary) for line in identity]
        typed = {query.key: query.text for query in state.queries}
        most = 3 * self.config.references
        # Where there is little to point at, an agent has to write from what the user looked at.
        is_alone = self._is_alone(memory)
        seen = product_lines if is_alone else viewed_lines
        lines = [
            *graph_lines(state.interests),
            *identity,
            *seen(state.recent_products),
            *query_lines(memory.candidates, probabilities, most, typed),
        ]
        if is_alone:
            needs = likeliest_needs(memory.needed)
            lines += need_lines(needs, state.interests, len(memory.candidates) > 0)
            lines += popular_lines(popular, lines)
        return [line for line in lines if line.section in sections]

    def read_all(self, as_of: datetime) -> None:
        """Read what the shop knew on a moment's day, so that no request has to wait for it."""
        self.loader.read_all(as_of)

    def raw_tokens(self, moment: Moment) -> int:
        """Tokens of the user's whole log before a moment, an event a line."""
        return sum(self.count(raw_history(self.connection, moment)))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; remembered, as the same lines come often."""
        if len(self._counts) > MAX_COUNTED:
            self._counts.clear()
        fresh = [text for text in dict.fromkeys(texts) if text not in self._counts]
        if fresh:
            self._counts.update(zip(fresh, self._count(fresh), strict=True))
        return [self._counts[text] for text in texts]

    def _pack(self, moment: Moment, lines: list[Line], memory: UserMemory, budget: int) -> Profile:
        """The lines with the best score per token that fit, in their order."""
        # The last reference is the longest one, where a tokenizer spells them out.
        last = self.config.references - 1
        costs = self.count([written_line(line, last) + "\n" for line in lines])
        order = sorted(range(len(lines)), key=lambda i: (-lines[i].score / costs[i], i))
        chosen, tokens, references = [], 0, 0
        for i in order:
            has_query = lines[i].query is not None
            if tokens + costs[i] > budget or (has_query and references > last):
                continue
            references += has_query
            chosen.append(i)
            tokens += costs[i]
        context = search_context(memory.state, memory.just_bought)
        return _profile(moment, [lines[i] for i in sorted(chosen)], tokens, context)

    def _truncate(self, moment: Moment, lines: list[Line], budget: int) -> Profile:
        """The first lines, as many as fit; beyond the last reference queries have none."""
        last = self.config.references - 1
        chosen: list[Line] = []
        tokens = references = 0
        for line in lines:
            if line.query is not None and references > last:
                line = replace(line, query=None, reason="")
            cost = self.count([written_line(line, last) + "\n"])[0]
            if tokens + cost > budget:
                break
            chosen.append(line)
            tokens += cost
            references += line.query is not None
        return _profile(moment, chosen, tokens, search_context(UserState()))


def _profile(moment: Moment, lines: list[Line], tokens: int, context: UserContext) -> Profile:
    return Profile(
        user_id=moment.user_id,
        as_of=moment.as_of,
        text=render(lines),
        lines=tuple(lines),
        references=tuple(line.query for line in lines if line.query is not None),
        tokens=tokens,
        context=context,
    )


def check_sections(sections: Iterable[str]) -> set[str]:
    """The names as a set; refuses unknown sections, and ``raw`` beside others."""
    wanted = set(sections)
    if unknown := sorted(wanted - {*SECTIONS, RAW}):
        raise QAgentError(
            f"no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}, or raw alone"
        )
    if RAW in wanted and len(wanted) > 1:
        raise QAgentError("the section raw is the whole profile; leave the other sections out")
    return wanted


def count_words(texts: Sequence[str]) -> list[int]:
    """Count a token a word and a tag: stands in for a tokenizer where there is none yet."""
    return [len(text.replace("<", " <").split()) + 1 for text in texts]


def raw_history(connection: duckdb.DuckDBPyConnection, moment: Moment) -> list[str]:
    """The user's log before a moment as text, an event a line, the oldest first."""
    return [
        f"{ts:%Y-%m-%d %H:%M} {kind} {safe(text)}"
        for ts, kind, text in connection.execute(
            sql("raw_history"), [moment.user_id, moment.as_of]
        ).fetchall()
    ]
