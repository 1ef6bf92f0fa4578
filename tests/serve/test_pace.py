from __future__ import annotations

import pytest

from qagent_mlx.serve.pace import DecodePace


def test_the_chains_of_a_time_take_that_time():
    pace = DecodePace(0.01)
    assert pace.chains(pace.seconds(24)) == pytest.approx(24)
    assert pace.chains(0.0) < 0


def test_the_pace_is_learned_from_decodes():
    pace = DecodePace(0.02)
    true = DecodePace(0.005)
    for _ in range(50):
        pace.observe(8, true.seconds(8))
    assert pace.seconds_per_chain == pytest.approx(0.005, rel=0.01)
    pace.slow_down()
    assert pace.seconds_per_chain > 0.0055
