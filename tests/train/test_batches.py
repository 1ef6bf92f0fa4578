import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from qagent_mlx.models import cpu_kernels, transformer_blocks
from qagent_mlx.policy.batches import TrainingSequence, make_batch, micro_batches
from qagent_mlx.policy.scoring import entropy, hidden_states, token_scores


def chains_of(policy, seed=0, groups=3, members=4):
    """Random chains; those of a group share a beginning."""
    random = np.random.default_rng(seed)
    made = []
    for group in range(groups):
        prefix = random.integers(50, 300, int(random.integers(5, 20))).tolist()
        for _ in range(members):
            own = random.integers(50, 300, int(random.integers(2, 15))).tolist()
            trained = [False] * len(prefix) + (random.random(len(own)) < 0.5).tolist()
            trained[-1] = True
            made.append(TrainingSequence(prefix + own, trained, group))
    return made


def plain_logprobs(policy, chain):
    logits = policy.head(policy.backbone(mx.array([chain.tokens])))[0]
    logprobs = nn.log_softmax(logits, axis=-1)
    return [float(logprobs[t - 1, chain.tokens[t]]) for t, on in enumerate(chain.trained) if on]


def test_sharing_a_prefix_changes_no_log_probability(nano_policy):
    chains = chains_of(nano_policy)
    batch = make_batch(chains)
    values, _ = token_scores(nano_policy, batch)
    expected = [v for chain in chains for v in plain_logprobs(nano_policy, chain)]
    assert np.allclose(np.array(values), expected, atol=2e-5)
    assert batch.padded_tokens < sum(len(c.tokens) for c in chains) * 1.5


def test_sharing_a_prefix_changes_no_gradient(nano_policy):
    chains = chains_of(nano_policy, seed=1)
    alone = [TrainingSequence(c.tokens, c.trained, i) for i, c in enumerate(chains)]

    def gradient(some):
        batch = make_batch(some)
        loss = lambda model: token_scores(nano_policy, batch, gradient=True)[0].sum()  # noqa: E731
        return dict(tree_flatten(nn.value_and_grad(nano_policy.model, loss)(nano_policy.model)[1]))

    shared, separate = gradient(chains), gradient(alone)
    for name, value in separate.items():
        scale = float(mx.abs(value).max()) + 1e-6
        assert float(mx.abs(shared[name] - value).max()) / scale < 1e-3, name


def test_observation_tokens_carry_no_loss(nano_policy):
    """Invariant 2: what is inserted is no target, whatever it is."""
    chain = TrainingSequence([60, 61, 62, 63, 64], [False, False, True, False, True], 0)
    batch = make_batch([chain])
    assert np.array(batch.target).tolist() == [62, 64]


def test_the_head_runs_on_trained_positions_only(nano_policy):
    """Invariant 5."""
    seen = []
    head = nano_policy.head
    nano_policy.head = lambda hidden: seen.append(hidden.shape) or head(hidden)
    try:
        chains = chains_of(nano_policy)
        token_scores(nano_policy, make_batch(chains))
    finally:
        del nano_policy.head
    assert [shape[0] for shape in seen] == [sum(sum(c.trained) for c in chains)]


def test_micro_batches_keep_groups_whole_and_hold_the_budget(nano_policy):
    chains = chains_of(nano_policy, groups=6)
    pieces = micro_batches(chains, budget=150)
    assert sorted(i for piece in pieces for i in piece) == list(range(len(chains)))
    for piece in pieces:
        groups = {chains[i].group for i in piece}
        assert len(piece) == 4 * len(groups)
        assert len(groups) == 1 or make_batch([chains[i] for i in piece]).padded_tokens <= 150


def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size():
    assert float(entropy(mx.zeros((1, 8)))[0]) == pytest.approx(np.log(8), abs=1e-5)


def test_hidden_states_of_a_lone_row_need_no_prefix(nano_policy):
    batch = make_batch([TrainingSequence([60, 61, 62], [False, True, True], 0)])
    assert batch.prefix.shape[1] == 0
    assert hidden_states(nano_policy, batch).shape[0] == 2


def test_tokens_predicted_inside_a_prefix_count_in_groups_of_any_size(nano_policy):
    random = np.random.default_rng(4)
    chains = []
    for group, members in enumerate((3, 1, 4)):
        prefix = random.integers(50, 300, 9 + group).tolist()
        inside = [False, True, *[False] * (len(prefix) - 3), True]
        for member in range(members):
            own = random.integers(50, 300, 3 + member).tolist()
            chains.append(TrainingSequence(prefix + own, inside + [member > 0] * len(own), group))
    batch = make_batch(chains)
    states = hidden_states(nano_policy, batch)
    assert states.shape[0] == sum(sum(c.trained) for c in chains)
    expected = [v for chain in chains for v in plain_logprobs(nano_policy, chain)]
    assert np.allclose(np.array(token_scores(nano_policy, batch)[0]), expected, atol=2e-5)


def test_the_last_block_feeds_forward_predicting_tokens_only(nano_policy, monkeypatch):
    seen = []
    real = cpu_kernels.swiglu
    watched = lambda gate, up: seen.append(gate.shape) or real(gate, up)  # noqa: E731
    monkeypatch.setattr(transformer_blocks, "swiglu", lambda _numpy: watched)
    chains = chains_of(nano_policy)
    batch = make_batch(chains)
    token_scores(nano_policy, batch)
    # The first token that a row may differ in is predicted by its prefix's last one.
    inside = np.array(batch.position) >= batch.prefix.size
    assert seen[-1][:2] == (len(chains), max(np.bincount(batch.sequence[inside])))
    assert seen[-2][:2] == tuple(batch.suffix.shape) != seen[-1][:2]
