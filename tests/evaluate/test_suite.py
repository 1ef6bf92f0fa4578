"""Systems by name, slices and the HTML page, on the small shop."""

import re
import shutil
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from qagent_mlx.agent.recommend import Recommender, RecommendRequest
from qagent_mlx.environment.environment import Environment
from qagent_mlx.errors import QAgentError
from qagent_mlx.evaluate.baselines.prompted_llm import PromptedModel, parse_queries
from qagent_mlx.evaluate.baselines.search_log import SearchLog
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.html_report import RewardCurve, page, write_page
from qagent_mlx.evaluate.slices import CUTS, slice_cases
from qagent_mlx.evaluate.suite import ABLATIONS, SystemFactory, cases_of, evaluation_suite
from qagent_mlx.evaluate.tables import slice_tables
from qagent_mlx.memory.profile import SECTIONS
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.registry import resolve
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import query_key


@pytest.fixture
def shop(module_shop):
    return module_shop


@pytest.fixture(scope="module")
def module_shop(tiny_folder, new_nano, tmp_path_factory):
    """The small shop with a policy of random weights; nobody changes it."""
    path = tmp_path_factory.mktemp("lineup") / "shop"
    shutil.copytree(tiny_folder, path)
    policy, tokenizer, config = new_nano()
    save_base(policy, tokenizer, config, path / "policies" / "nano")
    with Shop.open(path) as shop:
        yield shop


@pytest.fixture(scope="module")
def measured(module_shop):
    """A suite and its report, which are frozen."""
    suite = evaluation_suite(
        module_shop,
        ["nano"],
        EvaluationConfig(
            ablations=("no refinement",),
            baselines=("popular", "repeat-last"),
            group=2,
            by=tuple(CUTS),
            details=3,
            compare=(("nano", "popular"),),
        ),
    )
    return suite, replace(suite.evaluate(), shop="tiny <shop>", derived="from titles")


def test_each_section_can_be_switched_off_alone(shop):
    parts = [f"no {section}" for section in SECTIONS]
    assert set(parts) < set(ABLATIONS)
    config = EvaluationConfig(ablations=tuple(parts), split="validation", group=1)
    systems = evaluation_suite(shop, ["nano"], config).systems
    assert [s.name for s in systems] == ["nano", *(f"nano ({part})" for part in parts)]
    whole = {line.section for e in systems[0]._environment.examples for line in e.profile.lines}
    assert whole == set(SECTIONS)
    for section, system in zip(SECTIONS, systems[1:], strict=True):
        examples = system._examples.values()
        assert {line.section for e in examples for line in e.profile.lines} == whole - {section}


def test_no_refinement_searches_once_at_most(measured):
    result = measured[1].system("nano (no refinement)")
    assert result.metrics["searches"].mean <= 1.0


def test_without_memory_no_line_of_it_fills_an_answer_up(shop):
    config = EvaluationConfig(ablations=("no memory",), group=2, details=8)
    suite = evaluation_suite(shop, ["nano"], config)
    examples, systems = suite.environment.of_split("test")[:8], suite.systems
    for example, found in zip(examples, systems[1].rank(examples, 5), strict=True):
        said = {t.query for c in systems[1].rollouts[example.case.case_id] for t in c.turns}
        assert set(found.queries) <= said
    with_memory = systems[0].rank(examples, 5)
    assert all(len(found.queries) == 5 for found in with_memory)
    policy = load_policy(resolve(shop, "nano"))
    blind = Recommender(shop, policy, replace(policy.info.agent, memory=False), group=2)
    one = blind.answer([RecommendRequest(e.profile, e.case.as_of, group=2) for e in examples])
    assert {r.reason for answer in one for r in answer.recommendations} <= {
        "composed from your memory"
    }


def test_only_one_splits_profiles_are_made_and_they_are_the_same(shop):
    part = evaluation_suite(shop, []).environment
    whole = SystemFactory(
        shop, lambda codec, agent: Environment.of_cases(shop, cases_of(shop), codec, agent)
    ).environment
    assert {e.case.split for e in part.examples} == {"test"}
    assert part.examples == whole.of_split("test") != whole.examples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablations": ("no luck",)}, "no ablation 'no luck'.*no search"),
        ({"baselines": ("magic",)}, "no baseline 'magic'.*popular"),
        ({"prompted": ("nowhere",)}, "no mlx-lm model folder"),
    ],
)
def test_unknown_names_are_refused(shop, options, message):
    with pytest.raises(QAgentError, match=message):
        evaluation_suite(shop, ["nano"], EvaluationConfig(**options))


def test_every_case_is_in_one_slice_of_each_cut(measured):
    suite, report = measured
    for cut in CUTS:
        slices = [result for result in report.slices if result.by == cut]
        assert sum(r.cases for r in slices) == report.cases == len(suite.environment.examples)
    assert len(slice_tables(report)) == 2 * len(CUTS)


def test_slices_know_only_what_came_before(shop, measured):
    environment, log = measured[0].environment, SearchLog.of_shop(shop)
    searched = shop.connection.execute(
        "SELECT user_id, ts, query_key FROM events WHERE type = 'search'"
    ).fetchall()
    own, tail = (slice_cases(cut, environment.examples, log) for cut in ("own", "tail"))
    for i, example in enumerate(environment.examples):
        case = example.case
        before = [(u, q) for u, ts, q in searched if ts < case.as_of]
        mine = (case.user_id, case.query_key) in before
        assert (i in own.get("searched before", [])) == mine
        count = sum(q == case.query_key for _, q in before)
        assert log.count(case.query, np.datetime64(case.as_of, "us")) == count
        assert (i in tail.get("unseen", [])) == (count == 0)
        assert (i in tail.get("tail", [])) == (0 < count <= 5)


def test_answers_are_lines_candidates_or_at_least_typed_before(shop, measured):
    suite, report = measured
    examples = suite.environment.examples
    lines = [
        e.case.query_key in {query_key(query) for query in e.profile.references} for e in examples
    ]
    assert report.answers.lines.mean == pytest.approx(np.mean(lines))
    sliced = {r.slice: r.cases for r in report.slices if r.by == "line"}
    assert sliced == {"a line of memory": sum(lines), "no line": len(lines) - sum(lines)}
    # A line is a candidate, and a candidate was typed by somebody.
    assert 0 < report.answers.lines.mean <= report.answers.candidates.mean
    assert report.answers.candidates.mean <= report.answers.typed.mean
    found = [suite.found[e.case.case_id] for e in examples]
    assert all(found[i] for i, line in enumerate(lines) if line)


def test_a_policy_that_reads_another_profile_is_judged_by_its_own_lines(shop):
    config = EvaluationConfig(ablations=("no latest",), group=1)
    suite = evaluation_suite(shop, ["nano"], config)
    examples = suite.environment.examples[:10]
    whole, part = (system.rank(examples, 5) for system in suite.systems)
    assert all(ranking.lines is None for ranking in whole)
    own = suite.systems[1]._examples
    assert [r.lines for r in part] == [own[e.case.case_id].profile.references for e in examples]
    assert any(r.lines != e.profile.references for r, e in zip(part, examples, strict=True))


class Watch(HTMLParser):
    """Notes what a browser would run or load, and what is open at the end."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.loads += [k for k, _ in attrs if k.startswith("on")]
        if tag in ("script", "img", "iframe", "b-evil"):
            self.loads.append(tag)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_loads_nothing(measured, tmp_path):
    suite, report = measured
    rollouts = suite.rollouts()
    assert len(rollouts["nano"]) == 3
    curves = [RewardCurve("grpo", [1, 2, 3], [0.1, 0.1, 0.1])]
    catalog = suite.environment.search.catalog
    write_page(tmp_path / "r.html", report, catalog, rollouts, curves)
    text = (tmp_path / "r.html").read_text()
    watch = Watch()
    watch.feed(text)
    assert watch.loads == ["data:,"] and watch.open == []
    assert not re.search(r"https?:|url\(|@import", text)
    for wanted in ("tiny <shop>", "derived", "cons@1", "repeat-last", "history", "Calibration"):
        assert wanted in watch.text
    assert "nan" not in re.sub(r"nano", "", text)


def test_text_from_data_cannot_become_markup(measured):
    suite, report = measured
    evil = "<b-evil onload=x>\"'&"
    details = []
    for detail in report.details:
        case = replace(detail.example.case, user_id=evil, query=evil)
        example = replace(
            detail.example, case=case, profile=replace(detail.example.profile, text=evil)
        )
        answers = {name: replace(a, queries=(evil,)) for name, a in detail.answers.items()}
        details.append(replace(detail, example=example, answers=answers))
    titles = dict.fromkeys(suite.environment.search.catalog.ids, evil)
    watch = Watch()
    watch.feed(page(replace(report, details=tuple(details)), titles, suite.rollouts()))
    assert watch.loads == ["data:,"] and evil in watch.text


def test_a_prompted_models_lines_become_queries():
    said = '1. "Red shoes"\n- red-shoes\n\n2) usb cable\n!!\n* ' + "x" * 90 + "\nlamp"
    assert parse_queries(said, 5) == ("Red shoes", "usb cable", "lamp")
    assert parse_queries(said, 1) == ("Red shoes",)


def test_any_model_folder_can_be_prompted(shop):
    environment = evaluation_suite(shop, []).environment
    system = PromptedModel(str(shop.path / "policies" / "nano"))
    assert system.name == "prompted nano"
    found = system.rank(environment.examples[:2], 3)
    assert len(found) == 2 and all(len(r.queries) <= 3 for r in found)
    assert [r.queries for r in system.rank(environment.examples[:2], 3)] == [
        r.queries for r in found
    ]


def test_counting_before_the_log_is_nothing(shop):
    log = SearchLog.of_shop(shop)
    assert log.count("usb cable", np.datetime64(datetime(2020, 1, 1), "us")) == 0
    assert log.count("never searched", np.datetime64(datetime(2030, 1, 1), "us")) == 0
