"""Several processes and one shop: each works, or says in one line who is in the way."""

import http.client
import json
import shutil
import threading
import time
from contextlib import contextmanager

import crashes
import duckdb
import pytest
from click.testing import CliRunner
from crashes import COMPONENTS, GRPO, SPLIT, events_agree, posted, send
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


def test_whoever_is_in_the_way_for_long_is_named_by_every_command(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("qagent_mlx.shop.shop.WAIT_SECONDS", 0.3)
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
            ("memory", "build"),
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


def test_training_reading_and_writing_go_on_while_a_server_reads(folder, tmp_path):
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
        with Shop.open(folder, read_only=False) as shop:
            before = shop.counts()["events"]
            ingest_files(shop, "events", [events_file(tmp_path / "e.csv", "x")])
            assert shop.counts()["events"] == before + 20
        assert process.is_alive()


def succeeded(folder, *words):
    began = time.monotonic()
    result = CliRunner().invoke(cli, [*words, "--shop", str(folder)])
    assert result.exit_code == 0, (words, result.output)
    seconds = time.monotonic() - began
    assert seconds < 60, f"{words} took {seconds:.0f} s"
    return result.output


def test_every_command_works_beside_a_server_that_takes_events(folder, tmp_path):
    """And the server knows what they did, the commands what the server acknowledged."""
    events = events_file(tmp_path / "e.csv", "x")
    products = tmp_path / "p.csv"
    products.write_text("product_id,title,price\nkite,Kite with a long tail,12\n")
    with other(_serve, folder, False) as (process, line):
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        stop, accepted = threading.Event(), []

        def post():
            own = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while not stop.is_set():
                batch = (f"live{len(accepted)}", 3)
                answer = send(own, "/events", {"events": posted(*batch)})
                assert answer["accepted"] == 3, answer
                accepted.append(batch[0])
                time.sleep(0.05)

        poster = threading.Thread(target=post)
        poster.start()
        try:
            succeeded(folder, "ingest", "events", str(events))
            succeeded(folder, "ingest", "products", str(products))
            succeeded(folder, "index")
            user = accepted[-1]
            assert "usb cable" in succeeded(folder, "memory", user)
            assert "kite" in succeeded(folder, "search", "kite with a long tail", "--json")
            succeeded(folder, "recommend", "u01", "--policy", "base")
            succeeded(folder, "evaluate", "--baselines", "--limit", "5")
            succeeded(
                folder, "train", "sft", "--policy", "base", "--steps", "2", "--name", "trained"
            )
            assert plain_duckdb(folder) > 0
            wait_until(lambda: "kite" in str(get(connection, "/search?q=kite+with+a+long+tail")))
            wait_until(lambda: get(connection, "/users/xu0/memory")["events"] > 0)
            succeeded(folder, "memory", "forget", user, "--yes")
            wait_until(lambda: get(connection, f"/users/{user}/memory")["events"] == 0)
        finally:
            stop.set()
            poster.join()
        assert process.is_alive()
    with Shop.open(folder) as shop:
        counts = dict(
            shop.connection.execute(
                "SELECT user_id, count(*) FROM events WHERE user_id LIKE 'live%' GROUP BY 1"
            ).fetchall()
        )
        assert counts == {name: 3 for name in accepted if name != user}
        events_agree(shop)


def plain_duckdb(folder):
    """A program that waits for nobody; the server holds the file a twentieth of the time."""
    until = time.monotonic() + 10
    while True:
        try:
            with duckdb.connect(str(folder / "shop.duckdb")) as plain:
                return plain.execute("SELECT count(*) FROM events").fetchone()[0]
        except duckdb.IOException:
            assert time.monotonic() < until, "the file was never free"
            time.sleep(0.2)


def get(connection, path):
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def wait_until(is_true, seconds=30):
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.1)


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
