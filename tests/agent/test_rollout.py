"""The environment's side of a chain, driven by scripts, and the sampler's, by a real model."""

from datetime import datetime

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from qagent_mlx.agent.decode import Decoder
from qagent_mlx.agent.rollout import RolloutRunner
from qagent_mlx.agent.tools import SearchProducts
from qagent_mlx.agent.types import Task
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.types import Line, Profile

AGENT = AgentConfig(max_searches=2)
NOW = datetime(2026, 2, 1)


def profile(*queries, user="u"):
    lines = tuple(Line("latest", q, 0.1, query=q) for q in queries)
    text = "\n".join(f"{q} <r{i}>" for i, q in enumerate(queries))
    return Profile(user, NOW, text, lines, tuple(queries))


@pytest.fixture
def runner(nano_policy, tiny_search):
    return RolloutRunner(nano_policy, SearchProducts(tiny_search, AGENT), AGENT)


@pytest.fixture
def play(runner, monkeypatch):
    """Make the policy say a script: a list of turns for each (task, member)."""

    def run(scripts, tasks=None, group=1):
        codec = runner.policy.codec
        streams = {
            key: iter([i for turn in turns for i in codec.encode(turn)])
            for key, turns in scripts.items()
        }

        def scripted(_decoder, logits, sequences, context_of):
            ids = [next(streams[s.tag.case, s.tag.member]) for s in sequences]
            return ids, [-0.5] * len(ids)

        monkeypatch.setattr(Decoder, "sample", scripted)
        tasks = tasks or [Task(profile("usb cable", "phone case"), NOW)]
        return runner.run(tasks, group, (0,))

    return run


def test_a_whole_chain(play, runner):
    (chain,) = play(
        {(0, 0): ["<fetch_memory/>", "<search><r1></search>", "<recommend><s1></recommend>"]}
    )
    assert chain.finish == "recommended"
    assert chain.query == "phone case"
    assert chain.validated
    assert [t.kind for t in chain.turns] == ["fetch", "search", "recommend"]
    assert chain.products == chain.turns[1].products
    text = runner.policy.codec.decode(chain.tokens)
    assert "usb cable" in text
    assert text.index("<profile>") < text.index("<results>") < text.index("<recommend>")


def test_the_mask_marks_exactly_what_the_policy_said(play, runner):
    """Invariants 1 and 2."""
    turns = ["<fetch_memory/>", "<search>usb cable</search>", "<recommend>usb cable</recommend>"]
    (chain,) = play({(0, 0): turns})
    codec = runner.policy.codec
    said = [t for t, on in zip(chain.tokens, chain.trained_mask, strict=True) if on]
    assert said == [i for turn in turns for i in codec.encode(turn)]
    assert len(chain.tokens) == len(chain.trained_mask)


def test_a_recommendation_that_was_not_searched_is_not_validated(play):
    (chain,) = play({(0, 0): ["<fetch_memory/>", "<recommend><r0></recommend>"]})
    assert chain.query == "usb cable"
    assert not chain.validated
    assert chain.products == ()


@pytest.mark.parametrize(
    ("turn", "finish"),
    [
        ("<search><r9></search>", "invalid"),
        ("<recommend><s1></recommend>", "invalid"),
        ("<search></search>", "invalid"),
        ("usb <search>usb</search>", "invalid"),
    ],
)
def test_nonsense_ends_the_chain(play, turn, finish):
    (chain,) = play({(0, 0): ["<fetch_memory/>", turn]})
    assert chain.finish == finish
    assert chain.query == ""


@pytest.mark.parametrize("action", ["search", "recommend"])
def test_a_line_of_memory_that_was_not_read_means_nothing(play, action):
    (chain,) = play({(0, 0): [f"<{action}><r0></{action}>"]})
    assert (chain.finish, chain.query, chain.searches) == ("invalid", "", 0)


def test_a_turn_that_never_closes_is_cut(play):
    (chain,) = play({(0, 0): ["usb " * 200]})
    assert chain.finish == "length"
    assert sum(chain.sampled) <= AGENT.turn_tokens


def test_searches_beyond_the_limit_are_refused_and_the_chain_may_go_on(play, runner):
    (chain,) = play(
        {
            (0, 0): [
                "<fetch_memory/>",
                "<search><r0></search>",
                "<search><r1></search>",
                "<search>another</search>",
                "<recommend><s1></recommend>",
            ]
        }
    )
    assert chain.finish == "recommended"
    assert chain.refused == 1
    assert len(chain.searched) == 2
    assert "no more searches" in runner.policy.codec.decode(chain.tokens)


def test_repeated_searches_are_counted(play):
    (chain,) = play(
        {
            (0, 0): [
                "<fetch_memory/>",
                "<search><r0></search>",
                "<search>USB-cable</search>",
                "<recommend><s2></recommend>",
            ]
        }
    )
    assert chain.repeated == 1


def test_a_chain_that_only_fetches_ends(play):
    (chain,) = play({(0, 0): ["<fetch_memory/>"] * 20})
    assert chain.finish == "turns"


def test_users_do_not_see_each_others_memory(play, runner):
    tasks = [Task(profile("canary one", user="a"), NOW), Task(profile("canary two", user="b"), NOW)]
    script = ["<fetch_memory/>", "<search><r0></search>", "<recommend><s1></recommend>"]
    first, second = play({(0, 0): script, (1, 0): script}, tasks)
    decoded = [runner.policy.codec.decode(c.tokens) for c in (first, second)]
    assert "two" not in decoded[0]
    assert "one" not in decoded[1]


def test_a_row_that_waits_does_not_change_the_others(play):
    """Rows of different lengths stop at different times; each gets its own answers."""
    tasks = [Task(profile(f"query {i}", "usb cable"), NOW) for i in range(5)]
    scripts = {
        (i, m): ["<fetch_memory/>"]
        + ["<search><r0></search>"] * (m % 2)
        + [f"<search>usb {'cable ' * i}</search>", f"<recommend><s{1 + m % 2}></recommend>"]
        for i in range(5)
        for m in range(3)
    }
    chains = play(scripts, tasks, group=3)
    for chain in chains:
        assert chain.finish == "recommended"
        assert chain.turns[-1].query.split()[0] == "usb"
        if chain.member % 2:
            assert chain.turns[1].query == f"query {chain.case}"


def sampled(runner, seed=(3,), tasks=6, group=4):
    some = [Task(profile(f"query {i}", "usb cable"), NOW) for i in range(tasks)]
    return runner.run(some, group, seed)


def test_sampled_log_probabilities_are_those_of_a_full_forward_pass(runner):
    """Invariant 3: what is sampled is what is scored."""
    for chain in sampled(runner):
        policy = runner.policy
        logits = policy.head(policy.backbone(mx.array([chain.tokens])))[0]
        logprobs = nn.log_softmax(logits, axis=-1)
        places = [t for t, on in enumerate(chain.trained_mask) if on]
        expected = [float(logprobs[t - 1, chain.tokens[t]]) for t in places]
        assert np.allclose(chain.sampled_logprobs, expected, atol=2e-4)


def test_a_chain_does_not_depend_on_its_batch(runner, nano_policy, tiny_search):
    whole = sampled(runner)
    narrow = RolloutRunner(nano_policy, SearchProducts(tiny_search, AGENT), AGENT, max_rows=3)
    assert [c.tokens for c in sampled(narrow)] == [c.tokens for c in whole]
    assert narrow.rows_that_fit(1) == 3  # whatever memory there is


def test_seeds_differ_and_repeat(runner):
    first, again, other = sampled(runner), sampled(runner), sampled(runner, seed=(4,))
    assert [c.tokens for c in first] == [c.tokens for c in again]
    assert [c.tokens for c in first] != [c.tokens for c in other]


def test_little_memory_means_fewer_rows_and_the_same_chains(runner, nano_policy, tiny_search):
    whole = sampled(runner)
    tools = SearchProducts(tiny_search, AGENT)
    poor = RolloutRunner(nano_policy, tools, AGENT, memory=2 * 512 * nano_policy.cache_bytes * 4)
    held = []
    start = poor.decoder.start
    poor.decoder.start = lambda sequences: held.append(len(sequences)) or start(sequences)
    assert [c.tokens for c in sampled(poor)] == [c.tokens for c in whole]
    assert max(held) <= 8
    assert RolloutRunner(nano_policy, tools, AGENT, memory=1).rows_that_fit(100) == 1
