"""Statistics of days and hours: what is kept, and what an hour's trends count."""

from dataclasses import replace
from datetime import datetime, timedelta

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.statistics_cache import (
    MAX_DAYS,
    MAX_WHOLE_DAYS,
    DayStatistics,
    StatisticsCache,
)
from qagent_mlx.memory.store import MemoryStore, StoreState
from qagent_mlx.shop.shop import Shop

HOUR = datetime(2026, 3, 20, 15)


def test_of_days_that_are_read_whole_the_last_ones_are_kept(tiny_shop):
    cache = StatisticsCache(tiny_shop.connection, tiny_shop.config.memory)
    days = [datetime(2026, 3, 1) + timedelta(days=n) for n in range(MAX_WHOLE_DAYS + 4)]
    partial = days[1]
    cache._days = {day: DayStatistics(None, whole=day != partial) for day in reversed(days)}
    cache.follow(StoreState())
    assert sorted(cache._days) == [partial, *days[-MAX_WHOLE_DAYS:]]
    cache.follow(StoreState())
    assert sorted(cache._days) == [partial, *days[-MAX_WHOLE_DAYS:]]


def test_of_other_days_not_too_many_are_kept(tiny_shop):
    cache = StatisticsCache(tiny_shop.connection, tiny_shop.config.memory)
    start = datetime(2025, 1, 1)
    for count in (MAX_DAYS, MAX_DAYS + 1):
        cache._days = {start + timedelta(days=n): DayStatistics(None) for n in range(count)}
        cache.follow(StoreState())
        assert len(cache._days) == (count if count <= MAX_DAYS else 0)


def test_trends_count_the_hours_of_their_windows(tmp_path):
    """An hour counts as a whole: that of the moment does not, the first of the window does."""
    asked = {"now": 0.1, "lamp": -0.5, "mug": -5.5, "cup": -23.5, "tent": -24.5, "old": -47.5}
    with Shop.create(tmp_path / "shop") as shop:
        append_events(
            shop,
            [
                {
                    "user_id": f"{query} {n}",
                    "time": HOUR + timedelta(hours=hours, seconds=n),
                    "type": "search",
                    "query": query,
                }
                for query, hours in asked.items()
                for n in range(4)
            ],
        )
        config = replace(shop.config.memory, trend_days=1.0, trend_long_days=2.0)
        MemoryStore(shop.connection, config).build()
        (found,) = StatisticsCache(shop.connection, config).trends([HOUR + timedelta(minutes=30)])
        (before,) = StatisticsCache(shop.connection, config).trends([HOUR - timedelta(hours=24)])
    assert {key: round(trend.share, 9) for key, trend in found.items()} == {
        key: round(1 / 3, 9) for key in ("lamp", "mug", "cup")
    }
    assert {key for key, trend in found.items() if trend.short_share} == {"lamp", "mug"}
    assert {key: round(trend.longer_share, 9) for key, trend in found.items()} == dict.fromkeys(
        ("lamp", "mug", "cup"), 0.2
    )
    assert sorted(trend.rank for trend in found.values()) == [1, 2, 3]
    assert set(before) == {"tent", "old"}
