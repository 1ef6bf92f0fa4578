from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import wait

import duckdb
import pytest

from qagent_mlx.agent.recommend import Recommender, RecommendRequest
from qagent_mlx.distributed import world as distributed
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.registry import open_policy
from qagent_mlx.serve.batch import (
    BulkProgress,
    all_users,
    bulk_recommend,
    launched_shard,
    read_users,
    shard_of,
)
from qagent_mlx.serve.config import BulkConfig
from qagent_mlx.serve.decode_process import LOST
from qagent_mlx.serve.worker_processes import WorkerPool
from qagent_mlx.shop.shop import Shop


@pytest.fixture(scope="module")
def recommender(tiny_shop, nano_policy):
    return Recommender(tiny_shop, nano_policy, group=2)


def rows(path):
    return duckdb.sql(f"SELECT * FROM read_parquet('{path}')").fetchall()


class Stopped(Exception):
    pass


def test_the_file_says_what_one_by_one_recommending_says(recommender, tiny_shop, tmp_path):
    users = all_users(tiny_shop)[:5]
    report = bulk_recommend(
        recommender, users, tmp_path / "all.parquet", BulkConfig(k=3, part=2)
    ).to_dict()
    expected = [
        (user, rank, r.query, r.score, list(r.products))
        for user in users
        for rank, r in enumerate(recommender.recommend([user], 3)[0].recommendations, 1)
    ]
    got = [(u, rank, q, s, p) for u, _, rank, q, s, _, _, p, _ in rows(tmp_path / "all.parquet")]
    assert got == expected
    assert (report["users"], report["recommendations"]) == (5, len(expected))
    assert [p.name for p in tmp_path.iterdir()] == ["all.parquet"]


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_file(
    recommender, tiny_shop, tmp_path
):
    users = all_users(tiny_shop)[:6]
    whole, out = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    bulk_recommend(recommender, users, whole, BulkConfig(part=2))

    def stop(progress):
        if progress.done >= 4:
            raise Stopped

    with pytest.raises(Stopped):
        bulk_recommend(recommender, users, out, BulkConfig(part=2), stop)
    assert not out.exists()
    seen = []
    report = bulk_recommend(recommender, users, out, BulkConfig(part=2), seen.append)
    assert report.resumed in (2, 4) and seen[0].done == report.resumed
    assert seen[-1].done == 6
    assert rows(out) == rows(whole)


def test_parts_of_another_question_are_not_used(recommender, tiny_shop, tmp_path):
    users = all_users(tiny_shop)[:4]
    out = tmp_path / "x.parquet"

    def stop(progress):
        if progress.done >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        bulk_recommend(recommender, users, out, BulkConfig(k=5, part=2), stop)
    report = bulk_recommend(recommender, users, out, BulkConfig(k=1, part=2))
    assert report.resumed == 0
    assert {row[2] for row in rows(out)} == {1}


def test_shards_have_everybody_once(tiny_shop):
    users = all_users(tiny_shop)
    shards = [shard_of(users, i, 4) for i in range(1, 5)]
    assert sorted(user for shard in shards for user in shard) == users
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_time_left_is_the_rest_at_this_runs_pace():
    assert BulkProgress(done=60, users=100, fresh=10, seconds=5.0).left == 20.0
    assert BulkProgress(done=50, users=100, fresh=0, seconds=1.0).left == 0.0


def test_users_come_from_lines_or_a_column(tmp_path):
    lines = tmp_path / "ids.txt"
    lines.write_text("u1\r\n\nu2 \nu1\n")
    assert read_users(lines) == ["u1", "u2"]
    path = tmp_path / "ids.parquet"
    duckdb.sql(f"COPY (SELECT unnest([7, 8, 7]) AS user_id) TO '{path}' (FORMAT parquet)")
    assert sorted(read_users(path)) == ["7", "8"]
    lines.write_text("\n")
    with pytest.raises(QAgentError, match="names no user"):
        read_users(lines)
    duckdb.sql(f"COPY (SELECT 1 AS other) TO '{path}' (FORMAT parquet)")
    with pytest.raises(QAgentError, match="user_id"):
        read_users(path)


def asked(pool, own, requests):
    """What a pool recommends: half of it by its first process, where that is ready."""
    pool.look_after()
    half = len(requests) // 2
    here, there = requests[:half], requests[half:]
    reply = pool.ask(pool.ready[0], (there, 0)) if pool.ready else None
    slates = [one.recommendations for one in own.answer(here)]
    try:
        return slates + [slate for slate, _ in reply.result()[0]]
    except AttributeError:  # there is none
        pass
    except LOST as error:
        pool.remove(pool.ready[0], error)
    return slates + [one.recommendations for one in own.answer(there)]


@pytest.fixture(scope="module")
def saved(tiny_folder, new_nano, tmp_path_factory):
    """A shop with a policy on disk, as other processes need one."""
    import shutil

    from qagent_mlx.policy.small_llama import save_base

    path = tmp_path_factory.mktemp("saved") / "shop"
    shutil.copytree(tiny_folder, path)
    policy, tokenizer, config = new_nano()
    save_base(policy, tokenizer, config, path / "policies" / "nano")
    return path


def test_two_workers_write_the_file_that_one_writes(saved, tmp_path, monkeypatch):
    look_after, decoding = WorkerPool.look_after, []

    def wait_for_all(pool):
        wait([process.ready for process in pool._starting])
        look_after(pool)
        decoding.append(len(pool))

    monkeypatch.setattr(WorkerPool, "look_after", wait_for_all)
    with Shop.open(saved) as shop:
        recommender = Recommender(shop, open_policy(shop, "nano"), group=2)
        users = all_users(shop)[:9]
        for workers in (1, 2):
            bulk_recommend(
                recommender,
                users,
                tmp_path / f"{workers}.parquet",
                BulkConfig(part=2, workers=workers),
            )
    assert rows(tmp_path / "2.parquet") == rows(tmp_path / "1.parquet")
    assert decoding[-1] == 1


def test_a_process_that_is_gone_is_replaced(saved, monkeypatch):
    monkeypatch.setattr("qagent_mlx.serve.worker_processes.PAUSE_SECONDS", 0.1)
    with Shop.open(saved) as shop:
        recommender = Recommender(shop, open_policy(shop, "nano"), group=2)
        profiles = recommender.profiles(all_users(shop)[:4])
        asks = [RecommendRequest(p, shop.end_of_log(), 3, 2) for p in profiles]
        expected = [one.recommendations for one in recommender.answer(asks)]
        with WorkerPool(saved, saved / "policies" / "nano", 1) as pool:
            for change in (lambda: None, pool.reload, lambda: pool.use(pool._policy)):
                (old,) = pool._processes
                old._process.kill()
                old._process.wait()
                sizes, until = [], time.monotonic() + 60
                while sizes[-1:] != [1]:
                    assert time.monotonic() < until
                    assert asked(pool, recommender, asks) == expected
                    if sizes[-1:] == [0]:
                        change()  # one that was starting may know the old policy or catalog
                        change = lambda: None  # noqa: E731
                    sizes.append(len(pool))
                assert pool._processes != [old] and 0 in sizes


def test_a_process_that_starts_learns_of_what_has_changed_meanwhile(saved):
    with Shop.open(saved) as shop:
        recommender = Recommender(shop, open_policy(shop, "nano"), group=2)
        profiles = recommender.profiles(all_users(shop)[:2])
        asks = [RecommendRequest(p, shop.end_of_log(), 3, 2) for p in profiles]
        folder = saved / "policies" / "nano"
        with WorkerPool(saved, folder, 1, wait=False) as pool:
            (starting,) = pool._starting
            pool.use(folder)
            pool.reload()
            wait([starting.ready, *pool._changing[starting]])
            pool.look_after()
            assert pool.ready == [starting]
            assert asked(pool, recommender, asks) == [
                one.recommendations for one in recommender.answer(asks)
            ]


@pytest.mark.parametrize("noticed", ["when it is given work", "when it should answer"])
def test_what_a_lost_process_was_given_is_done_by_this_one(saved, noticed):
    with Shop.open(saved) as shop:
        recommender = Recommender(shop, open_policy(shop, "nano"), group=2)
        moment = shop.end_of_log()
        asks = [
            RecommendRequest(p, moment, 3, 2) for p in recommender.profiles(all_users(shop)[:5])
        ]
        expected = [one.recommendations for one in recommender.answer(asks)]
        with WorkerPool(saved, saved / "policies" / "nano", 1) as pool:
            assert asked(pool, recommender, asks) == expected
            process = pool._processes[0]._process
            if noticed == "when it is given work":
                process.kill()
                process.wait()
            else:
                process.send_signal(signal.SIGSTOP)  # takes what it is sent, and never answers
                threading.Timer(0.3, process.kill).start()
            units = pool.answer_units(recommender, ([ask] for ask in asks))
            assert [one.recommendations for unit in units for one in unit] == expected
            assert asked(pool, recommender, asks) == expected
            assert len(pool) == 0


def test_a_process_that_a_launcher_started_takes_its_own_share(monkeypatch):
    assert launched_shard() is None
    world = distributed.World()
    world.rank, world.size = 2, 4
    monkeypatch.setattr(distributed, "current_world", lambda: world)
    for launcher in distributed.LAUNCHER_ENVS:
        with monkeypatch.context() as patch:
            patch.setenv(launcher, "2")
            assert launched_shard() == (3, 4)
            patch.setattr(world, "size", 1)
            assert launched_shard() is None


def test_the_ending_names_the_form(recommender, tiny_shop, tmp_path):
    query = "SELECT user_id, rank, query, {products} FROM '{path}' ORDER BY ALL"
    written = []
    for ending in ("parquet", "jsonl", "csv"):
        path = tmp_path / f"x.{ending}"
        bulk_recommend(recommender, all_users(tiny_shop)[:2], path, BulkConfig(workers=1))
        products = "products" if ending == "csv" else "array_to_string(products, '|')"
        written.append(duckdb.sql(query.format(products=products, path=path)).fetchall())
    assert written[0] and written[0] == written[1] == written[2]
    with pytest.raises(QAgentError, match="end it in .csv, .jsonl, .parquet"):
        bulk_recommend(recommender, ["u0001"], tmp_path / "x.txt")
    assert not (tmp_path / ".x.txt.parts").exists()
