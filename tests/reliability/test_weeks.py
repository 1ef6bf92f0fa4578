"""A day and its night with kills; python tests/benchmarks/three_weeks.py plays three weeks."""

from live_shop import Load
from weeks import Plan, Play, problems

from qagent_mlx.simulator.sample_files import write_sample
from qagent_mlx.simulator.world import SimulatorConfig


def test_a_night_beside_a_server_loses_and_doubles_nothing_also_when_processes_are_killed(tmp_path):
    write_sample(tmp_path / "source", SimulatorConfig(users=60, days=21, products_per_pair=2))
    plan = Plan(days=1, kills=3, seed=3, load=Load(clients=2, posts=0.5), day_seconds=1, steps=0)
    (tmp_path / "play").mkdir()
    report = Play(plan, tmp_path / "source", tmp_path / "play").run()
    assert problems(report) == []
    assert sum(report["kills"].values()) == 3 and report["events"] > 0
    assert report["phases"]["all"]["requests"] > 10
