"""One chain of retrieval: its turns, its tool calls and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..policy.policy import Policy
from ..protocol.actions import expand, parse_action, refusal_text, results_text
from ..protocol.config import AgentConfig
from ..protocol.grammar import Grammar, Moves
from ..utils.text import query_key
from .decode import DecodingSequence
from .tools import FetchMemory, SearchRequest, SearchResult, empty_profile
from .types import Finish, Rollout, Task, Turn

MAX_TURNS_BEYOND_SEARCHES = 3  # fetch, recommend, and one slip


@dataclass(frozen=True, slots=True)
class EpisodeRules:
    """What all episodes of one rollout runner share."""

    policy: Policy
    config: AgentConfig
    grammar: Grammar | None  # constrains what may be drawn; None while training
    observation: Callable[[str], list[int]]  # the token ids of a tool's answer


class Episode:
    """One chain of retrieval while it runs: its turns so far, and the row that decodes it."""

    def __init__(
        self, rules: EpisodeRules, task: Task, number: int, member: int, seed: Sequence[int] | None
    ) -> None:
        self.rules, self.task, self.number, self.member = rules, task, number, member
        policy, config = rules.policy, rules.config
        self.profile = task.profile if config.memory else empty_profile(task.profile)
        uniforms = None
        if seed is not None:
            place = number if task.stream is None else task.stream
            uniforms = np.random.Generator(np.random.Philox(key=_key((*seed, place, member))))
        self.row = DecodingSequence(
            tokens=list(policy.prompt),
            stopper=policy.stopper(),
            uniforms=uniforms,
            turn_limit=config.turn_tokens,
            tag=self,
            allowed=self._allowed if rules.grammar is not None else None,
        )
        self.turns: list[Turn] = []
        self.watch: Callable[[Turn], None] | None = None
        self.request: SearchRequest | None = None
        self.note = ""
        self.query = ""
        self.finish: Finish | Literal[""] = ""
        self.repeated = self.refused = 0

    def _allowed(self) -> np.ndarray:
        """The ids that may come next in this turn."""
        grammar, policy = self.rules.grammar, self.rules.policy
        assert grammar is not None
        searched = {query_key(t.query) for t in self.turns if t.kind == "search"}
        count = sum(t.kind == "search" for t in self.turns)
        fetched = any(t.kind == "fetch" for t in self.turns)
        left = fetched and count < self.rules.config.max_searches
        fresh = [i for i, q in enumerate(self.profile.references) if query_key(q) not in searched]
        moves = Moves(
            fetch=not fetched,
            lines=tuple(fresh) if left else (),
            words=left,
            searched=count if fetched else 0,
        )
        return grammar.mask(policy.codec.decode(self.row.turn), len(self.row.turn), moves)

    def acted(self) -> bool:
        """Read what the row just said; true when it waits for an answer."""
        action = parse_action(self.rules.policy.codec.decode(self.row.turn))
        config = self.rules.config
        self.request, self.note = None, ""
        if action.kind == "invalid":
            closed = len(self.row.turn) < self.row.turn_limit
            self.finish = "invalid" if closed else "length"
            return False
        if action.kind == "fetch":
            if any(t.kind == "fetch" for t in self.turns):
                self.refused += 1
            self.turns.append(Turn("fetch", think=action.think))
            return self._goes_on()
        earlier = [t.query for t in self.turns if t.kind == "search"]
        query = expand(action, self.profile.references, earlier)
        if query is None or not query_key(query):
            self.finish = "invalid"
            return False
        if action.kind == "recommend":
            self.query, self.finish = query, "recommended"
            self.turns.append(Turn("recommend", query, action.reference, think=action.think))
            self._report()
            return False
        if any(query_key(q) == query_key(query) for q in earlier):
            self.repeated += 1
        if len(earlier) >= config.max_searches:
            self.refused += 1
            self.note = "limit"
            self.turns.append(Turn("refused", query, action.reference, think=action.think))
            return self._goes_on()
        self.turns.append(Turn("search", query, action.reference, think=action.think))
        self.request = SearchRequest(query, self.task.as_of, self.profile.context)
        return self._goes_on()

    def _goes_on(self) -> bool:
        if len(self.turns) >= self.rules.config.max_searches + MAX_TURNS_BEYOND_SEARCHES:
            self.finish = "turns"
            return False
        return True

    def answer(self, found: SearchResult | None, memory: FetchMemory) -> None:
        """Insert the tool's answer into the row."""
        last = self.turns[-1]
        if last.kind == "fetch":
            text = memory.run(self.profile)
        elif found is not None:
            self.turns[-1] = Turn(last.kind, last.query, last.reference, found.products, last.think)
            number = sum(t.kind == "search" for t in self.turns)
            text = results_text(number, found.lines)
        else:
            text = refusal_text()
        self.row.insert(self.rules.observation(text))
        self._report()

    def _report(self) -> None:
        if self.watch is not None:
            self.watch(self.turns[-1])

    def rollout(self) -> Rollout:
        """The finished chain."""
        return Rollout(
            case=self.number,
            member=self.member,
            tokens=tuple(self.row.tokens),
            prompt_length=len(self.rules.policy.prompt),
            sampled=tuple(self.row.sampled),
            logprobs=tuple(self.row.logprobs),
            turns=tuple(self.turns),
            query=self.query,
            finish=self.finish,
            repeated=self.repeated,
            refused=self.refused,
        )


def _key(parts: Sequence[int]) -> int:
    """A 64-bit key that differs for different sequences of integers."""
    state = np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(2)
    return int(state[0]) << 32 | int(state[1])
