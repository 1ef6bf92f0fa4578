"""Values by moment and by something else, for many moments at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Keyed:
    """Columns of values by key; a key is an integer, and found by all that ask at once.

    Args:
        keys: Each once, in any order.
        columns: Values of each key.
    """

    def __init__(self, keys: np.ndarray, *columns: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._columns = tuple(column[order] for column in columns)

    def places(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the keys are known, as indices, and where these stand in order of keys."""
        places = np.searchsorted(self._keys, keys)
        if not len(self._keys):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places[places == len(self._keys)] = 0
        known = np.flatnonzero(self._keys[places] == keys)
        return known, places[known]

    def get(self, keys: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Which of the keys are known, as indices, and the values of these."""
        known, places = self.places(keys)
        return known, tuple(column[places] for column in self._columns)


class Numbers(Generic[T]):
    """Numbers for things, from 0 in the order in which they come."""

    def __init__(self) -> None:
        self.of: dict[T, int] = {}

    @property
    def size(self) -> int:
        """How many there are, but at least one."""
        return max(1, len(self.of))

    def number(self, things: Iterable[T | None]) -> np.ndarray:
        """The numbers of things, of which new ones get the next; -1 for None and empty texts."""
        of = self.of
        return np.array([of.setdefault(t, len(of)) if t else -1 for t in things], np.int64)

    def known(self, things: Iterable[T]) -> np.ndarray:
        """The numbers of things; -1 for those that have none."""
        return np.array([self.of.get(thing, -1) for thing in things], np.int64)

    def key(self, moments: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Keys of moments and numbers."""
        return np.asarray(moments * self.size + numbers)


def first_of_runs(keys: np.ndarray) -> np.ndarray:
    """Where each run of equal keys begins."""
    if not len(keys):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])


def rank_in_runs(keys: np.ndarray) -> np.ndarray:
    """The position of each key in its run of equal ones, from 0."""
    first = first_of_runs(keys)
    lengths = np.diff(np.append(first, len(keys)))
    return np.arange(len(keys)) - np.repeat(first, lengths)
