"""One chain of retrieval in tokens: what the policy decodes, and what is inserted after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..policy.policy import Policy
from ..protocol.actions import parse_action
from ..protocol.config import AgentConfig
from ..protocol.grammar import MIN_P, Grammar, Moves
from ..protocol.query_automaton import QueryAutomaton
from ..utils.text import query_key
from .chain import Chain
from .sequences import DecodingSequence
from .tools import SearchRequest, SearchResult
from .types import Rollout, Task, Turn


@dataclass(frozen=True, slots=True)
class EpisodeRules:
    """What all episodes of one rollout runner share."""

    policy: Policy
    config: AgentConfig
    grammar: Grammar | None  # constrains what may be drawn; None while training
    encode_observation: Callable[[str], list[int]]  # token ids of a tool's answer
    automaton: QueryAutomaton | None = None  # of the queries that may be written; None: any


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
        self.chain = Chain(rules.config, task.profile, task.as_of)
        self.sequence = DecodingSequence(
            tokens=list(rules.policy.prompt),
            stopper=rules.policy.stopper(),
            stream=random_stream(seed, case if task.stream is None else task.stream, member),
            turn_limit=rules.config.turn_tokens,
            tag=self,
            allowed_ids=self._mask_source(),
            min_p=MIN_P if rules.grammar is not None else 0.0,
        )
        self._watch = watch

    def _mask_source(self) -> Callable[[], np.ndarray | None] | None:
        if self.rules.grammar is not None:
            return self._ids_of_actions
        return self._ids_of_queries if self.rules.automaton is not None else None

    def _ids_of_queries(self) -> np.ndarray | None:
        """Which ids may come next where a query is being written, see `QueryAutomaton`."""
        automaton = self.rules.automaton
        assert automaton is not None
        turn = self.sequence.turn
        read = self.sequence.tokens[: len(self.sequence.tokens) - len(turn)]
        return automaton.next_mask(read, turn, len(self.chain.profile.references))

    def _ids_of_actions(self) -> np.ndarray:
        """Which ids keep this turn the beginning of an allowed action: (V,) of bool."""
        rules = self.rules
        assert rules.grammar is not None
        chain = self.chain
        count, fetched = len(chain.searched), chain.fetched
        searched = {query_key(query) for query in chain.searched}
        may_search = fetched and count < rules.config.max_searches
        references = enumerate(chain.profile.references if may_search else ())
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
        turn = self.sequence.turn
        action = parse_action(self.rules.policy.codec.decode(turn))
        waits = self.chain.act(action, was_cut=len(turn) >= self.sequence.turn_limit)
        if self.chain.finish == "recommended":
            self._report()
        return waits

    @property
    def request(self) -> SearchRequest | None:
        """A search that waits for its result."""
        return self.chain.request

    def observe(self, result: SearchResult | None) -> None:
        """Insert the answer to the last turn; ``result`` is that of a search."""
        self.sequence.insert(self.rules.encode_observation(self.chain.answer(result)))
        self._report()

    def _report(self) -> None:
        if self._watch is not None:
            self._watch(self.chain.turns[-1])

    def rollout(self) -> Rollout:
        """The chain as it is now."""
        chain = self.chain
        return Rollout(
            case=self.case,
            member=self.member,
            tokens=tuple(self.sequence.tokens),
            prompt_length=len(self.rules.policy.prompt),
            sampled=tuple(self.sequence.sampled),
            logprobs=tuple(self.sequence.logprobs),
            turns=tuple(chain.turns),
            query=chain.query,
            finish=chain.finish,
            repeated=chain.repeated,
            refused=chain.refused,
            references=len(chain.profile.references),
        )


def random_stream(
    seed: Sequence[int] | None, number: int, member: int
) -> np.random.Generator | None:
    """The random numbers of a group's member; None without a seed, where nothing is drawn."""
    if seed is None:
        return None
    integers = [i & 0xFFFFFFFF for i in (*seed, number, member)]
    state = np.random.SeedSequence(integers).generate_state(2)
    return np.random.Generator(np.random.Philox(key=int(state[0]) << 32 | int(state[1])))
