"""Answers that are still good: bounded, and forgotten when their user does something."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class UserCache(Generic[T]):
    """Values by user and key, the least recently used user going first. Threads may share it.

    Args:
        seconds: How long a value is good; 0 keeps nothing.
        users: How many users are kept.
        clock: Gives seconds; for tests.
    """

    def __init__(
        self, seconds: float, users: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._users, self._clock = seconds, users, clock
        self._kept: OrderedDict[str, dict[Hashable, tuple[float, T]]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, user: str, key: Hashable) -> T | None:
        """The value, if it is still good."""
        with self._lock:
            found = self._kept.get(user, {}).get(key)
            if found is None or self._clock() >= found[0]:
                return None
            self._kept.move_to_end(user)
            return found[1]

    def put(self, user: str, key: Hashable, value: T) -> None:
        """Keep a value."""
        if self._seconds <= 0:
            return
        with self._lock:
            now = self._clock()
            mine = {k: v for k, v in self._kept.get(user, {}).items() if now < v[0]}
            mine[key] = (now + self._seconds, value)
            self._kept[user] = mine
            self._kept.move_to_end(user)
            while len(self._kept) > self._users:
                self._kept.popitem(last=False)

    def forget(self, user: str) -> None:
        """Drop all values of a user."""
        with self._lock:
            self._kept.pop(user, None)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._kept.clear()
