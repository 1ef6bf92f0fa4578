"""What an agent works on and what comes of it: tasks, turns, rollouts and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile
from typing import Literal

from ..types import Profile
from ..utils.text import query_key

TurnKind = Literal["fetch", "search", "refused", "recommend"]
Finish = Literal["recommended", "invalid", "length", "turns"]


@dataclass(frozen=True, slots=True)
class Task:
    """What a chain is for: recommend to the user of a profile at a moment.

    A chain is sampled from the random stream of its task's position in the batch. With
    ``stream`` it is sampled from that stream instead, whoever else is in the batch.
    """

    profile: Profile
    as_of: datetime | None
    stream: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One action of a chain and, for a search, the products that it returned.

    ``reference`` is ``r3`` or ``s1`` where the policy pointed at a query instead of writing
    it. A ``refused`` turn is a search beyond the limit.
    """

    kind: TurnKind
    query: str = ""
    reference: str = ""
    products: tuple[str, ...] = ()
    think: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One chain of retrieval, from the prompt to the recommended query.

    ``tokens[:prompt_length]`` is the prompt. ``sampled`` and ``logprobs`` have one entry for
    each token after it: whether the policy chose the token, and its log-probability (0.0 where
    a tool inserted it). ``finish`` is ``recommended`` or why the chain ended without a query:
    ``invalid`` (not an action of the protocol), ``length`` (a turn too long), ``turns`` (too
    many).
    """

    case: int  # position of the task in its batch
    member: int  # position in the group of that task
    tokens: tuple[int, ...]
    prompt_length: int
    sampled: tuple[bool, ...]
    logprobs: tuple[float, ...]
    turns: tuple[Turn, ...] = ()
    query: str = ""  # what is recommended; empty when the chain ended without a query
    finish: Finish | Literal[""] = ""
    repeated: int = 0  # searches of a query that the chain had searched before
    refused: int = 0  # actions of the protocol that were not allowed
    references: int = 0  # queries of the profile, which the policy could point at

    @property
    def trained_mask(self) -> list[bool]:
        """For each token, whether the policy chose it. Only such tokens carry loss."""
        return [False] * self.prompt_length + list(self.sampled)

    @property
    def sampled_logprobs(self) -> list[float]:
        """Log-probabilities of the tokens that the policy chose, in order."""
        return [v for s, v in zip(self.sampled, self.logprobs, strict=True) if s]

    @property
    def query_key(self) -> str:
        """The normalised form of the recommended query; empty when there is none."""
        return query_key(self.query) if self.query else ""

    @property
    def searched(self) -> dict[str, tuple[str, ...]]:
        """Normalised query -> products, for every search of the chain."""
        return {query_key(t.query): t.products for t in self.turns if t.kind == "search"}

    @property
    def searches(self) -> int:
        """Number of searches, repeated ones included."""
        return sum(t.kind == "search" for t in self.turns)

    @property
    def validated(self) -> bool:
        """Whether the chain searched the query that it recommends, and products were found."""
        return bool(self.query) and bool(self.products)

    @property
    def products(self) -> tuple[str, ...]:
        """What the recommended query retrieved in this chain, best first."""
        return self.searched.get(self.query_key, ())

    @property
    def fetched(self) -> bool:
        """Whether the chain read the memory."""
        return any(t.kind == "fetch" for t in self.turns)

    @property
    def answer_logprob(self) -> float:
        """Log-probability of the last turn (the recommendation): the sum over all its tokens."""
        pairs = zip(self.sampled[::-1], self.logprobs[::-1], strict=True)
        turn = [value for _, value in takewhile(lambda pair: pair[0], pairs)]
        return float(sum(turn[::-1]))


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one task: training compares them, recommending lets them vote."""

    task: Task
    rollouts: tuple[Rollout, ...]


def split_groups(
    rollouts: Sequence[Rollout], tasks: Sequence[Task], sizes: Sequence[int]
) -> list[Group]:
    """Cut rollouts, which lie in order of task and member, into the groups of their tasks."""
    rest = iter(rollouts)
    return [Group(task, tuple(islice(rest, size))) for task, size in zip(tasks, sizes, strict=True)]
