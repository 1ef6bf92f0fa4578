"""What a user has bought just now and need not be offered again so soon.

A category's repurchase interval is the time in which `SOME` of its buyers have bought it again, by
the shop's own purchases before the moment: where people buy again at once it is short, where hardly
anybody does it is as long as it may be. It is a rule of what is shown. How likely a user is to want
a category again at all is the ranker's concern.
"""

from __future__ import annotations

from collections.abc import Mapping

from .statistics_cache import NO_CYCLE, Cycle

DEFAULT_DAYS = 7.0  # the interval of a category that was hardly bought yet
MAX_DAYS = 14.0
# The interval of a product without a category: its queries lead to other kinds of things, too, and
# nobody can learn when people come back for them.
PRODUCT_DAYS = 1.0


def repurchase_interval(cycle: Cycle) -> float:
    """Days in which a category that was bought need not be offered again."""
    if cycle.soonest != cycle.soonest:  # NaN: not enough is known
        return DEFAULT_DAYS
    return min(cycle.soonest, MAX_DAYS)


def lately_bought(bought: Mapping[str, float]) -> dict[str, float]:
    """Those categories, with the days since they were bought, that may be too soon to offer."""
    return {leaf: days for leaf, days in bought.items() if days < MAX_DAYS}


def just_bought(bought: Mapping[str, float], cycles: Mapping[str, Cycle]) -> tuple[str, ...]:
    """The categories that it is too soon to offer again.

    Args:
        bought: Category -> days since the user last bought it.
        cycles: What was known of them at the start of the day.
    """
    return tuple(
        leaf
        for leaf, days in lately_bought(bought).items()
        if days < repurchase_interval(cycles.get(leaf, NO_CYCLE))
    )
