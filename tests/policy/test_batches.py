import numpy as np

from qagent_mlx.policy.batches import TrainingSequence, make_batch, micro_batches


def chains_of(seed=0, groups=3, members=4):
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


def test_observation_tokens_carry_no_loss():
    """Invariant 2: what is inserted is no target, whatever it is."""
    chain = TrainingSequence([60, 61, 62, 63, 64], [False, False, True, False, True], 0)
    batch = make_batch([chain])
    assert np.array(batch.target).tolist() == [62, 64]


def test_micro_batches_keep_groups_whole_and_hold_the_budget():
    chains = chains_of(groups=6)
    pieces = micro_batches(chains, budget=150)
    assert sorted(i for piece in pieces for i in piece) == list(range(len(chains)))
    for piece in pieces:
        groups = {chains[i].group for i in piece}
        assert len(piece) == 4 * len(groups)
        assert len(groups) == 1 or make_batch([chains[i] for i in piece]).padded_tokens <= 150
