"""An estimate grows with what a run holds, and knows what a chain does not do."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from mlx.utils import tree_flatten

from qagent_mlx.models import backend
from qagent_mlx.policy.adapters import add_adapters
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.memory_estimate import (
    ATTENTION,
    KEPT_HIDDEN,
    KEPT_INNER,
    KEPT_LOGITS,
    KEPT_SCORES,
    _shape,
    chain_tokens,
    grpo_bytes,
    kept_bytes,
    recomputes,
)


def test_a_chain_is_as_long_as_what_it_reads_and_writes():
    policy, agent = SimpleNamespace(prompt=[0] * 10), AgentConfig()

    def length(**changes):
        return chain_tokens(policy, replace(agent, **changes))[0]

    assert length() > length(search=False) > length(search=False, memory=False) > 10
    assert length(memory=False) < length()
    results = agent.results_shown * (agent.title_words + 8) * 2
    more = length(max_searches=agent.max_searches + 1) - length()
    assert more == results + 4  # one more list of results, and one more action
    assert length(results_shown=2 * agent.results_shown) - length() == agent.max_searches * results
    written = chain_tokens(policy, agent)[1]
    assert written == 4 * (agent.max_searches + 2) < length()


def test_more_chains_and_longer_groups_take_more(nano_policy):
    config = GrpoConfig(cases_per_step=4, group=4)
    sizes = [grpo_bytes(nano_policy, replace(config, group=group)) for group in (4, 16, 64)]
    assert sizes[0] <= sizes[1] < sizes[2]  # a small group is one of several in a micro-batch
    # Chains that wait are not held: more than are decoded together take no more.
    many = [replace(config, cases_per_step=cases) for cases in (64, 640)]
    assert len({grpo_bytes(nano_policy, c) for c in many}) == 1


def test_chains_that_are_decoded_hold_their_keys_and_values_four_times(new_nano):
    """All of a step at once, where an update takes little: two chains make a group."""
    policy = new_nano()[0]
    policy.add_lora(LoraConfig(rank=2))
    config = GrpoConfig(cases_per_step=128, group=2, token_budget=1)
    length, _ = chain_tokens(policy, policy.info.agent)
    adapter = sum(value.nbytes for value in policy.adapter().values())
    weights = sum(value.nbytes for _, value in tree_flatten(policy.model.parameters()))
    logits = 2 * 256 * policy.model.args.vocab_size * 4
    decoded = 4 * 256 * length * policy.cache_bytes
    assert grpo_bytes(policy, config) == weights + 5 * adapter + decoded + logits


@pytest.mark.parametrize("known", [True, False])
def test_the_shape_of_a_model_is_read_from_its_settings_or_guessed_from_its_weights(
    new_nano, known
):
    policy = new_nano()[0]
    args = policy.model.args
    if known:
        expected = (args.hidden_size, args.intermediate_size, args.num_attention_heads, 777)
        args.vocab_size = 777  # what a model says of itself counts
        keys = args.num_key_value_heads * (args.head_dim or args.hidden_size // expected[2])
    else:
        width, vocabulary = args.hidden_size, policy.model.model.embed_tokens.weight.shape[0]
        policy.model.args = None
        heads = max(1, width // 64)
        expected, keys = (width, 4 * width, heads, vocabulary), heads * (width // heads)
    shape = _shape(policy)
    assert (shape.hidden, shape.inner, shape.heads, shape.vocabulary) == expected
    assert shape.keys == keys


def test_an_update_of_all_at_once_keeps_every_block_s_tensors(new_nano, monkeypatch):
    """Where attention is not computed again: hidden width, feed-forward width, and scores."""
    policy = new_nano()[0]
    policy.add_lora(LoraConfig(rank=2))
    monkeypatch.setattr("qagent_mlx.train.memory_estimate.recomputes", lambda _policy: False)
    config = GrpoConfig(cases_per_step=1, group=64, token_budget=1)
    (length, written), args = chain_tokens(policy, policy.info.agent), policy.model.args
    tokens = 64 * length
    block = KEPT_HIDDEN * args.hidden_size + KEPT_INNER * args.intermediate_size
    block += KEPT_SCORES * args.num_attention_heads * length
    logits = tokens * written // length * args.vocab_size * 4 * KEPT_LOGITS
    adapter = sum(value.nbytes for value in policy.adapter().values())
    weights = sum(value.nbytes for _, value in tree_flatten(policy.model.parameters()))
    expected = weights + 5 * adapter + tokens * len(policy.layers) * block * 4 + logits
    assert grpo_bytes(policy, config) == expected


def test_an_update_holds_what_its_gradient_needs_of_every_token(new_nano, monkeypatch):
    """Of a group of 64 chains at once, as a group is never torn."""
    policy = new_nano()[0]
    policy.model.freeze()
    add_adapters(policy.model, LoraConfig(blocks=-1))
    config = GrpoConfig(cases_per_step=1, group=64)
    length, _ = chain_tokens(policy, policy.info.agent)
    monkeypatch.setattr(backend, "on_cpu", lambda: True)
    assert recomputes(policy)
    attention = ATTENTION * policy.model.args.num_attention_heads * length * 4  # of one block
    needed = 64 * length * (kept_bytes(policy) + attention)
    assert needed < grpo_bytes(policy, config) < 2 * needed
