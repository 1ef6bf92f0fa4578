"""A policy that writes queries: pretraining, sampling and scoring under the same masks."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from qagent_mlx.agent.types import Task
from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.policy import scoring
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive, open_policy
from qagent_mlx.protocol.actions import expand, parse_action
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.protocol.query_automaton import QueryAutomaton
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.demonstrations import DemoConfig, Demonstrator, Target
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_batches import training_sequence
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.pretrain import PretrainConfig, pretrain
from qagent_mlx.train.written_queries import with_references
from qagent_mlx.types import Line
from qagent_mlx.utils.text import query_key, words

SPLIT = SplitConfig(test_share=0.2, validation_share=0.1)
WRITES = AgentConfig(writes=True)
LORA = LoraConfig(rank=4)


@pytest.fixture(scope="module")
def writing_folder(tiny_folder, tmp_path_factory):
    """The small shop with a base policy that was taught to write."""
    path = tmp_path_factory.mktemp("writing") / "shop"
    shutil.copytree(tiny_folder, path)
    with Shop.open(path) as shop:
        # After 60 steps it depends on the processor's rounding whether chains search at all.
        config = PretrainConfig(
            size="nano", vocab_size=512, steps=160, batch_size=16, learning_rate=3e-3
        )
        pretrain(shop, "base", config, WRITES, SPLIT)
    return path


@pytest.fixture(scope="module")
def shop(writing_folder):
    with Shop.open(writing_folder) as shop:
        yield shop


@pytest.fixture(scope="module")
def policy(shop):
    return open_policy(shop, "base")


@pytest.fixture(scope="module")
def environment(shop, policy):
    return Environment.of_shop(shop, policy.codec, policy.info.agent, SPLIT)


KNOWN = (
    "likes usb cable, acme, $, black\nviewed borealis phone case, red days\nviewed desk lamp week"
)


@pytest.fixture(scope="module")
def chains(environment, policy):
    """Chains of users of whom no query is known: there is nothing to point at."""
    runner = environment.rollout_runner(policy, policy.info.agent)
    tasks = [
        Task(replace(e.profile, lines=(Line("graph", KNOWN, 1.0),), references=(), text=KNOWN), m)
        for e in environment.of_split("test")[:6]
        for m in [e.case.as_of]
    ]
    return runner, runner.run(tasks, 16, (3,))


def test_a_policy_that_writes_is_saved_so(policy):
    assert policy.info.agent.writes


def test_without_lines_to_point_at_it_writes_what_it_has_read(chains):
    runner, rollouts = chains
    first = [turns[0] for r in rollouts if (turns := [t for t in r.turns if t.kind == "search"])]
    assert first and not any(turn.reference for turn in first)
    read = runner.automaton.readable.available(KNOWN)
    assert all(set(words(turn.query)) <= read for turn in first)
    assert len({turn.query for turn in first}) > 3


def test_what_was_sampled_is_scored_with_the_same_probability(chains, policy):
    """Invariant 3, where probabilities are renormalised over what may be written."""
    runner, rollouts = chains
    sequences = [training_sequence(r, runner.automaton) for r in rollouts]
    assert all(s.allowed for s, r in zip(sequences, rollouts, strict=True) if r.searches)
    prepared = scoring.prepare(policy, sequences, 4096)
    worst, open_positions = 0.0, 0
    for item in prepared.batches:
        scores = scoring.token_scores(policy, item.batch, item.frozen)
        sampled = [v for i in item.sequences for v in rollouts[i].sampled_logprobs]
        worst = max(worst, float(np.abs(np.array(scores.logprobs) - np.array(sampled)).max()))
        allowed = item.batch.allowed
        for row, mask in zip(allowed.index, allowed.masks, strict=True):
            if mask.sum() == 1:  # a word's next token that can only be this one
                assert np.array(scores.logprobs)[row] == pytest.approx(0.0, abs=1e-5)
                assert np.array(scores.entropies)[row] == pytest.approx(0.0, abs=1e-4)
            open_positions += mask.sum() > 1
    assert worst < 1e-3
    assert open_positions > 20


def test_scoring_without_the_masks_disagrees(chains, policy):
    """The test above can fail."""
    _, rollouts = chains
    sequences = [training_sequence(r, None) for r in rollouts]
    prepared = scoring.prepare(policy, sequences, 4096)
    worst = 0.0
    for item in prepared.batches:
        scores = scoring.token_scores(policy, item.batch, item.frozen)
        sampled = [v for i in item.sequences for v in rollouts[i].sampled_logprobs]
        worst = max(worst, float(np.abs(np.array(scores.logprobs) - np.array(sampled)).max()))
    assert worst > 0.01


def test_what_may_be_written_hangs_on_what_stood_before_the_turn(environment, policy, monkeypatch):
    """Not on its own beginning, which would be read as words of the shop."""
    asked = set()
    next_mask = QueryAutomaton.next_mask

    def recorded(self, read, turn, references):
        asked.add((tuple(read), tuple(turn)))
        return next_mask(self, read, turn, references)

    monkeypatch.setattr(QueryAutomaton, "next_mask", recorded)
    runner = environment.rollout_runner(policy, policy.info.agent)
    rollouts = runner.run([environment.of_split("test")[0].task], 4, (3,))
    begun = {r.tokens[:end] for r in rollouts for end in range(len(r.tokens))}
    assert asked and all(read + turn in begun for read, turn in asked)
    assert max(len(turn) for _, turn in asked) > 1


def test_grpo_begins_with_a_ratio_of_one_while_it_writes(shop, environment):
    config = GrpoConfig(
        steps=2, cases_per_step=4, group=4, measured=4, lora=LORA, learning_rate=1e-3
    )
    trainer = GrpoTrainer(derive(shop, "base", "grpo", LORA), environment, config)
    metrics = trainer.step(0).metrics
    assert metrics["ratio_drift"] < 1e-3
    assert metrics["grad_norm"] > 0


def demonstrator(environment, policy, **settings):
    return Demonstrator(environment, policy, WRITES, DemoConfig(**settings))


def test_a_written_demonstration_ends_with_what_leads_to_what_was_wanted(environment, policy):
    teacher = demonstrator(environment, policy, detours=0.3)
    typed = count = 0
    for number, example in enumerate(environment.of_split("train")):
        if not teacher._writer.can_be_written(example):
            continue
        chain = teacher.demonstrate(Target(example, None), np.random.default_rng(number), 0)
        text = policy.codec.decode(chain.tokens)
        action = parse_action(
            f"<search>{text.rpartition('<search>')[2].split('</search>')[0]}</search>"
        )
        written = expand(action, example.profile.references, ())
        products = environment.retrieve(written, example.case.as_of)
        is_typed = query_key(written) == example.case.query_key
        assert is_typed or set(products) & set(example.case.products)
        slot = text.count("<search>")
        assert text.rstrip().endswith(f"<recommend><s{slot}></recommend>")
        typed, count = typed + is_typed, count + 1
    assert 0.3 * count < typed < count


def test_every_written_token_is_allowed_and_nothing_that_is_read_is_constrained(
    environment, policy
):
    teacher = demonstrator(environment, policy, read=0.5, written=1.0, drop_lines=0.9)
    for target in teacher.targets(environment.of_split("train"))[:20]:
        chain = teacher.demonstrate(target, np.random.default_rng(1), 0)
        assert chain.allowed
        assert all(mask[chain.tokens[i]] and chain.trained[i] for i, mask in chain.allowed.items())


@pytest.fixture(scope="module")
def writer(environment, policy):
    def make(detours):
        return demonstrator(environment, policy, detours=detours)._writer

    return make


def unknown(example):
    """The example as a shop without a query log knows it."""
    return replace(example, case=replace(example.case, query="", query_key=""))


def test_without_a_known_query_the_words_lead_to_what_was_engaged_with(environment, writer):
    for example in environment.of_split("train")[:20]:
        right = writer(0.0).right_queries(unknown(example))
        assert right
        for query in right:
            products = environment.retrieve(query, example.case.as_of)
            assert set(products) & set(example.case.products), query


def test_every_query_consists_of_words_that_were_read_by_then(environment, policy, writer):
    """Also where the right one is composed from the results of the first."""
    composed = 0
    read_results = demonstrator(environment, policy)._retrieve
    for number, example in enumerate(environment.of_split("train")):
        teacher = writer(1.0)
        steps = teacher.steps(unknown(example), np.random.default_rng(number))
        known = teacher.available(example)
        if steps:
            assert set(words(steps[0])) <= known
        if len(steps) > 1:
            lines = read_results(example, steps[0])
            more = teacher.available(example, steps[0], *lines)
            assert set(words(steps[1])) <= more
            composed += not set(words(steps[1])) <= known
    assert composed, "some queries take words from results"


@pytest.mark.parametrize(
    ("query", "written"),
    [
        ("Acme USB-C Cable", "acme <r1>"),  # the longest line
        ("red phone case xl", "red <r2> xl"),
        ("phone cases", "phone cases"),
        ("cable", "<r0>"),
    ],
)
def test_a_query_is_written_with_the_line_that_it_contains(query, written):
    assert with_references(query, ("cable", "usb c cable", "phone case")) == written
