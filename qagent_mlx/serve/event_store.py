"""Store the events that clients post."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import QAgentError
from ..ingest.ingest import append_event_batches
from ..ingest.journal import events_entry
from ..ingest.report import IngestReport
from .event_clock import TICK
from .metrics import Metrics
from .requests import PendingEvents
from .store import ShopStore


def store_events(
    store: ShopStore, posts: Sequence[PendingEvents], metrics: Metrics
) -> list[tuple[PendingEvents, IngestReport]]:
    """Store what several clients posted, in one pass; returns what to tell each of them.

    The journal has it on disk before the snapshot knows it. An event without a time happened now
    (`EventClock.now`). A post with a time that lies in the future is refused here.
    """
    shop = store.shop
    latest, clock = store.clock.latest(), store.clock.now(shop)
    accepted: list[PendingEvents] = []
    batches: list[list[dict[str, Any]]] = []
    for post in posts:
        times = [event.get("time") for event in post.events]
        late = next((n for n, moment in enumerate(times, 1) if moment and moment > latest), None)
        if late is not None:
            text = f"event {late}: its time lies in the future; send UTC times"
            post.future.set_exception(QAgentError(text))
            continue
        batch = []
        for event, moment in zip(post.events, times, strict=True):
            batch.append({**event, "time": moment or clock})
            clock += TICK
        accepted.append(post)
        batches.append(batch)
    if not batches:
        return []
    store.append([events_entry(batch) for batch in batches])
    reports = append_event_batches(shop, batches)
    for report in reports:
        for outcome in ("accepted", "rejected", "duplicates"):
            if count := getattr(report, outcome):
                metrics.events.labels(outcome).inc(count)
    return list(zip(accepted, reports, strict=True))
