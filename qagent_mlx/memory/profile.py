"""Profiles: a user's memory as a few lines that a small model can read.

Each section turns rows into scored lines; `pack` fits the lines with the most worth a token
into the budget. A line's worth is the chance that its query is what the user wants next (see
`worth`), so the same code shows a fast-moving shop its trends and a shop of regulars their
habits. Lines about the user come first, then the lines with a query, the likeliest first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from .knowledge import Knowledge
from .raw import RAW, raw_lines
from .reader import Moment, Reader, Rows, joined
from .shared import without_private
from .state import State
from .summarizer import Summarizer
from .worth import OUTCOMES, Worth, age_word, features

SECTIONS = ("latest", "graph", "identity", "neighbours", "trending")
TOGETHER = 64  # moments whose candidates are weighed together
COUNTED = 100_000  # lines whose tokens are remembered
CountTokens = Callable[[Sequence[str]], Sequence[int]]


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
        worth: Worth | None = None,
        summarizer: Summarizer | None = None,
        knowledge: Knowledge | None = None,
    ) -> None:
        self.summarizer = summarizer
        self.connection = connection
        self.worth = worth or Worth.default()
        self.config = config
        self._count = count
        self._counted: dict[str, int] = {}
        self.reader = Reader(connection, config, knowledge)

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
                for moment, lines in zip(moments, raw_lines(self, moments, allowed), strict=True)
            ]
        rows = self.reader.rows(moments)
        if self.config.least_users > 1:
            without_private(self.connection, moments, rows, self.config.least_users)
        made = []
        for moment, mine, table in zip(moments, rows, tables_of(rows), strict=True):
            chances = self.worth.at(moment.as_of).chances(table)
            lines = [
                *_graph_lines(mine.state.nodes),
                *_identity_lines(mine.state),
                *_seen_lines(mine.state.products),
                # Far more than fit, so that what a short line gains by its price is not lost.
                *_query_lines(
                    mine.candidates, chances, 3 * self.config.references,
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

    def _summarized(self, moment: Moment, rows: Rows, lines: list[Line]) -> list[Line]:
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
        return self._made(moment, kept, spent, _context(State()))

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


def tables_of(rows: Sequence[Rows]) -> Iterator[np.ndarray]:
    """`features` of the candidates of some moments, computed in one go."""
    for start in range(0, len(rows), TOGETHER):
        some = rows[start : start + TOGETHER]
        whole = features(joined(some))
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


def words_cost(texts: Sequence[str]) -> list[int]:
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


def _query_lines(
    candidates: Mapping[str, np.ndarray], chances: np.ndarray, keep: int, typed: Mapping[str, str]
) -> list[Line]:
    """Lines with a query: the user's own, neighbours, and trending ones, likeliest first.

    A query that comes from several sides is one line, in the section that says most of it.
    The last mark, beside the reference, says how likely the query is wanted next. ``typed`` has
    the user's own queries by their keys, for the reasons.
    """
    order = np.argsort(-chances, kind="stable")[:keep]
    made: list[Line] = []
    for chance, query, back, last, age, had_age, next_score, source, share, longer, success in zip(
        chances[order].tolist(),
        *(candidates[name][order].tolist() for name in _SHOWN),
        strict=True,
    ):
        own, follows, trends = back == back, next_score == next_score, share == share  # or NaN
        section, most = "latest", 1.0 if own else 0.0
        if follows and next_score > most:
            section, most = "neighbours", next_score
        if trends and share > most:
            section, most = "trending", share
        marks, why = list[str](), ""
        if own:
            marks += [OUTCOMES[int(last)], age_word(age)]
            why = f"you searched it {_ago(age)}" + (
                " and found nothing that suited" if last == 0 else ""
            )
        elif had_age == had_age:
            marks += ["had", age_word(had_age)]
        if section == "neighbours":
            why = _because(source, typed) + (f"; {why}" if why else "")
        if trends and share >= 0.004:
            marks.append("top" if share >= 0.04 else "hot" if share >= 0.015 else "warm")
            growth = share / max(longer, 1e-9)
            if growth >= 1.5:
                marks.append("rising")
            elif growth <= 0.6:
                marks.append("fading")
        if section == "trending":
            why = f"{share:.1%} of the shop's searches just now"
        if success < 0.2:
            marks.append("poor")
        word = chance_word(chance)
        text = " ".join([safe(query), *marks, *([word] if word else [])])
        # Sums differ in their last digits from run to run; what is equal must stay equal.
        made.append(Line(section, text, round(chance, 12), query=query, reason=why))
    return sorted(made, key=lambda line: (-line.score, line.text))


# What a line tells of a candidate.
_SHOWN = (
    "query", "back", "last", "age", "had_age", "next_score", "source", "share", "longer_share",
    "success",
)  # fmt: skip


def chance_word(chance: float) -> str:
    """How likely a query is wanted next, as one word; empty for the many that hardly are."""
    return next(
        (word for limit, word in ((0.3, "surely"), (0.15, "likely"), (0.07, "maybe"))
         if chance >= limit), "",
    )  # fmt: skip


def _graph_lines(nodes: Sequence[Sequence[Any]]) -> list[Line]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    limits = {"category": 3, "brand": 3, "price": 1, "attribute": 2}
    for kind, node, _, share in nodes:
        if kind in limits and len(by_kind[kind]) < limits[kind] and share >= 0.1:
            by_kind[kind].append(safe(node))
    parts = [" ".join(by_kind[kind]) for kind in limits if by_kind[kind]]
    return [Line("graph", "likes " + ", ".join(parts).lower(), 0.35)] if parts else []


def _identity_lines(state: State) -> list[Line]:
    if not state.identity:
        return [Line("identity", "new user", 0.2)]
    events, _, purchases, away, gap, gaps = state.identity[0]
    parts = ["heavy" if events >= 60 else "regular" if events >= 12 else "light"]
    kind, share = max(((k, s) for k, s in state.wording), key=lambda item: item[1], default=("", 0))
    if share >= 0.5:
        names = {"brand": "names brands", "attribute": "names details", "plain": "short queries"}
        parts.append(names[kind])
    brands = [(node, share) for kind, node, _, share in state.nodes if kind == "brand"]
    loyal = next((node for node, share in brands if share >= 0.6 and purchases >= 2), None)
    if loyal:
        parts.append(f"loyal {safe(loyal).lower()}")
    if gaps >= 2:
        parts.append(f"buys every {age_word(gap)}")
    parts.append(f"away {age_word(away)}")
    return [Line("identity", " ".join(parts), 0.25)]


def _seen_lines(products: Sequence[Sequence[Any]]) -> list[Line]:
    """What the last session looked at without searching for it."""
    made: list[Line] = []
    for _, bought, title, _leaf, age, in_last, engaged in products:
        if in_last and not engaged and not bought and len(made) < 1:
            shown = " ".join(safe(title).lower().split()[:6])
            made.append(Line("latest", f"viewed {shown} {age_word(age)}", 0.06))
    return made


def _context(state: State) -> dict[str, Any]:
    """What the search tool needs to mark products for this user, at this moment."""
    shares: dict[str, dict[str, float]] = {"brand": {}, "price": {}, "attribute": {}}
    for kind, node, _, share in state.nodes:
        if kind in shares:
            shares[kind][node.lower()] = round(share, 3)
    return {
        "brands": shares["brand"],
        "prices": shares["price"],
        "attributes": shares["attribute"],
        "bought": [p[0] for p in state.products if p[1]],
        "seen": [p[0] for p in state.products if not p[1]],
    }


def _ago(days: float) -> str:
    if days < 1 / 24:
        return "just now"
    if days < 1.5:
        return f"{days * 24:.0f} hours ago"
    return f"{days:.0f} days ago"


def _because(source: str | None, typed: Mapping[str, str]) -> str:
    kind, _, name = (source or "").partition(":")
    query = f"“{typed[name]}”" if name in typed else "what you searched"
    return {
        "c": f"what people look for after {name}",
        "q": f"what people search after {query}",
        "p": "what people search after a product that you chose",
        "r": f"what worked for people whose search for {query} had led nowhere",
    }.get(kind, "like you, others searched it")
