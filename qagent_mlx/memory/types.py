"""The values that memory's parts pass to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from .candidates import Candidates
from .event_log import microseconds
from .user_state import UserState

CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Moment:
    """A user and a time; nothing at or after the time is seen."""

    user_id: str
    as_of: datetime

    @property
    def at(self) -> int:
        """The time in microseconds since 1970."""
        return microseconds(self.as_of)


@dataclass(frozen=True, slots=True)
class UserMemory:
    """What a profile is made of: candidate queries, and the rest of the user's state.

    ``just_bought``: the categories that it is too soon to offer again (see `repurchase`).
    ``needed``: how much categories are needed that people with the same past came back for (see
    `neighbours.Needs`).
    """

    candidates: Candidates
    state: UserState
    just_bought: tuple[str, ...]
    needed: Mapping[str, float]
