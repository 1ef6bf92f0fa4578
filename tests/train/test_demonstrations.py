import re
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from chat_model import QWEN, other_folder
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from qagent_mlx.environment.environment import Environment
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.batches import TrainingSequence
from qagent_mlx.policy.export import fuse
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.registry import derive
from qagent_mlx.protocol.actions import parse_action
from qagent_mlx.protocol.marks import MARK_WORDS
from qagent_mlx.train.delexicalize import Delexicalizer
from qagent_mlx.train.demonstrations import DemoConfig, Demonstrator, training_examples
from qagent_mlx.train.fit import FitConfig, LikelihoodTrainer
from qagent_mlx.train.sft import MAX_PASSES, SftConfig, SftTrainer
from qagent_mlx.utils.text import query_key

TEXTS = ("Acme Desk Lamp, black", "Office > Lamps", "usb cable", "gears of war 3", "surely")


@pytest.fixture
def made(own_shop, new_nano):
    policy, _, _ = new_nano()
    environment = Environment.of_shop(own_shop, policy.codec, policy.info.agent)

    def demonstrator(**settings):
        return Demonstrator(environment, policy, policy.info.agent, DemoConfig(**settings))

    return policy, environment, demonstrator


def test_a_chain_ends_at_the_right_line_and_has_searched_it(made):
    policy, environment, demonstrator = made
    teacher = demonstrator(noise=0.0, compare=0.0, reachable=True)
    targets = teacher.targets(environment.examples)
    assert {target.reference for target in targets} > {0}
    for target in targets:
        right = target.reference
        text = policy.codec.decode(teacher.demonstrate(target, np.random.default_rng(0), 0).tokens)
        searched = re.findall(r"<search><(r\d+)></search>", text)
        assert searched == [f"r{i}" for i in range(right + 1)]
        (said,) = re.findall(r"<recommend>.*</recommend>", text)
        assert parse_action(said).reference == f"s{right + 1}"


def test_a_case_beyond_a_chains_reach_is_not_told_where_it_must_be_reachable(made):
    _, environment, demonstrator = made
    every = demonstrator().targets(environment.examples)
    near = demonstrator(reachable=True).targets(environment.examples)
    assert near == [target for target in every if target.reference < 4]


def test_lines_that_are_left_out_never_take_the_right_one_along(made):
    policy, environment, demonstrator = made
    teacher = demonstrator(drop_lines=0.9)
    for target in teacher.targets(environment.examples)[:40]:
        chain = teacher.demonstrate(target, np.random.default_rng(1), 0)
        text = policy.codec.decode(chain.tokens)
        profile = text.partition("</profile>")[0]
        slot = int(re.search(r"<recommend><s(\d+)>", text)[1])
        place = re.findall(r"<search><r(\d+)>", text)[slot - 1]
        line = next(x for x in profile.split("\n") if f"<r{place}>" in x)
        assert target.example.profile.references[target.reference].lower() in line.lower()


def test_a_delexicalised_chain_keeps_its_marks_and_its_actions(made):
    policy, environment, demonstrator = made
    plain, other = demonstrator(), demonstrator(disguise=1.0)
    changed = 0
    for target in plain.targets(environment.examples)[:40]:
        texts = [
            policy.codec.decode(d.demonstrate(target, np.random.default_rng(2), 0).tokens)
            for d in (plain, other)
        ]
        actions = [re.findall(r"<(?:search|recommend)><\w+>", t) for t in texts]
        assert actions[0] == actions[1]
        marks = [[w for w in re.findall(r"\w+", t) if w in MARK_WORDS] for t in texts]
        assert marks[0] == marks[1]
        changed += texts[0] != texts[1]
    assert changed > 30


@given(st.integers(0, 1000))
def test_a_word_is_the_same_other_word_wherever_it_comes(seed):
    worded = Delexicalizer(TEXTS).draw(np.random.default_rng(seed))
    line, title = worded("usb desk lamp bought <r3>"), worded("1 Acme Desk Lamp $$ chosen")
    assert line.split()[1:3] == [w.lower() for w in title.split()[2:4]]
    assert line.endswith("bought <r3>") and title.endswith("$$ chosen") and title[:2] == "1 "
    known = {w.lower() for text in TEXTS for w in re.findall(r"[^\s,>]+", text)} - MARK_WORDS
    assert set(line.split()[:3]) <= known
    assert worded("never heard") == "never heard"


def test_a_cold_start_speaks_as_the_base_was_pretrained_unless_told(made):
    policy, environment, _ = made
    before = policy.info.trained

    def disguise(config):
        return SftTrainer(policy, environment, config).demonstrator.config.disguise

    try:
        for stages, asked, told in (
            ([], None, 0.0),
            ([{"stage": "pretrain", "config": {}}], None, 0.0),  # of a time without disguise
            ([{"stage": "pretrain", "config": {"disguise": 0.5}}, {"stage": "sft"}], None, 0.5),
            ([{"stage": "pretrain", "config": {"disguise": 0.5}}], 0.1, 0.1),
        ):
            policy.info = replace(policy.info, trained=tuple(stages))
            once = SftConfig(steps=1, disguise=asked)
            trainer = SftTrainer(policy, environment, once)
            assert trainer.demonstrator.config.disguise == told
            # Few cases that are told again and again would be known by their words.
            often = replace(once, steps=2 * MAX_PASSES * len(trainer.targets))
            expected = 1.0 if told and asked is None else told
            assert disguise(often) == expected
            steps = 2 * MAX_PASSES * len(environment.examples)
            assert disguise(replace(once, steps=steps, words=True)) == told
    finally:
        policy.info = replace(policy.info, trained=before)


def test_a_case_without_a_right_line_can_be_told_in_its_own_words(made):
    policy, environment, demonstrator = made
    assert all(t.reference is not None for t in demonstrator().targets(environment.examples))
    teacher = demonstrator(reachable=True, words=True, disguise=1.0, drop_lines=0.5)
    targets = teacher.targets(environment.examples)
    assert [t.example for t in targets] == environment.examples
    written = [t for t in targets if t.reference is None]
    assert written
    for target in written[:40]:
        chain = teacher.demonstrate(target, np.random.default_rng(2), 0)
        text = policy.codec.decode(chain.tokens)
        (said,) = re.findall(r"<search>.*?</search>", text)
        assert query_key(parse_action(said).text) == target.example.case.query_key
        assert parse_action(text[text.index("<recommend>") :]).reference == "s1"


def test_a_chat_model_is_told_to_end_its_answer_after_each_action(own_shop, tmp_path):
    """So that it stops wherever it is used; this package would stop it by its action alone."""
    policy = load_policy(other_folder(tmp_path / "model", QWEN))
    set_eos = policy.codec.eos_ids
    environment = Environment.of_shop(own_shop, policy.codec, policy.info.agent)
    teacher = Demonstrator(environment, policy, policy.info.agent, DemoConfig())
    targets = teacher.targets(environment.examples)
    assert policy.codec.ending and policy.codec.ending[-1] in set_eos
    made = teacher.demonstrate(targets[0], np.random.default_rng(0), 0)
    start = len(policy.prompt)
    ends = [i for i, t in enumerate(made.tokens) if t in set_eos and made.trained[i]]
    text = policy.codec.decode(made.tokens[start:])
    assert len(ends) == len(re.findall(r"</search>|<fetch_memory/>|</recommend>", text))
    assert ends[-1] == len(made.tokens) - 1
    # What is a tool's carries no loss otherwise.
    spoken = policy.codec.decode([t for t, on in zip(made.tokens, made.trained, strict=True) if on])
    assert "<profile>" not in spoken and "<results>" not in spoken


def test_a_fused_chat_model_stops_by_itself(own_shop, tmp_path):
    from mlx_lm import load, stream_generate

    folder = other_folder(tmp_path / "model", QWEN)
    policy = load_policy(folder)
    prompt = policy.codec.encode("go: ")
    answer = [*policy.codec.encode("<recommend>cup</recommend>"), *policy.codec.ending]
    chain = TrainingSequence([*prompt, *answer], [False] * len(prompt) + [True] * len(answer), 0)
    # The whole model: an adapter of random weights learns no text.
    trainer = LikelihoodTrainer(policy, lambda *_: chain, 1, FitConfig(60, 1, 1e-2, warmup=5))
    losses = [trainer.step(number).metrics["loss"] for number in range(60)]
    assert losses[-1] < 0.05
    weights = dict(tree_flatten(policy.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tuned = derive(own_shop, str(folder), "tuned", LoraConfig(rank=4))
    tuned.save(own_shop.folder("policies", "tuned"))
    fuse(own_shop.folder("policies", "tuned"), tmp_path / "fused", "float32")
    model, tokenizer = load(str(tmp_path / "fused"))
    *_, last = stream_generate(model, tokenizer, prompt, max_tokens=100)
    assert last.finish_reason == "stop" and last.generation_tokens == len(answer)


def test_without_a_case_to_learn_from_grpo_says_how_to_get_some(nano_policy):
    environment = SimpleNamespace(of_split=lambda split: [])
    with pytest.raises(QAgentError, match="no training case to learn from; ingest a longer log"):
        training_examples(environment, nano_policy, solvable=False)
