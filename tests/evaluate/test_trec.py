"""Our metrics are those of ir-measures, computed from the files that an evaluation writes."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.errors import QAgentError
from qagent_mlx.evaluate import trec
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.metrics import Ranking
from qagent_mlx.evaluate.suite import evaluation_suite
from qagent_mlx.evaluate.trec import write_trec
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.shop.shop import Shop

ir_measures = pytest.importorskip("ir_measures", reason="a development dependency: make install")
SAME = {
    "queries": {"mrr": "RR", "q_hit@5": "R@5", "q_em": "P@1"},
    "items": {"i_ndcg@10": "nDCG@10", "i_hit@10": "Success@10", "i_hit@1": "P@1"},
}


@pytest.fixture(scope="module")
def measured(tiny_folder, new_nano, tmp_path_factory):
    path = tmp_path_factory.mktemp("trec") / "shop"
    shutil.copytree(tiny_folder, path)
    policy, tokenizer, config = new_nano()
    save_base(policy, tokenizer, config, path / "policies" / "nano")
    names = ("popular", "top-line", "repeat-last", "bm25")
    config = EvaluationConfig(ablations=("no search",), baselines=names, group=2)
    with Shop.open(path) as shop:
        suite = evaluation_suite(shop, ["nano"], config)
        yield suite.environment, suite.evaluate()


def test_numbers_agree_with_ir_measures_to_four_digits(measured, tmp_path):
    environment, report = measured
    files = write_trec(tmp_path / "trec", environment, report)
    assert len(files) == 2 + 2 * 6
    compared = 0
    for system in report.systems:
        tag = system.name.replace(" (no search)", "-no-search")
        for task, pairs in SAME.items():
            qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "trec" / f"{task}.qrels")))
            run = list(ir_measures.read_trec_run(str(tmp_path / "trec" / f"{tag}.{task}.run")))
            measures = [ir_measures.parse_measure(name) for name in pairs.values()]
            theirs = ir_measures.calc_aggregate(measures, qrels, run)
            for ours, measure in zip(pairs, measures, strict=True):
                assert system.metrics[ours].mean == pytest.approx(theirs[measure], abs=5e-5), ours
                compared += system.metrics[ours].mean > 0
    assert compared > 12  # systems that hit nothing agree on nothing


def test_a_second_evaluation_replaces_the_files(measured, tmp_path):
    environment, report = measured
    first = write_trec(tmp_path, environment, report)
    before = [path.read_text() for path in first]
    assert [path.read_text() for path in write_trec(tmp_path, environment, report)] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in first)


def test_a_place_that_is_no_folder_is_refused(measured, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QAgentError, match="cannot write .*file"):
        write_trec(tmp_path / "file" / "trec", *measured)


@given(st.lists(st.text(max_size=8), max_size=6))
def test_every_line_has_its_columns_and_every_document_comes_once(queries):
    documents = trec._queries(Ranking(tuple(queries)))
    lines = trec._run([("7", documents)], "tag").splitlines()
    rows = [line.split() for line in lines]
    assert all(len(row) == 6 for row in rows) and len(rows) == len(queries)
    assert len({row[2] for row in rows}) == len(rows)
    scores = [float(row[4]) for row in rows]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)


def test_white_space_in_ids_is_encoded_and_stays_apart():
    assert trec._id("a b") == "a%20b" != trec._id("a%20b") == "a%2520b"
