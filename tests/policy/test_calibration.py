"""Chances that mean what they say: learned, kept with a policy, and known where it recommends."""

import json
import logging
import math
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.policy import calibration
from qagent_mlx.policy.calibration import (
    FEATURES,
    KINDS,
    PRIOR_WEIGHTS,
    Calibration,
    Observation,
    calibration_error,
    features,
    fit,
    kind_of,
)
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.types import Evidence

PLAIN = (*PRIOR_WEIGHTS.tolist(), 0.0)


def simulated(cases, truth, seed=0, chains=8):
    """Rows of three, of which the agent chose the first; ``truth`` gives the chance of each."""
    random = np.random.default_rng(seed)
    observations = []
    for case in range(cases):
        for place in range(3):
            line = float(random.beta(1, 6))
            votes = int(random.integers(1, chains + 1)) if place == 0 else 0
            evidence = Evidence(chains, votes, -float(random.exponential()), line)
            hit = bool(random.random() < truth(evidence))
            observations.append(Observation(case, evidence, hit, place == 0))
    return observations


def overconfident(evidence):
    """A policy whose votes are unanimous and mostly wrong; memory's lines are worth half."""
    return 0.28 if evidence.votes else 0.5 * evidence.line


def test_a_policy_whose_chains_recommend_nothing_has_chances_and_no_error(tmp_path):
    """What is learned is what memory's lines are worth, and it is kept with the policy."""
    lines = [
        replace(o, evidence=replace(o.evidence, votes=0))
        for o in simulated(60, overconfident)
        if not o.first
    ]
    learned = fit(lines)
    assert learned.error is None and learned.to_dict()["error"] is None
    calibration.write(tmp_path, learned)
    assert calibration.read(tmp_path) == learned


def test_votes_that_are_mostly_wrong_get_a_chance_that_is_mostly_right():
    learned = fit(simulated(2000, overconfident))
    fresh = simulated(2000, overconfident, seed=1)
    first = [o for o in fresh if o.first]
    hits = np.array([o.hit for o in first], dtype=float)
    votes = np.array([o.evidence.votes / o.evidence.chains for o in first])
    chances = np.array([learned.chance(o.evidence) for o in first])
    assert calibration_error(votes, hits) > 0.25
    assert calibration_error(chances, hits) < 0.04
    rest = [o for o in fresh if not o.first]
    said = np.array([learned.chance(o.evidence) for o in rest])
    assert said.min() > 0  # what fills up is no "0 %"
    assert calibration_error(said, np.array([o.hit for o in rest], dtype=float)) < 0.04
    assert learned.cases == 2000 and 0 < learned.error < 0.08


def test_without_any_case_of_a_kind_its_chance_is_memory_s_own():
    learned = fit(simulated(100, overconfident))
    assert learned.curves["memory"] == pytest.approx(PLAIN)
    assert learned.chance(Evidence(line=0.3)) == pytest.approx(0.3)


def test_the_error_is_that_of_cases_left_out(monkeypatch):
    """Rows of one case are never on both sides."""
    observations = simulated(43, overconfident) * 2
    learned_from, folds = [], calibration._curves

    def watched(part):
        learned_from.append({o.case for o in part})
        return folds(part)

    monkeypatch.setattr(calibration, "_curves", watched)
    fit(observations)
    *parts, whole = learned_from
    assert whole == set(range(43)) and len(parts) == calibration.FOLDS
    assert [sorted(whole - part) for part in parts] == [
        [case for case in range(43) if case % calibration.FOLDS == n] for n in range(len(parts))
    ]


@settings(max_examples=200)
@given(
    st.integers(0, 8),
    st.integers(0, 8),
    st.floats(-100, 0),
    st.none() | st.floats(0, 1),
    st.lists(st.floats(-50, 50), min_size=len(PLAIN), max_size=len(PLAIN)),
)
def test_a_chance_is_a_probability_whatever_is_known(chains, votes, logprob, line, weights):
    evidence = Evidence(chains, min(votes, chains), logprob, line)
    assert all(math.isfinite(value) for value in features(evidence))
    assert len(features(evidence)) == len(FEATURES)
    assert kind_of(evidence) in KINDS
    curves = dict.fromkeys(KINDS, tuple(weights))
    found = Calibration(cases=1, error=0.0, learned="", curves=curves)
    assert 0 < found.chance(evidence) < 1


def test_it_is_kept_with_its_policy_to_the_bit(tmp_path):
    learned = fit(simulated(60, overconfident))
    assert calibration.read(tmp_path) is None
    calibration.write(tmp_path, learned)
    assert calibration.read(tmp_path) == learned
    assert learned.to_dict() == {
        "cases": 60,
        "error": round(learned.error, 4),
        "learned": learned.learned,
    }
    assert datetime.fromisoformat(learned.learned).tzinfo is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored | {"format": 99},
        lambda stored: stored | {"curves": {}},
        lambda stored: stored | {"curves": {kind: [1.0] for kind in KINDS}},
        lambda stored: {},
    ],
)
def test_a_file_that_cannot_be_read_is_said_and_gives_no_chance(tmp_path, caplog, change):
    calibration.write(tmp_path, fit(simulated(60, overconfident)))
    path = tmp_path / calibration.FILE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with caplog.at_level(logging.WARNING, "qagent.policy"):
        assert calibration.read(tmp_path) is None
    assert "chances are not known" in caplog.text


def test_a_saved_policy_keeps_it_and_other_agents_do_not_use_it(new_nano, tmp_path):
    policy, tokenizer, config = new_nano()
    policy.calibration = fit(simulated(60, overconfident))
    save_base(policy, tokenizer, config, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.calibration == policy.calibration
    agent = loaded.info.agent
    assert loaded.calibration_of(agent) == policy.calibration
    # An ablation's votes are worth something else.
    assert loaded.calibration_of(replace(agent, search=not agent.search)) is None


def test_a_policy_that_is_trained_from_it_has_its_own_to_learn(new_nano, tmp_path):
    policy, tokenizer, config = new_nano()
    policy.calibration = fit(simulated(60, overconfident))
    save_base(policy, tokenizer, config, tmp_path)
    assert derive(None, str(tmp_path), "new", LoraConfig(rank=2)).calibration is None
