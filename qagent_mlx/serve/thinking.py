"""Think before, answer at once: chains that run while nobody waits, for who may ask next.

After an event its user's chains run as soon as the worker has nothing else to do, and the answer
waits until it is asked for. It is the one that a request would have got at that time. It is
dropped as soon as something changes that it follows from: with the user's next event or wish, and
for everybody with another catalog, other rules, another policy or experiment.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from .cache import UserCache
from .config import ServeConfig
from .metrics import Metrics
from .requests import PendingRequest, RecommendResponse

SETTLE_SECONDS = 1.0  # after a user's last event: events often come in bursts
THINKING_SHARE = 0.5  # of the time in which nobody waits, at most
LONGEST_SECONDS = 60.0  # that one user's chains may take
ACTIVE_DAYS = 7  # before the end of the log, in which a user did something


class Thinker:
    """Whom to think about next, and the answers that wait. All but `ready` is for one thread.

    Args:
        config: What is thought about, how long an answer is good and how many are held.
        metrics: Counts what was done.
        clock: Gives seconds; for tests.
    """

    def __init__(
        self, config: ServeConfig, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._metrics, self._clock = config, metrics, clock
        self._answers: UserCache[RecommendResponse] = UserCache(
            config.think_seconds if config.think != "off" else 0.0, config.think_users, clock
        )
        self._due: OrderedDict[str, float] = OrderedDict()  # user -> from when, the soonest first
        self._rest_until = 0.0
        # When everybody who was active is looked at again.
        self._look_at = clock() if config.think == "active" else float("inf")

    def ready(self, request: PendingRequest) -> RecommendResponse | None:
        """The answer that waits for a request. Any thread may ask."""
        return self._answers.get(request.user, request.key)

    def keep(self, request: PendingRequest, response: RecommendResponse) -> None:
        """Let an answer wait."""
        self._answers.put(request.user, request.key, response)

    def forget(self, user: str) -> None:
        """A user did or wants something: what was thought is void, and thought again soon."""
        self._answers.forget(user)
        self._due.pop(user, None)
        if self._config.think != "off" and user:
            self._due[user] = self._clock() + SETTLE_SECONDS
            if len(self._due) > self._config.think_users:
                self._due.popitem(last=False)

    def clear(self) -> None:
        """What all answers follow from has changed."""
        users = self._answers.users()
        self._answers.clear()
        if self._config.think == "active":
            self._look_at = min(self._look_at, self._clock() + SETTLE_SECONDS)
        for user in users:
            if user not in self._due:
                self.forget(user)

    def pause(self) -> float:
        """Seconds until there is something to think about."""
        due = next(iter(self._due.values()), self._look_at)
        return max(0.0, min(due, self._look_at) - self._clock(), self._rest_until - self._clock())

    @property
    def looks(self) -> bool:
        """Whether it is time to `consider` who was active."""
        return self._clock() >= self._look_at

    def consider(self, active: Callable[[], Iterable[str]]) -> None:
        """Think about users when there is time, but for those about whom it was done lately.

        Args:
            active: Says who was active, the last one first.
        """
        now = self._clock()
        self._look_at = now + self._config.think_seconds / 2
        for user in active():
            latest = self._answers.latest(user)
            if latest is not None and now - latest.made < self._config.think_seconds / 2:
                continue
            if user not in self._due and len(self._due) < self._config.think_users:
                self._due[user] = now

    def think(
        self, answer: Callable[[PendingRequest], None], chains: int, busy: Callable[[], bool]
    ) -> None:
        """Think about the next user; given up as soon as somebody waits.

        Args:
            answer: Answers a request and keeps the response (`keep`).
            chains: What a request gets that names no number of them.
            busy: Whether somebody waits.
        """
        now = self._clock()
        user, due = next(iter(self._due.items()), ("", float("inf")))
        if due > now or now < self._rest_until:
            return
        del self._due[user]
        request = PendingRequest(
            user, self._config.k, chains, time.monotonic() + LONGEST_SECONDS, interrupted=busy
        )
        answer(request)
        is_made = self.ready(request) is not None
        if not is_made and busy():
            self._due[user] = now
            self._due.move_to_end(user, last=False)
        self._metrics.thoughts.labels("made" if is_made else "left").inc()
        done = self._clock()
        self._rest_until = done + (done - now) * (1 / THINKING_SHARE - 1)
