"""What a server has read of its users: their memory, and what they may be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from ..agent.recommend import Recommender, RecommendRequest
from ..live.limits import Limits
from ..types import Profile
from .cache import UserCache
from .config import ServeConfig
from .requests import PendingRequest


class UserReadings:
    """Reads users' memory, and keeps it until they do something. For the worker's thread.

    Args:
        recommender: Has the shop's memory and its rules.
        config: How long what was read is good, and of how many users it is kept.
        time: Now, in the shop's time: by it rules hold.
    """

    def __init__(
        self, recommender: Recommender, config: ServeConfig, time: Callable[[], datetime]
    ) -> None:
        self._recommender, self._time = recommender, time
        self._profiles: UserCache[Profile] = UserCache(config.cache_seconds, config.cache_users)
        self._personal: UserCache[tuple[Profile, Limits]] = UserCache(
            config.cache_seconds, config.cache_users
        )

    def requests(self, pending: Sequence[PendingRequest], now: datetime) -> list[RecommendRequest]:
        """What to ask for those who wait; ``now`` where they name no moment."""
        profiles = self._read(pending, now)
        return [
            RecommendRequest(
                profile,
                request.as_of or now,
                request.k,
                request.chains,
                self._recommender.others(request.as_of or now),
                limits,
            )
            for request, profile, limits in zip(
                pending, profiles, self._limits(pending), strict=True
            )
        ]

    def personal(self, user: str) -> tuple[Profile, Limits] | None:
        """What is expected of a user and may be shown to them, where it was read lately.

        Any thread may ask.
        """
        return self._personal.get(user, None)

    def read_personal(self, user: str, now: datetime) -> tuple[Profile, Limits]:
        """The same, read now."""
        profile = self._current([user], now)[user]
        (limits,) = self._recommender.limits.limits([user], self._time())
        self._personal.put(user, None, (profile, limits))
        return profile, limits

    def forget(self, user: str) -> None:
        """A user did or wants something."""
        self._personal.forget(user)
        self._profiles.forget(user)

    def clear(self) -> None:
        """What all readings follow from has changed."""
        self._profiles.clear()
        self._personal.clear()

    def _read(self, pending: Sequence[PendingRequest], now: datetime) -> list[Profile]:
        """The users' profiles, each at the moment of its request."""
        current = self._current([r.user for r in pending if r.as_of is None], now)
        return [
            current[r.user] if r.as_of is None else self._recommender.profiles([r.user], r.as_of)[0]
            for r in pending
        ]

    def _current(self, users: Iterable[str], now: datetime) -> dict[str, Profile]:
        """The profiles of users; those of users who did nothing since are still good."""
        known = {user: self._profiles.get(user, None) for user in users}
        current = {user: profile for user, profile in known.items() if profile is not None}
        missing = [user for user in known if user not in current]
        if missing:
            profiles = self._recommender.profiles(missing, now)
            for user, profile in zip(missing, profiles, strict=True):
                current[user] = profile
                self._profiles.put(user, None, profile)
        return current

    def _limits(self, pending: Sequence[PendingRequest]) -> list[Limits]:
        """What each answer may hold."""
        book = self._recommender.limits
        now = book.limits([r.user for r in pending], self._time())
        return [
            limits if request.as_of is None else book.limits([request.user], request.as_of)[0]
            for request, limits in zip(pending, now, strict=True)
        ]
