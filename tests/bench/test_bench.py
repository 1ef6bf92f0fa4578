"""What the benchmark times is what it says: sizes are tiny here, and nothing is timed."""

import json
import typing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from qagent_cli.bench import BenchOptions
from qagent_cli.main import cli

from qagent_mlx.bench import peers
from qagent_mlx.bench.measure import difference
from qagent_mlx.bench.workloads import Agentic, Standard, Workload, agentic_rollout, prompts
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.utils.settings import SettingError

WORK = Workload(prompts=2, prompt_tokens=12, group=3, new_tokens=5, blocks=1)


def test_going_on_from_caches_gives_the_chains_of_prefilling_again(nano_policy):
    shape = Agentic(cases=2, group=3, task=9, turns=((3, 12), (4, 7), (4, 0)))
    for number in range(3):
        one, other = (agentic_rollout(nano_policy, shape, number, again) for again in (False, True))
        assert len(one) == len(other) == 6
        assert all(difference(a, b) < 1e-3 for a, b in zip(one, other, strict=True))
        # A draw at the very edge between two ids may fall either way; most do not.
        assert sum(a.tokens == b.tokens for a, b in zip(one, other, strict=True)) >= 4


def test_rows_differ_by_what_they_do_before_they_part(nano_policy):
    shape = Agentic(cases=1, group=1, task=9, turns=((5, 0),))
    (row,), (other,) = (agentic_rollout(nano_policy, shape, 0, False) for _ in range(2))
    assert difference(row, other) == 0
    other.logprobs[1] += 0.25
    assert difference(row, other) == pytest.approx(0.25)
    other.tokens[-5] += 1  # parted before it
    assert difference(row, other) == 0


def test_a_standard_step_is_a_whole_step_of_training(new_nano):
    policy = new_nano()[0]
    policy.add_lora(LoraConfig(rank=2, blocks=1))
    before = {name: np.array(value) for name, value in policy.adapter().items()}
    made = Standard(policy, WORK).step(0)
    assert made.prefilled == WORK.prompts * WORK.prompt_tokens  # each prompt once
    assert made.decoded == WORK.prompts * WORK.group * WORK.new_tokens
    assert made.metrics["ratio_drift"] < 1e-3
    assert made.metrics["grad_norm"] > 0
    assert any(not np.array_equal(before[n], np.array(v)) for n, v in policy.adapter().items())
    assert sum(made.parts.values()) == pytest.approx(made.seconds)


def test_every_trainer_that_can_be_named_can_be_installed_and_has_its_script():
    choices = typing.get_type_hints(BenchOptions)["against"]
    named = {name for choice in typing.get_args(choices) for name in typing.get_args(choice)}
    assert named == set(peers.PACKAGES)
    folder = Path(peers.__file__).parent
    scripts = {folder / f"peer_{name.replace('-', '_')}.py" for name in named}
    assert scripts == set(folder.glob("peer_*.py")) - {folder / "peer_steps.py"}
    with pytest.raises(SettingError, match="choose one of mlx-lm-lora, mlxrl, trl"):
        peers.installed("verl", print)


def test_every_trainer_gets_the_same_prompts():
    assert prompts(WORK, 100, 3) == prompts(WORK, 100, 3) != prompts(WORK, 100, 4)
    assert all(len(p) == WORK.prompt_tokens for p in prompts(WORK, 100, 3))


@pytest.mark.parametrize(
    ("workload", "keys"),
    [
        ("standard", {"rollout_seconds", "update_seconds", "peak_memory_mb", "profile"}),
        ("agentic", {"ratio", "ratios", "same_chains", "logprob_difference"}),
    ],
)
def test_the_command_prints_one_document(workload, keys):
    sizes = ["--prompts", "2", "--group", "2", "--prompt-tokens", "12", "--new-tokens", "3"]
    done = CliRunner().invoke(
        cli, ["bench", "--workload", workload, "--steps", "1", *sizes, "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert keys | {"machine", "blas"} <= report.keys()


def test_several_workers_are_for_our_own_standard_workload():
    done = CliRunner().invoke(cli, ["bench", "--workers", "2", "--against", "trl"])
    assert done.exit_code == 2
    assert "--workers" in done.stderr
