"""The values that rollouts are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile

from ..types import Profile
from ..utils.text import query_key


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
