"""The rules of a chain of retrieval: what an action does, what answers it, and how a chain ends.

Tokens are no concern here, nor are models: `episode.Episode` decodes a policy's chains by these
rules, and `environment.shop_environment` plays them with anybody who writes text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from ..protocol.actions import Action, expand, profile_text, refusal_text, results_text
from ..protocol.config import AgentConfig
from ..types import Profile
from ..utils.text import query_key
from .tools import SearchRequest, SearchResult
from .types import Finish, Turn, TurnKind

MAX_TURNS_BEYOND_SEARCHES = 3  # fetch, recommend, and one slip


@dataclass
class Chain:
    """A chain while it runs.

    `act` takes an action; if that needs an answer, `request` is the search to make, or None, and
    `answer` takes its result and says what the agent reads. An agent without memory reads nothing
    of the profile.
    """

    config: AgentConfig
    profile: Profile
    as_of: datetime | None
    turns: list[Turn] = field(default_factory=list)
    request: SearchRequest | None = None
    query: str = ""  # what is recommended
    finish: Finish | Literal[""] = ""
    repeated: int = 0  # searches of a query that the chain had searched before
    refused: int = 0  # actions of the protocol that were not allowed

    def __post_init__(self) -> None:
        if not self.config.memory:
            self.profile = self.profile.without_memory()

    @property
    def searched(self) -> list[str]:
        """The queries that were searched, in order."""
        return [turn.query for turn in self.turns if turn.kind == "search"]

    @property
    def fetched(self) -> bool:
        """Whether memory was read."""
        return any(turn.kind == "fetch" for turn in self.turns)

    def act(self, action: Action, was_cut: bool = False) -> bool:
        """Take an action; returns whether it waits for an answer.

        ``was_cut`` says that it is no action because it was too long.
        """
        self.request = None
        if action.kind == "invalid":
            self.finish = "length" if was_cut else "invalid"
            return False
        if action.kind == "fetch":
            self.refused += self.fetched
            return self._add_turn("fetch", action)
        # Here a reference such as <r3> becomes the query that it stands for; before memory was
        # read there is no such line.
        lines = self.profile.references if self.fetched else ()
        query = expand(action, lines, self.searched)
        if query is None or not query_key(query):
            self.finish = "invalid"
            return False
        if action.kind == "recommend":
            self._add_turn("recommend", action, query)
            self.query, self.finish = query, "recommended"
            return False
        self.repeated += any(query_key(q) == query_key(query) for q in self.searched)
        if len(self.searched) >= self.config.max_searches:
            self.refused += 1
            return self._add_turn("refused", action, query)
        self.request = SearchRequest(query, self.as_of, self.profile.context)
        return self._add_turn("search", action, query)

    def answer(self, result: SearchResult | None) -> str:
        """What the agent reads after its last turn; ``result`` is that of a search."""
        turn = self.turns[-1]
        if turn.kind == "fetch":
            return profile_text(self.profile)
        if result is None:
            return refusal_text()
        self.turns[-1] = replace(turn, products=result.products)
        return results_text(len(self.searched), result.lines)

    def _add_turn(self, kind: TurnKind, action: Action, query: str = "") -> bool:
        """Note a turn; returns whether the chain may have another one."""
        self.turns.append(Turn(kind, query, action.reference, think=action.think))
        if len(self.turns) < self.config.max_searches + MAX_TURNS_BEYOND_SEARCHES:
            return True
        self.finish = "turns"
        return False
