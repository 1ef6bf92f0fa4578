"""The clock of events that clients post."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from ..shop.shop import Shop
from ..utils.stamps import utc_now

MAX_CLOCK_SKEW = timedelta(minutes=5)  # how far a client's clock may be ahead
TICK = timedelta(milliseconds=1)  # between events that came without a time


class EventClock:
    """What moment it is for events that clients post: nothing that they post moves it.

    It is the wall clock, which may be put back while the server runs. The log of a simulated shop
    lives in a time of its own: there time goes on from the log's end, as fast as it does here.
    """

    def __init__(self, shop: Shop) -> None:
        self._is_simulated = shop.config.simulated is not None
        self._started_at = time.monotonic()
        self._start = utc_now()
        self._simulated_start = shop.end_of_log() if self._is_simulated else self._start

    def now(self, shop: Shop) -> datetime:
        """The moment of an event that names none; in a simulated shop after the last event."""
        if not self._is_simulated:
            return utc_now()
        last = shop.end_of_log() - timedelta(seconds=1)
        return max(self._simulated_start + self._running(), last + TICK)

    def latest(self) -> datetime:
        """The latest time that an event may name."""
        start = max(self._start, self._simulated_start)
        return max(utc_now(), start + self._running()) + MAX_CLOCK_SKEW

    def _running(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self._started_at)
