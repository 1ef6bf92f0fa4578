"""Values by user that expire, and are forgotten when their user does something."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache, TTLCache

T = TypeVar("T")


class UserCache(Generic[T]):
    """Values by user and key; the least recently used user is dropped first. Thread-safe.

    Args:
        seconds: How long a value is good; 0 stores nothing.
        users: How many users are held.
        clock: Gives seconds; for tests.
    """

    def __init__(
        self, seconds: float, users: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._clock = seconds, clock
        self._users: LRUCache[str, TTLCache[Hashable, T]] = LRUCache(users)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._users)

    def get(self, user: str, key: Hashable) -> T | None:
        """The value, if it is still good."""
        with self._lock:
            values = self._users.get(user)
            return None if values is None else values.get(key)

    def latest(self, user: str) -> T | None:
        """The value that was stored last of a user's, if it is still good."""
        with self._lock:
            values = self._users.get(user)
            return next(reversed(list(values.values())), None) if values else None

    def put(self, user: str, key: Hashable, value: T) -> None:
        """Store a value."""
        if self._seconds <= 0:
            return
        with self._lock:
            values = self._users.get(user)
            if values is None:
                values = TTLCache(math.inf, self._seconds, timer=self._clock)
                self._users[user] = values
            values[key] = value

    def users(self) -> list[str]:
        """The users of whom something is held, the least recently used first."""
        with self._lock:
            return list(self._users)

    def forget(self, user: str) -> None:
        """Drop all values of a user."""
        with self._lock:
            self._users.pop(user, None)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._users.clear()
