"""What chances are learned from: rows of all chains, of a few, and of memory alone."""

from collections import Counter

import pytest

from qagent_mlx.agent.recommend import GROUP, GRPO_GROUP
from qagent_mlx.environment import served_slates
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.environment.served_slates import calibrate

SPLIT = SplitConfig(test_share=0.2, validation_share=0.3)


@pytest.fixture
def environment(tiny_shop, nano_policy):
    return Environment.of_shop(tiny_shop, nano_policy.codec, nano_policy.info.agent, SPLIT)


@pytest.fixture
def learned(monkeypatch):
    """What the last calibration was fitted to."""
    seen = []
    monkeypatch.setattr(served_slates, "fit", lambda rows: seen.extend(rows) or "fitted")
    return seen


def test_each_number_of_chains_is_learned_from_and_all_of_them_weigh_as_memory_does(
    environment, nano_policy, learned, monkeypatch
):
    monkeypatch.setattr(served_slates, "FEWEST_CASES", 2)
    monkeypatch.setattr(served_slates, "MOST_CASES", 6)
    assert calibrate(environment, nano_policy) == "fitted"
    weights = {row.evidence.chains: row.weight for row in learned}
    assert weights == {0: 1.0, GRPO_GROUP: 0.5, GROUP: 0.5}
    cases = {row.case for row in learned}
    assert len(cases) == 6 and cases <= {e.case.case_id for e in environment.of_split("validation")}
    first = Counter((row.case, row.evidence.chains) for row in learned if row.first)
    assert set(first.values()) == {1} and len(first) == 6 * 3, "one query of each row is first"


def test_too_few_cases_are_no_reason_for_a_chance(environment, nano_policy, learned):
    count = len(environment.of_split("validation"))
    assert count < served_slates.FEWEST_CASES
    assert calibrate(environment, nano_policy) is None and not learned
