"""Store the events that clients post."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from ..errors import QAgentError
from ..ingest.ingest import append_event_batches
from ..ingest.journal import events_entry
from .metrics import Metrics
from .requests import PendingEvents
from .store import ShopStore

MAX_CLOCK_SKEW = timedelta(minutes=5)  # how far a client's clock may be ahead
TICK = timedelta(milliseconds=1)  # between events that came without a time


def store_events(store: ShopStore, posts: Sequence[PendingEvents], metrics: Metrics) -> None:
    """Store what several clients posted, in one pass, and set the result of each.

    The journal has it on disk before the snapshot knows it and anybody is told.
    An event without a time happened now; in a simulated shop, whose log lives in a time of
    its own, just after the log's last event.
    """
    shop = store.shop
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    end = shop.end_of_log()
    latest = max(now, end) + MAX_CLOCK_SKEW
    clock = end if shop.config.simulated is not None else now
    accepted: list[PendingEvents] = []
    batches: list[list[dict[str, Any]]] = []
    for post in posts:
        times = [event.get("time") for event in post.events]
        late = next((n for n, time in enumerate(times, 1) if time and time > latest), None)
        if late is not None:
            text = f"event {late}: its time lies in the future; send UTC times"
            post.future.set_exception(QAgentError(text))
            continue
        batch = []
        for event, time in zip(post.events, times, strict=True):
            batch.append({**event, "time": time or clock})
            clock += TICK
        accepted.append(post)
        batches.append(batch)
    if not batches:
        return
    store.append([events_entry(batch) for batch in batches])
    for post, report in zip(accepted, append_event_batches(shop, batches), strict=True):
        for outcome in ("accepted", "rejected", "duplicates"):
            if count := getattr(report, outcome):
                metrics.events.labels(outcome).inc(count)
        if not post.future.done():  # a client that waited too long is gone
            post.future.set_result(report)
