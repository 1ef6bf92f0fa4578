"""One chain of retrieval: what the policy does, what it observes, and how the chain ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..policy.policy import Policy
from ..protocol.actions import (
    Action,
    expand,
    parse_action,
    profile_text,
    refusal_text,
    results_text,
)
from ..protocol.config import AgentConfig
from ..protocol.grammar import Grammar, Moves
from ..utils.text import query_key
from .sequences import DecodingSequence
from .tools import SearchRequest, SearchResult
from .types import Finish, Rollout, Task, Turn, TurnKind

MAX_TURNS_BEYOND_SEARCHES = 3  # fetch, recommend, and one slip


@dataclass(frozen=True, slots=True)
class EpisodeRules:
    """What all episodes of one rollout runner share."""

    policy: Policy
    config: AgentConfig
    grammar: Grammar | None  # constrains what may be drawn; None while training
    encode_observation: Callable[[str], list[int]]  # token ids of a tool's answer


class Episode:
    """One chain of retrieval while it runs: member ``member`` of the group of task ``case``.

    The runner decodes `sequence` until a turn ends and calls `act`; if the turn needs a tool,
    it calls `observe` with the result. `rollout` is the finished chain. ``watch`` is called
    with each turn as soon as that has its answer; without a ``seed``, decoding is greedy.
    """

    def __init__(
        self,
        rules: EpisodeRules,
        task: Task,
        case: int,
        member: int,
        seed: Sequence[int] | None,
        watch: Callable[[Turn], None] | None = None,
    ) -> None:
        self.rules, self.task, self.case, self.member = rules, task, case, member
        self.profile = task.profile if rules.config.memory else task.profile.without_memory()
        stream = None
        if seed is not None:
            number = case if task.stream is None else task.stream
            key = _hash_integers((*seed, number, member))
            stream = np.random.Generator(np.random.Philox(key=key))
        self.sequence = DecodingSequence(
            tokens=list(rules.policy.prompt),
            stopper=rules.policy.stopper(),
            stream=stream,
            turn_limit=rules.config.turn_tokens,
            tag=self,
            allowed_ids=self._allowed_ids if rules.grammar is not None else None,
        )
        self.turns: list[Turn] = []
        self.request: SearchRequest | None = None  # a search that waits for its result
        self._watch = watch
        self._query = ""
        self._finish: Finish | Literal[""] = ""
        self._repeated = self._refused = 0

    @property
    def _searched(self) -> list[str]:
        return [turn.query for turn in self.turns if turn.kind == "search"]

    @property
    def _fetched(self) -> bool:
        return any(turn.kind == "fetch" for turn in self.turns)

    def _allowed_ids(self) -> np.ndarray:
        """Which ids may come next in this turn: (V,) of bool."""
        rules = self.rules
        assert rules.grammar is not None
        count, fetched = len(self._searched), self._fetched
        searched = {query_key(query) for query in self._searched}
        may_search = fetched and count < rules.config.max_searches
        references = enumerate(self.profile.references if may_search else ())
        moves = Moves(
            fetch=not fetched,
            lines=tuple(i for i, query in references if query_key(query) not in searched),
            words=may_search,
            searched=count if fetched else 0,
        )
        turn = self.sequence.turn
        return rules.grammar.mask(rules.policy.codec.decode(turn), len(turn), moves)

    def act(self) -> bool:
        """Read the turn that was just decoded; returns whether it waits for a tool's answer."""
        action = parse_action(self.rules.policy.codec.decode(self.sequence.turn))
        self.request = None
        if action.kind == "invalid":
            was_cut = len(self.sequence.turn) >= self.sequence.turn_limit
            self._finish = "length" if was_cut else "invalid"
            return False
        if action.kind == "fetch":
            self._refused += self._fetched
            return self._add_turn("fetch", action)
        # Here a reference such as <r3> becomes the query that it stands for; before memory was
        # read there is no such line.
        lines = self.profile.references if self._fetched else ()
        query = expand(action, lines, self._searched)
        if query is None or not query_key(query):
            self._finish = "invalid"
            return False
        if action.kind == "recommend":
            self._add_turn("recommend", action, query)
            self._query, self._finish = query, "recommended"
            self._report()
            return False
        self._repeated += any(query_key(q) == query_key(query) for q in self._searched)
        if len(self._searched) >= self.rules.config.max_searches:
            self._refused += 1
            return self._add_turn("refused", action, query)
        self.request = SearchRequest(query, self.task.as_of, self.profile.context)
        return self._add_turn("search", action, query)

    def _add_turn(self, kind: TurnKind, action: Action, query: str = "") -> bool:
        """Note a turn; returns whether the chain may have another one."""
        self.turns.append(Turn(kind, query, action.reference, think=action.think))
        if len(self.turns) < self.rules.config.max_searches + MAX_TURNS_BEYOND_SEARCHES:
            return True
        self._finish = "turns"
        return False

    def observe(self, result: SearchResult | None) -> None:
        """Insert the answer to the last turn; ``result`` is that of a search."""
        turn = self.turns[-1]
        if turn.kind == "fetch":
            text = profile_text(self.profile)
        elif result is not None:
            self.turns[-1] = replace(turn, products=result.products)
            text = results_text(len(self._searched), result.lines)
        else:
            text = refusal_text()
        self.sequence.insert(self.rules.encode_observation(text))
        self._report()

    def _report(self) -> None:
        if self._watch is not None:
            self._watch(self.turns[-1])

    def rollout(self) -> Rollout:
        """The chain as it is now."""
        return Rollout(
            case=self.case,
            member=self.member,
            tokens=tuple(self.sequence.tokens),
            prompt_length=len(self.rules.policy.prompt),
            sampled=tuple(self.sequence.sampled),
            logprobs=tuple(self.sequence.logprobs),
            turns=tuple(self.turns),
            query=self._query,
            finish=self._finish,
            repeated=self._repeated,
            refused=self._refused,
        )


def _hash_integers(integers: Sequence[int]) -> int:
    """A 64-bit hash of a sequence of integers."""
    state = np.random.SeedSequence([i & 0xFFFFFFFF for i in integers]).generate_state(2)
    return int(state[0]) << 32 | int(state[1])
