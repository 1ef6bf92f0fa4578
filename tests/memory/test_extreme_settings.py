"""Moments and settings at the ends of their ranges overflow nothing, and divide by no zero."""

from datetime import datetime

import pytest

from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.utils.settings import check


@pytest.mark.parametrize("as_of", [datetime(1, 1, 1), datetime(2126, 1, 1), datetime.max])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"half_life_days": 5e-324, "trend_days": 1e-9, "trend_long_days": 1e-9},
        {"half_life_days": 36_500.0, "trend_days": 36_500.0, "trend_long_days": 36_500.0},
        {f"weight_{name}": 0.0 for name in ("search", "view", "click", "cart", "purchase")},
        {"session_gap_minutes": 5e-324, "budget": 0},
        {"least_users": 2**53, "budget": 10**6},
    ],
    ids=str,
)
def test_any_moment_and_any_setting_within_its_range_gives_a_profile(tiny_shop, as_of, values):
    config = MemoryConfig(**values)
    check(config)
    memory = Memory(tiny_shop.connection, config, count_words)
    (profile,) = memory.profiles([Moment("u01", as_of)])
    assert profile.user_id == "u01"
