import json
import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.sharding import Partitions, build_all, part_of, split
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment


@pytest.fixture(scope="module")
def folder(tiny_shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "big"
    report = split(tiny_shop, folder, 2)
    assert sum(report.events) == tiny_shop.counts()["events"]
    assert min(report.events) > 0
    built = build_all(folder)
    assert (built.parts, built.users) == ([0, 1], tiny_shop.counts()["users"])
    return folder


def test_the_union_of_two_partitions_is_the_one_shop(folder, tiny_shop):
    connection = tiny_shop.connection
    users = [u for (u,) in connection.execute("SELECT DISTINCT user_id FROM events").fetchall()]
    end = connection.execute("SELECT max(ts) FROM events").fetchone()[0]
    memory = Memory(connection, tiny_shop.config.memory, count_words)
    with Partitions(folder) as partitions:
        # Now, later, another day, and in the past.
        for as_of in (
            end + timedelta(seconds=1),
            end + timedelta(hours=30),
            end - timedelta(days=9),
        ):
            moments = [Moment(user, as_of) for user in [*users, "nobody"]]
            assert partitions.profiles(moments, count_words) == memory.profiles(moments)


def test_a_partition_holds_its_own_users_only_and_serves_them_from_store(folder, monkeypatch):
    with Partitions(folder) as partitions:
        held = []
        for part in range(2):
            memory = partitions.memory(part, count_words)
            assert MemoryStore(memory.connection, memory.config).is_current()
            rows = memory.connection.execute("SELECT user_id FROM profiles").fetchall()
            assert {part_of(u, 2) for (u,) in rows} == {part}
            held += [u for (u,) in rows]
        assert len(held) == len(set(held))


def test_building_waits_for_what_every_partition_tells(tiny_shop, tmp_path):
    split(tiny_shop, tmp_path / "big", 2)
    with Partitions(tmp_path / "big") as partitions:
        partitions.contribute(0)
        with pytest.raises(QAgentError, match="partition 1 .* has not contributed"):
            partitions.build(0)
        with pytest.raises(QAgentError, match="partition 0 .* is not built"):
            partitions.memory(0, count_words)
        partitions.contribute(1)
        told = tmp_path / "big" / "shared" / "part=1" / "end.json"
        told.write_text(json.dumps({**json.loads(told.read_text()), "memory": "older"}))
        with pytest.raises(QAgentError, match="partition 1 .* has contributed by another version"):
            partitions.build(0)


def test_a_folder_without_partitions_is_an_error(tmp_path, tiny_shop):
    with pytest.raises(QAgentError, match="there are no partitions"):
        Partitions(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(QAgentError, match="is not empty"):
        split(tiny_shop, tmp_path, 2)


def test_two_ranks_under_mlx_launch_build_what_one_process_builds(folder, tiny_shop, tmp_path):
    split(tiny_shop, tmp_path / "big", 2)
    script = tmp_path / "run.py"
    script.write_text("from qagent_cli.main import cli\ncli()\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = "from mlx._distributed_utils.launch import main; main()"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            launch,
            "-n",
            "2",
            "--backend",
            "ring",
            "--starting-port",
            str(port),
            "--python",
            sys.executable,
            "--",
            str(script),
            "memory",
            "build",
            str(tmp_path / "big"),
            "--json",
        ],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"rank": 0' in done.stdout and '"rank": 1' in done.stdout
    with Partitions(folder) as alone, Partitions(tmp_path / "big") as together:
        users = 0
        for part in range(2):
            rows = [
                p.memory(part, count_words)
                .connection.execute("FROM profiles ORDER BY user_id")
                .fetchall()
                for p in (alone, together)
            ]
            assert rows[0] == rows[1]
            users += len(rows[0])
        assert users == tiny_shop.counts()["users"]
        end = tiny_shop.connection.execute("SELECT max(ts) FROM events").fetchone()[0]
        moments = [Moment(f"u{i:02}", end + timedelta(hours=1)) for i in range(12)]
        assert together.profiles(moments, count_words) == alone.profiles(moments, count_words)
