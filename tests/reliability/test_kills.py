"""Twenty kills at random moments; python tests/benchmarks/kills.py does hundreds."""

import shutil

import pytest
from crashes import Checkpoints, Grpo, Index, Ingest, Serving, Sft, Versions, kill_and_check

KILLS = {Ingest: 5, Index: 4, Checkpoints: 4, Versions: 4, Grpo: 2, Sft: 2, Serving: 3}


@pytest.mark.parametrize("work", KILLS, ids=lambda work: work.__name__)
def test_nothing_is_lost_or_doubled_by_a_kill_and_work_goes_on(work, base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "shop")
    tally = kill_and_check(work(tmp_path / "shop", seed=1), KILLS[work])
    assert tally.kills == KILLS[work] and tally.operations > 0
