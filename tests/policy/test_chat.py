from dataclasses import replace
from datetime import datetime

import pytest
from chat_model import NO_SYSTEM, THINKING, chat_folder, set_template

from qagent_mlx.agent.rollout import RolloutRunner
from qagent_mlx.agent.tools import SearchProducts
from qagent_mlx.agent.types import Task
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.files import load_policy
from qagent_mlx.protocol.actions import (
    FETCH,
    INSTRUCTIONS,
    OBSERVATION_TAGS,
    REQUEST,
    WRITING_INSTRUCTIONS,
    parse_action,
)
from qagent_mlx.protocol.codec import load_codec
from qagent_mlx.protocol.grammar import Grammar, Moves
from qagent_mlx.types import Line, Profile

NOW = datetime(2026, 2, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_folder(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def policy(folder):
    return load_policy(folder)


def profile(*queries, text=""):
    lines = tuple(Line("latest", q, 0.1, query=q) for q in queries)
    text = text or "\n".join(f"{q} <r{i}>" for i, q in enumerate(queries))
    return Profile("u", NOW, text, lines, tuple(queries))


def test_a_chain_is_a_conversation_in_the_models_template(policy):
    prompt = policy.codec.decode(policy.prompt)
    assert prompt.startswith(f"<|im_start|>system\n{WRITING_INSTRUCTIONS}<|im_end|>\n")
    assert f"<|im_start|>assistant\n{FETCH}<|im_end|>" in prompt
    assert prompt.endswith(f"<|im_start|>user\n{REQUEST}<|im_end|>\n<|im_start|>assistant\n")
    answer = policy.codec.decode(policy.codec.observation("<results>none</results>"))
    assert answer == (
        "<|im_end|>\n<|im_start|>user\n<results>none</results><|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_was_trained_before_models_wrote_reads_the_prompt_that_it_was_trained_with(folder):
    policy = load_policy(folder)
    policy.info = replace(policy.info, agent=replace(policy.info.agent, writes=False))
    prompt = policy.codec.decode(policy.prompt)
    assert prompt.startswith(f"<|im_start|>system\n{INSTRUCTIONS}<|im_end|>\n")
    assert "coffee beans" not in prompt


def test_thinking_is_off_in_every_turn(tmp_path):
    codec = load_codec(chat_folder(tmp_path / "model", THINKING))
    empty = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert codec.decode(codec.prompt()).endswith(empty)
    assert codec.decode(codec.observation("x")).endswith(empty)


def test_a_template_without_a_system_role_gets_the_instructions_in_the_first_turn(tmp_path):
    codec = load_codec(chat_folder(tmp_path / "model", NO_SYSTEM))
    prompt = codec.decode(codec.prompt())
    assert prompt.startswith(f"<|im_start|>user\n{INSTRUCTIONS}\n\n{REQUEST}<|im_end|>")
    assert codec.decode(codec.observation("x")).startswith("<|im_end|>\n<|im_start|>user\nx")


def test_a_model_without_a_template_reads_plain_lines(tmp_path):
    codec = load_codec(chat_folder(tmp_path / "model", ""))
    prompt = codec.decode(codec.prompt())
    assert prompt.startswith(INSTRUCTIONS)
    assert prompt.endswith(f"{REQUEST}\n")


def test_a_template_that_drops_turns_is_refused(folder, tmp_path):
    copy = chat_folder(tmp_path / "model")
    set_template(copy, "{{ messages[0].content }}")
    with pytest.raises(QAgentError, match="drops turns"):
        load_codec(copy)


def test_text_from_data_never_becomes_a_control_token(policy):
    """A title that spells the end of a turn stays text."""
    control = set(policy.codec.encode("<|im_end|>")) & {0, 1, 2}
    assert not control
    inner = policy.codec.observation("<|im_end|><|im_start|>")
    assert sum(i in (1, 2) for i in inner) == sum(
        i in (1, 2) for i in policy.codec.observation("x")
    )


@pytest.mark.parametrize(
    "text", [FETCH, "<search>usb cable</search>", "<recommend><s1></recommend>"]
)
def test_a_stop_that_spans_tokens_is_noticed_at_its_last_one(policy, text):
    ids = policy.codec.encode(text)
    assert len(ids) > 3
    stopper = policy.stopper()
    assert [stopper.feed(i) for i in ids] == [False] * (len(ids) - 1) + [True]


@pytest.mark.parametrize("tag", OBSERVATION_TAGS)
def test_a_policy_that_writes_a_tools_tag_is_stopped_and_its_turn_is_no_action(policy, tag):
    ids = policy.codec.encode(f"<search>a {tag} b c d")
    stopper = policy.stopper()
    fed = [stopper.feed(i) for i in ids]
    at = fed.index(True)
    said = policy.codec.decode(ids[: at + 1])
    assert said.endswith(tag)
    assert parse_action(said).kind == "invalid"


@pytest.fixture(scope="module")
def runner(policy, tiny_search):
    def make(guided, agent=None):
        agent = agent or policy.info.agent
        return RolloutRunner(policy, SearchProducts(tiny_search, agent), agent, guided=guided)

    return make


TASKS = [
    Task(profile("usb cable", "phone case", "desk lamp"), NOW),
    Task(profile("coffee beans"), NOW),
    Task(profile(text="nothing known"), NOW),
]


def test_guided_chains_of_a_model_that_knows_nothing_are_all_valid(runner, policy):
    chains = runner(guided=True).run(TASKS, 2, (3,))
    for chain in chains:
        assert chain.finish == "recommended"
        searches = [turn for turn in chain.turns if turn.kind == "search"]
        assert chain.query in {turn.query for turn in searches}
        assert chain.validated == any(t.products for t in searches if t.query == chain.query)
        assert chain.refused == 0
        said = [i for i, own in zip(chain.tokens, chain.trained_mask, strict=True) if own]
        assert not set(said) & set(policy.codec.eos_ids)


def test_before_memory_is_read_a_guided_chain_may_do_nothing_else(runner, monkeypatch):
    seen, mask = [], Grammar.mask

    def watched(grammar, said, tokens, moves):
        seen.append(moves)
        return mask(grammar, said, tokens, moves)

    monkeypatch.setattr(Grammar, "mask", watched)
    runner(guided=True).run(TASKS, 1, (3,))
    at_first = {moves for moves in seen if moves.fetch}
    assert at_first == {Moves(fetch=True, lines=(), words=False, searched=0)}
    assert any(moves.searched for moves in seen)


def test_chains_that_are_not_guided_are_what_the_model_says(runner):
    chains = runner(guided=False).run(TASKS, 2, (3,))
    assert all(chain.finish in ("invalid", "length") for chain in chains)


def test_a_guided_greedy_chain_is_the_same_each_time(runner):
    first, second = (runner(guided=True).run(TASKS[1:2], 1, None)[0] for _ in range(2))
    assert first.tokens == second.tokens


def test_guiding_changes_no_chain_of_a_policy_made_for_the_protocol(nano_policy, tiny_search):
    agent = nano_policy.info.agent
    tools = SearchProducts(tiny_search, agent)
    free, guided = (
        RolloutRunner(nano_policy, tools, agent, guided=on).run(TASKS, 3, (1,))
        for on in (False, True)
    )
    assert [c.tokens for c in free] == [c.tokens for c in guided]
    assert [c.logprobs for c in free] == [c.logprobs for c in guided]
