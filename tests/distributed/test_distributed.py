"""Several workers take the step that one takes. They are real processes on this machine."""

import json
import os
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from lakes import require_lakes

from qagent_mlx.build import build
from qagent_mlx.distributed import world as distributed
from qagent_mlx.distributed.launcher import check_workers, free_ports
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.runs.run import Run
from qagent_mlx.shop.moving import create_in, move
from qagent_mlx.shop.shop import Shop

REWARD = """
import os, signal

def even(outcome):
    said = outcome.rollout.tokens[outcome.rollout.prompt_length:]
    return sum(t % 2 == 0 for t in said) / max(1, len(said))

def deadly(outcome):
    if os.environ.get("MLX_RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return even(outcome)
"""


@pytest.fixture(scope="module")
def folder(tiny_folder, new_nano, tmp_path_factory):
    place = tmp_path_factory.mktemp("workers")
    shutil.copytree(tiny_folder, place / "shop")
    save_base(*new_nano(), place / "shop" / "policies" / "base")
    (place / "reward.py").write_text(REWARD)
    return place


def qagent(*arguments):
    program = "from qagent_cli.main import cli; cli()"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def train(folder, name, workers, reward="even"):
    return qagent(
        "train",
        "grpo",
        "--shop",
        folder / "shop",
        "--policy",
        "base",
        "--name",
        name,
        "--reward",
        f"{folder / 'reward.py'}:{reward}",
        "--steps",
        2,
        "--cases-per-step",
        4,
        "--group",
        3,
        "--workers",
        workers,
        "--learning-rate",
        "0.001",
        "--json",
    )


def test_two_workers_take_the_step_of_one(folder):
    for workers in (1, 2):
        done = train(folder, f"by{workers}", workers)
        assert done.returncode == 0, done.stderr
    one, two = (
        mx.load(str(folder / "shop" / "policies" / f"by{n}" / "1" / "adapters.safetensors"))
        for n in (1, 2)
    )
    start = mx.load(
        str(folder / "shop/runs/by1/checkpoints/step-000000/adapters.safetensors")
        if (folder / "shop/runs/by1/checkpoints/step-000000").exists()
        else str(folder / "shop/policies/by1/1/adapters.safetensors")
    )
    moved = 0.0
    for name, value in one.items():
        assert np.allclose(np.array(value), np.array(two[name]), atol=2e-5), name
        moved = max(moved, float(mx.abs(value - start[name]).max()))
    assert moved > 1e-4
    rows = [list(Run(folder / "shop" / "runs" / f"by{n}", {}).rows("metrics")) for n in (1, 2)]
    for alone, shared in zip(*rows, strict=True):
        for key in ("reward", "tokens", "sampled_tokens", "dropped_groups"):
            assert shared[key] == pytest.approx(alone[key], abs=1e-6), key
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)


def test_two_workers_make_the_sft_steps_of_one(folder):
    for workers in (1, 2):
        done = qagent(
            "train",
            "sft",
            "--shop",
            folder / "shop",
            "--policy",
            "base",
            "--name",
            f"taught{workers}",
            "--steps",
            3,
            "--batch-size",
            6,
            "--workers",
            workers,
            "--json",
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 3
    one, two = (
        mx.load(str(folder / "shop" / "policies" / f"taught{n}" / "1" / "adapters.safetensors"))
        for n in (1, 2)
    )
    assert max(float(mx.abs(v).max()) for k, v in one.items() if k.endswith("lora_b")) > 1e-4
    for name, value in one.items():
        assert np.allclose(np.array(value), np.array(two[name]), atol=2e-5), name
    rows = [list(Run(folder / "shop" / "runs" / f"taught{n}", {}).rows("metrics")) for n in (1, 2)]
    assert len(rows[0]) == len(rows[1]) == 3
    for alone, shared in zip(*rows, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-5)


def test_a_worker_that_dies_ends_the_run_with_its_name(folder):
    done = train(folder, "dead", 2, "deadly")
    assert done.returncode == 1
    assert "worker 2 of 2 was ended by SIGKILL" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- several machines


def launched(shops, *arguments):
    """As ``mlx.launch`` starts a command on several machines, each with a shop of its own; on one
    without it."""
    hosts = shops[0].parent / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{p}"] for p in free_ports(len(shops))]))
    program = "from qagent_cli.main import cli; cli()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, "train", *map(str, arguments), "--shop", str(shop)],
            env={
                **os.environ,
                **({"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if len(shops) > 1 else {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, shop in enumerate(shops)
    ]
    return [(*process.communicate(timeout=300), process.returncode) for process in started]


@pytest.fixture(scope="module")
def machines(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("machines")
    for number in (1, 2):
        shutil.copytree(
            folder / "shop", place / str(number), ignore=shutil.ignore_patterns("runs", "by*")
        )
    (place / "reward.py").write_text(REWARD)
    return [place / "1", place / "2"]


def grpo(machines, name, reward="even", **options):
    flags = {"steps": 2, "cases-per-step": 4, "group": 3, "learning-rate": 0.001, **options}
    given = [x for flag, value in flags.items() for x in (f"--{flag}", value)]
    return launched(
        machines,
        "grpo",
        "--policy",
        "base",
        "--name",
        name,
        "--reward",
        f"{machines[0].parent / 'reward.py'}:{reward}",
        *given,
    )


def test_two_machines_take_the_step_of_one_and_the_first_alone_writes(machines):
    ((one, _, ended),) = grpo(machines[:1], "alone")
    assert ended == 0 and "policy alone" in one
    (said, told, ended), (other, silence, too) = grpo(machines, "both")
    assert ended == too == 0, (told, silence)
    assert "policy both" in said and "step 2/2" in told
    assert not other and "step" not in silence, "one machine shows the progress"
    alone, both = (
        mx.load(str(machines[0] / "policies" / name / "1" / "adapters.safetensors"))
        for name in ("alone", "both")
    )
    assert all(np.allclose(np.array(alone[k]), np.array(both[k]), atol=2e-5) for k in alone)
    assert not (machines[1] / "policies" / "both").exists()
    assert not (machines[1] / "runs").exists()


def test_two_machines_of_a_lake_take_the_step_of_one_and_name_what_they_saw(folder, tmp_path):
    require_lakes()
    address = f"ducklake:sqlite:{tmp_path / 'catalog.sqlite'}"
    ignored = shutil.ignore_patterns("runs", "by*", "taught*")
    first = shutil.copytree(folder / "shop", tmp_path / "1", ignore=ignored)
    with Shop.open(first, read_only=False) as shop:
        move(shop, address, str(tmp_path / "data"))
    create_in(tmp_path / "2", address, None)
    build(tmp_path / "2")
    shutil.copytree(first / "policies", tmp_path / "2" / "policies")
    shutil.copy(folder / "reward.py", tmp_path)
    for name, machines in (("alone", [first]), ("both", [first, tmp_path / "2"])):
        for _, told, ended in grpo(machines, name):
            assert ended == 0, told
    alone, both = (
        mx.load(str(first / "policies" / name / "1" / "adapters.safetensors"))
        for name in ("alone", "both")
    )
    assert all(np.allclose(np.array(alone[k]), np.array(both[k]), atol=2e-5) for k in alone)
    with Shop.open(first) as shop:
        named = [Run.open(shop, name).config["snapshot"] for name in ("alone", "both")]
        assert named == [shop.lake_snapshot, shop.lake_snapshot]


def test_a_run_of_two_machines_goes_on_from_a_copied_folder(machines):
    for name, steps in (("short", 1), ("long", 2)):
        grpo(machines, name, steps=steps)
    resume = (
        "grpo",
        "--resume",
        "--run",
        "short",
        "--steps",
        "2",
        "--reward",
        f"{machines[0].parent / 'reward.py'}:even",
    )
    (_, told, ended), *_ = launched(machines, *resume)
    assert ended == 1 and "Traceback" not in told
    (machines[1] / "runs").mkdir()
    shutil.copytree(machines[0] / "runs" / "short", machines[1] / "runs" / "short")
    for _, told, ended in launched(machines, *resume):
        assert ended == 0, told
    short, long = (
        mx.load(str(machines[0] / "policies" / version / "adapters.safetensors"))
        for version in ("short/2", "long/1")  # what the short run saved first never changes
    )
    assert all(mx.array_equal(short[k], long[k]) for k in long)


def test_machines_with_different_shops_are_told_so(machines, tmp_path):
    other = shutil.copytree(machines[0], tmp_path / "other")
    with Shop.open(other, read_only=False) as shop:
        shop.connection.execute(
            "UPDATE events SET query = 'x ' || query, query_key = 'x ' || query_key WHERE query <> ''"
        )
    for _, told, ended in grpo([machines[0], other], "never"):
        assert ended == 1
        assert "the workers have different" in told and "Traceback" not in told


def test_a_machine_that_dies_ends_the_run_in_one_line(machines):
    (_, told, ended), (_, _, killed) = grpo(machines, "dead", "deadly")
    assert killed == -9 and ended == 1
    assert "a worker is gone" in told and "resume the run" in told and "Traceback" not in told


def test_more_workers_than_cases_are_refused():
    with pytest.raises(QAgentError, match="at most 4"):
        check_workers(8, 4)


def test_every_case_is_done_by_exactly_one_worker():
    worlds = []
    for rank in range(3):
        world = distributed.World()
        world.rank, world.size = rank, 3
        worlds.append(world)
    for count in (0, 1, 7, 9):
        shares = [i for world in worlds for i in world.local_indices(count)]
        assert sorted(shares) == list(range(count))


def test_alone_nothing_is_changed():
    world = distributed.World()
    assert world.all_reduce_scalars(1.5, 2) == [1.5, 2]
    assert world.all_reduce_max(0.25) == 0.25
    rows = np.ones((2, 3))
    assert world.all_gather_rows(rows, [0, 1], 2) is rows


def test_an_error_that_all_workers_meet_is_said_once(folder):
    done = qagent("train", "sft", "--shop", folder / "shop", "--policy", "nobody", "--workers", 3)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "there is no policy nobody" in errors[0], done.stderr


def test_more_workers_than_demonstrations_make_the_steps_of_one(folder, tmp_path):
    """Where a batch is smaller than the workers are many, some of them have nothing to do."""
    few = shutil.copytree(folder / "shop", tmp_path / "few shop")
    with Shop.open(few, read_only=False) as shop:
        shop.connection.execute("DELETE FROM events WHERE user_id > 'u01'")
    for workers in (1, 3):
        done = qagent(
            "train",
            "sft",
            "--shop",
            few,
            "--policy",
            "base",
            "--name",
            f"by{workers}",
            "--steps",
            2,
            "--batch-size",
            3,
            "--workers",
            workers,
            "--json",
        )
        assert done.returncode == 0, done.stderr
    one, three = (
        mx.load(str(max((few / "policies" / name).glob("*/adapters.safetensors"))))
        for name in ("by1", "by3")  # the newest versions: the shop had one of by1
    )
    assert all(np.allclose(np.array(one[k]), np.array(three[k]), atol=2e-5) for k in one)
