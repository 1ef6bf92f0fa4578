"""Answers that users were shown, and what they did then."""

from datetime import datetime, timedelta

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.live.shown import ShownAnswer, new_recommendation_id, record_shown

NOW = datetime(2026, 5, 1, 12)


def show(
    shop, *queries, user="u01", at=NOW, policy="a", source="agent", recommendation_id=None, **more
):
    answer = ShownAnswer(
        recommendation_id or new_recommendation_id(),
        *(user, at, queries, (1.0,) * len(queries), source, policy),
        **more,
    )
    record_shown(shop, [answer])
    return answer.recommendation_id


def did(shop, *events):
    rows = [{"user_id": "u01", **event} for event in events]
    assert append_events(shop, rows).accepted == len(events)


def after(**time):
    return NOW + timedelta(**time)
