"""Several processes and one shop: each works, or says in one line who is in the way."""

import shutil
import time
from contextlib import contextmanager

import crashes
import pytest
from click.testing import CliRunner
from crashes import COMPONENTS, GRPO, SPLIT, events_agree
from qagent_cli.main import cli

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.runs.run import run_lock
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.server import run as serve
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.atomic_files import locked


@contextmanager
def other(target, *arguments):
    """A process of its own that works until the block ends; yields it and its first word."""
    reader, writer = crashes._context.Pipe(duplex=False)
    process = crashes._context.Process(target=target, args=(writer, *arguments), daemon=True)
    process.start()
    writer.close()
    try:
        yield process, reader.recv()
    finally:
        process.kill()
        process.join()


def _serve(out, folder, read_only):
    config = ServeConfig(port=0, policy="base", chains=2, read_only=read_only, rate=0.0)
    serve(folder, config, out.send)


def _hold(out, folder, read_only):
    with Shop.open(folder, read_only=read_only) as shop:
        out.send(shop.counts())
        time.sleep(600)


def _train(out, folder):
    with Shop.open(folder) as shop, run_lock(shop, "mine"):
        out.send("training")
        time.sleep(600)


def _ingest(out, folder, files):
    out.send("ready")
    for file in files:
        while True:
            try:
                with Shop.open(folder, read_only=False) as shop:
                    assert ingest_files(shop, "events", [file]).accepted == 20
                break
            except QAgentError as error:
                assert "in use by process" in str(error)
                time.sleep(0.01)


@pytest.fixture
def folder(base_folder, tmp_path):
    return shutil.copytree(base_folder, tmp_path / "shop")


def refused(folder, *words):
    result = CliRunner().invoke(cli, [*words, "--shop", str(folder)])
    assert result.exit_code == 1 and result.output.count("Error") == 1, result.output
    line = result.output.splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def events_file(path, stem, count=20):
    rows = [
        f"{stem}u{n % 3},2026-04-0{1 + n % 9}T10:00:{n:02},search,usb cable" for n in range(count)
    ]
    path.write_text("user_id,time,type,query\n" + "\n".join(rows))
    return path


def test_whoever_is_in_the_way_is_named_by_every_command(folder, tmp_path):
    events = events_file(tmp_path / "e.csv", "x")
    with other(_hold, folder, False) as (process, _):
        for words in (
            ("memory", "u01"),
            ("search", "lamp"),
            ("recommend", "u01", "--policy", "base"),
            ("ingest", "events", str(events)),
            ("index",),
            ("memory", "forget", "u01", "--yes"),
            ("evaluate", "--baselines"),
            ("train", "sft", "--policy", "base"),
            ("serve",),
            ("memory", "split", str(tmp_path / "parts"), "--parts", "2"),
        ):
            line = refused(folder, *words)
            assert f"by process {process.pid} (" in line and "wait until it ends" in line, words
    with Shop.open(folder) as shop:
        assert shop.counts()["events"] > 0


def test_a_run_and_an_index_name_the_process_that_works_on_them(folder):
    with other(_train, folder) as (process, _), Shop.open(folder) as shop:
        line = refused(
            folder, "train", "sft", "--policy", "base", "--run", "mine", "--name", "mine"
        )
        assert f"process {process.pid}" in line
        lock = shop.path / "runs" / ".mine.lock"
        with (
            pytest.raises(QAgentError, match=f"held by process {process.pid}"),
            locked(lock, "held by {}"),
        ):
            pass
    with locked(lock, "held by {}"):  # its holder is dead
        assert lock.read_text()


def test_training_and_reading_go_on_while_a_server_reads(folder):
    from qagent_mlx.train.grpo_run import train_grpo

    with other(_serve, folder, True) as (process, line):
        assert "serves" in line
        with Shop.open(folder) as shop:
            report = train_grpo(
                shop,
                "base",
                "new",
                type(GRPO)(**{**GRPO.__dict__, "steps": 1}),
                split=SPLIT,
                components=COMPONENTS,
            )
            assert report.steps == 1 and shop.counts()["products"] == 40
        assert process.is_alive()
        with pytest.raises(QAgentError, match=f"in use by process {process.pid}"):
            Shop.open(folder, read_only=False).counts()


def test_two_ingests_at_once_lose_and_double_nothing(folder, tmp_path):
    files = [events_file(tmp_path / f"{n}.csv", f"file{n}") for n in range(6)]
    with Shop.open(folder) as shop:
        before = shop.counts()["events"]
    with (
        other(_ingest, folder, files[:3]) as (one, _),
        other(_ingest, folder, files[3:]) as (two, _),
    ):
        one.join(120)
        two.join(120)
        assert one.exitcode == two.exitcode == 0
    with Shop.open(folder) as shop:
        assert shop.counts()["events"] == before + 6 * 20
        events_agree(shop)
