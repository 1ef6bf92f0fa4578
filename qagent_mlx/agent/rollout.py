"""Chains of retrieval, many at once: decode, stop at an action, run the tool, go on.

The trained ids are the sampled ids: a rollout keeps the very tokens that the policy chose
and the environment inserted, with a mask that tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache, partial
from itertools import takewhile

import mlx.core as mx
import numpy as np

from ..policy.policy import Policy
from ..protocol.actions import expand, parse_action, refusal_text, results_text
from ..protocol.config import AgentConfig
from ..protocol.grammar import Moves
from ..types import Profile
from ..utils.runtime import total_memory
from ..utils.text import query_key
from .decode import Batch, Decoder, Row
from .tools import FetchMemory, Found, Request, SearchProducts, empty_profile

MAX_TURNS_BEYOND_SEARCHES = 3  # fetch, recommend, and one slip
OBSERVATIONS = 4096  # tool answers whose ids are remembered


@dataclass(frozen=True, slots=True)
class Turn:
    """One action of a chain and, for a search, what it returned."""

    kind: str
    query: str = ""
    reference: str = ""
    products: tuple[str, ...] = ()
    think: str = ""


@dataclass(slots=True)
class Rollout:
    """One chain of retrieval, from prompt to recommended query.

    ``tokens[:prompt_length]`` is the prompt; ``sampled`` and ``logprobs`` cover what comes
    after it. ``finish`` is ``recommended``, or why the chain ended without one:
    ``invalid`` (not an action of the protocol), ``length``, ``turns``.
    """

    case: int
    member: int
    tokens: list[int]
    prompt_length: int
    sampled: list[bool]
    logprobs: list[float]
    turns: list[Turn] = field(default_factory=list)
    query: str = ""
    finish: str = ""
    repeated: int = 0  # searches of a query that was searched before
    refused: int = 0  # actions that were understood but not allowed

    @property
    def trained_mask(self) -> list[bool]:
        """Which of all tokens the policy chose: they carry loss, nothing else does."""
        return [False] * self.prompt_length + self.sampled

    @property
    def sampled_logprobs(self) -> list[float]:
        """Log-probabilities of the chosen tokens, in order."""
        return [v for s, v in zip(self.sampled, self.logprobs, strict=True) if s]

    @property
    def key(self) -> str:
        """The identity of the recommended query; empty when there is none."""
        return query_key(self.query) if self.query else ""

    @property
    def searched(self) -> dict[str, tuple[str, ...]]:
        """Query key -> products, for every search of the chain."""
        return {query_key(t.query): t.products for t in self.turns if t.kind == "search"}

    @property
    def searches(self) -> int:
        """How often the inventory was searched, repeats included."""
        return sum(t.kind == "search" for t in self.turns)

    @property
    def validated(self) -> bool:
        """Whether the recommended query was searched in this chain."""
        return bool(self.query) and self.key in self.searched

    @property
    def products(self) -> tuple[str, ...]:
        """What the recommended query retrieved in this chain, the best first."""
        return self.searched.get(self.key, ())

    @property
    def fetched(self) -> bool:
        """Whether the memory was read."""
        return any(t.kind == "fetch" for t in self.turns)

    @property
    def answer_logprob(self) -> float:
        """Log-probability of the last turn, which is the recommendation; of all its tokens, as
        tags and queries of chat models take several."""
        pairs = zip(self.sampled[::-1], self.logprobs[::-1], strict=True)
        turn = [value for _, value in takewhile(lambda pair: pair[0], pairs)]
        return float(sum(turn[::-1]))


@dataclass(frozen=True, slots=True)
class Task:
    """What a chain is for: a user's profile at a moment.

    A task with a ``stream`` is sampled from it instead of from its place among the tasks, so
    that its chains do not depend on who else is in the batch.
    """

    profile: Profile
    as_of: datetime | None
    stream: int | None = None


class Roller:
    """Runs chains with one policy, one search engine and one configuration."""

    def __init__(
        self,
        policy: Policy,
        tools: SearchProducts,
        config: AgentConfig,
        max_rows: int = 256,
        memory: int | None = None,
        guided: bool = False,
    ) -> None:
        """Chains that are decoded together are bounded by ``max_rows`` and by memory.

        Args:
            policy: Whose chains.
            tools: What answers searches.
            config: How chains run.
            max_rows: Rows that decode or wait at the same time.
            memory: Bytes for their keys and values; an eighth of the machine's by default.
            guided: For serving, with a policy that stays as it is: draw only what is an action
                where the policy's chains are so.
        """
        self.policy = policy
        # Guided chains draw only what is allowed; training must not be (see grammar.py).
        self.grammar = policy.codec.grammar() if guided and config.guided else None
        self.config = config
        self.memory = total_memory() // 8 if memory is None else memory
        self._token_bytes = policy.cache_bytes
        # Chains of a group read the same profile and much the same results.
        self.observation = lru_cache(OBSERVATIONS)(policy.codec.observation)
        self._longest = len(policy.prompt) + config.profile_budget
        self._tools = tools
        self._memory = FetchMemory(config)
        self._trained = not guided
        self.decoder = Decoder(policy, light=True)
        self._max_rows = max_rows

    def run(
        self,
        tasks: Sequence[Task],
        group: int,
        seed: Sequence[int] | None,
        progress: Callable[[int], None] | None = None,
        numbers: Sequence[int] | None = None,
        watch: Callable[[int, Turn], None] | None = None,
    ) -> list[Rollout]:
        """``group`` chains for each task, in order of task and member.

        Args:
            tasks: One a case.
            group: Rollouts a task (G).
            seed: With a seed every chain is sampled at temperature 1 from its own stream,
                which depends only on the seed, the task's place (or stream) and the member.
                None decodes greedily.
            progress: Called with the number of chains that have ended.
            numbers: The tasks' places, where these are some of a larger list.
            watch: Called with a chain's place and its turn, as soon as that has its answer.
        """
        if self._trained:  # perhaps since the last call
            self.decoder.refresh()
        chains = [
            _Chain(self, task, number, member, seed)
            for number, task in zip(
                range(len(tasks)) if numbers is None else numbers, tasks, strict=True
            )
            for member in range(group)
        ]
        # Each call starts anew, so that a resumed run makes the batches of an unbroken one.
        self._longest = len(self.policy.prompt) + self.config.profile_budget
        if watch is not None:
            for place, chain in enumerate(chains):
                chain.watch = partial(watch, place)
        done = 0
        fresh = list(chains)
        going = Batch([], [], None)
        waiting: list[Batch] = []
        while fresh or going.rows or waiting:
            most = self._rows_that_fit()
            held = len(going.rows) + sum(len(w.rows) for w in waiting)
            room = most - held
            # Joining a running batch copies its cache, so rows come in by half batches.
            if fresh and (2 * room >= most or not held):
                admitted, fresh = fresh[:room], fresh[room:]
                going.extend(self.decoder.start([c.row for c in admitted]))
            parked_rows = sum(len(w.rows) for w in waiting)
            # Tools run in batches: when nobody decodes, or when most rows wait.
            if waiting and (not going.rows or parked_rows >= 2 * len(going.rows)):
                going.extend(self._answer(_join(waiting)))
                waiting = []
            going, halted = self.decoder.draw(going)
            if halted.rows:
                # What the chains said decides who waits for a tool and who has ended.
                keep = [i for i, row in enumerate(halted.rows) if row.tag.acted()]
                done += len(halted.rows) - len(keep)
                if keep:
                    parked = halted.take(keep) if len(keep) < len(halted.rows) else halted
                    mx.eval([c.state for c in parked.cache])
                    waiting.append(parked)
                if progress is not None:
                    progress(done)
            if going.rows:
                self.decoder.advance(going)
        return [chain.rollout() for chain in chains]

    def _rows_that_fit(self) -> int:
        """How many rows may be held: as many as memory has room for at the length seen so far.

        Caches grow in steps of 256 tokens, and while one grows or a row leaves there are two.
        """
        length = -(-self._longest // 256) * 256
        fitting = self.memory // max(1, 2 * length * self._token_bytes)
        return int(max(1, min(self._max_rows, fitting)))

    def _answer(self, batch: Batch) -> Batch:
        """Run the tools of all rows that wait, in one call, and put the answers in."""
        chains: list[_Chain] = [row.tag for row in batch.rows]
        asking = [c for c in chains if c.request is not None]
        found = self._tools.run([c.request for c in asking if c.request is not None])
        answers = dict(zip((id(c) for c in asking), found, strict=True))
        for chain in chains:
            chain.answer(answers.get(id(chain)), self._memory)
            self._longest = max(self._longest, len(chain.row.tokens))
        return self.decoder.resume(batch)


def _join(parts: list[Batch]) -> Batch:
    joined = parts[0]
    for part in parts[1:]:
        joined.extend(part)
    return joined


class _Chain:
    """The environment's side of one chain."""

    def __init__(
        self, roller: Roller, task: Task, number: int, member: int, seed: Sequence[int] | None
    ) -> None:
        self.roller, self.task, self.number, self.member = roller, task, number, member
        policy, config = roller.policy, roller.config
        self.profile = task.profile if config.memory else empty_profile(task.profile)
        uniforms = None
        if seed is not None:
            place = number if task.stream is None else task.stream
            uniforms = np.random.Generator(np.random.Philox(key=_key((*seed, place, member))))
        self.row = Row(
            tokens=list(policy.prompt),
            stopper=policy.stopper(),
            uniforms=uniforms,
            turn_limit=config.turn_tokens,
            tag=self,
            allowed=self._allowed if roller.grammar is not None else None,
        )
        self.turns: list[Turn] = []
        self.watch: Callable[[Turn], None] = _unwatched
        self.request: Request | None = None
        self.note = ""
        self.query = ""
        self.finish = ""
        self.repeated = self.refused = 0

    def _allowed(self) -> np.ndarray:
        """The ids that may come next in this turn."""
        grammar, policy = self.roller.grammar, self.roller.policy
        assert grammar is not None
        searched = {query_key(t.query) for t in self.turns if t.kind == "search"}
        count = sum(t.kind == "search" for t in self.turns)
        fetched = any(t.kind == "fetch" for t in self.turns)
        left = fetched and count < self.roller.config.max_searches
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
        action = parse_action(self.roller.policy.codec.decode(self.row.turn))
        config = self.roller.config
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
            self.turns.append(
                Turn("recommend", query, action.reference, think=action.think)
            )
            self.watch(self.turns[-1])
            return False
        if any(query_key(q) == query_key(query) for q in earlier):
            self.repeated += 1
        if len(earlier) >= config.max_searches:
            self.refused += 1
            self.note = "limit"
            self.turns.append(Turn("refused", query, action.reference, think=action.think))
            return self._goes_on()
        self.turns.append(Turn("search", query, action.reference, think=action.think))
        self.request = Request(query, self.task.as_of, self.profile.context)
        return self._goes_on()

    def _goes_on(self) -> bool:
        if len(self.turns) >= self.roller.config.max_searches + MAX_TURNS_BEYOND_SEARCHES:
            self.finish = "turns"
            return False
        return True

    def answer(self, found: Found | None, memory: FetchMemory) -> None:
        """Insert the tool's answer into the row."""
        last = self.turns[-1]
        if last.kind == "fetch":
            text = memory.run(self.profile)
        elif found is not None:
            self.turns[-1] = Turn(
                last.kind, last.query, last.reference, found.products, last.think
            )
            number = sum(t.kind == "search" for t in self.turns)
            text = results_text(number, found.lines)
        else:
            text = refusal_text()
        self.row.insert(self.roller.observation(text))
        self.watch(self.turns[-1])

    def rollout(self) -> Rollout:
        """The finished chain."""
        return Rollout(
            case=self.number, member=self.member, tokens=self.row.tokens,
            prompt_length=len(self.roller.policy.prompt),
            sampled=self.row.sampled, logprobs=self.row.logprobs, turns=self.turns,
            query=self.query, finish=self.finish, repeated=self.repeated, refused=self.refused,
        )


def _unwatched(_turn: Turn) -> None:
    """Nobody looks on."""


def _key(parts: Sequence[int]) -> int:
    """A 64-bit key that differs for different sequences of integers."""
    state = np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(2)
    return int(state[0]) << 32 | int(state[1])
