"""The scene of the story in which the query log is hidden and the shipped writer recommends."""

import shutil

import pytest

from qagent_mlx.demo.writing import SCENARIO, writing_scene
from qagent_mlx.models.download import shipped_folder, shipped_name
from qagent_mlx.policy.registry import WRITER, open_policy, resolve
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import query_key


@pytest.fixture(scope="module")
def scene_and_typed(simulated_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("writing") / "shop"
    shutil.copytree(simulated_folder, path)
    with Shop.open(path, read_only=False) as shop:
        scene = writing_scene(shop, cases=16, seed=0)
        rows = shop.connection.execute("SELECT DISTINCT query FROM events").fetchall()
    return scene, {query_key(query) for (query,) in rows if query}


def test_what_the_writer_recommends_is_counted_for_what_it_is(scene_and_typed):
    scene, typed = scene_and_typed
    assert scene.report.scenario == SCENARIO and len(scene.rows) == scene.report.cases
    lines = [{query_key(q) for q in e.profile.references} for e in scene.report.examples]
    for row, known in zip(scene.rows, lines, strict=True):
        assert row.queries
        for query in row.queries:
            assert query.own == (query_key(query.query) not in known)
            assert query.new == (query_key(query.query) not in typed)
    # Nothing that finds nothing is recommended, and something is written that nobody had typed.
    assert all(query.products for query in scene.queries)
    assert any(query.own and query.new for query in scene.queries)
    mean = scene.report.system(WRITER).metrics["own_words"].mean
    shares = [sum(q.own for q in row.queries) / len(row.queries) for row in scene.rows]
    assert mean == pytest.approx(sum(shares) / len(shares))
    hits = [any(query.engaged for query in row.queries) for row in scene.rows]
    hit_rate = scene.report.system(WRITER).metrics["row_hit@10"].mean
    assert hit_rate == pytest.approx(sum(hits) / len(hits))


def test_a_chain_that_writes_is_shown(scene_and_typed):
    scene, _ = scene_and_typed
    own = {query.query for query in scene.queries if query.own}
    assert scene.chain_query in own
    assert "<recommend>" in scene.chain and "<search>" in scene.chain


def test_the_story_draws_the_scene(scene_and_typed, capsys):
    from qagent_cli.demo import _DRAW

    scene, _ = scene_and_typed
    _DRAW["writing"](scene)
    drawn = capsys.readouterr().out
    assert f"{len(scene.queries)} queries, {sum(q.own for q in scene.queries)} of them" in drawn
    assert scene.chain_query in drawn and scene.examples[0].queries[0].query in drawn


def test_the_writer_is_shipped_under_its_name(tmp_path):
    folder = shipped_folder(WRITER)
    assert resolve(None, WRITER) == folder and shipped_name(folder) == WRITER
    assert shipped_name(str(shipped_folder("sample"))) == "sample" and not shipped_name(tmp_path)
    assert open_policy(None, WRITER).info.agent.writes
