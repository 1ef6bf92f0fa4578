from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from stoppers import Never

from qagent_mlx.agent.decode import Decoder
from qagent_mlx.agent.sequences import DecodingSequence


def rows(policy, seeds, limit=12):
    return [
        DecodingSequence(list(policy.prompt), Never(), np.random.default_rng(seed), limit)
        for seed in seeds
    ]


def decoded(policy, made, use_numpy, insert=()):
    """Decode to the turns' limit, put tokens in, decode again; returns the first turn's contexts."""
    decoder = Decoder(policy, use_numpy)
    batch, most = decoder.start(made), 0
    for again in range(2):
        waiting = None
        while batch.sequences:
            batch, halted = decoder.draw(batch)
            if halted.sequences:
                mx.eval([c.state for c in halted.cache])
                if waiting is None:
                    waiting = halted
                else:
                    waiting.extend(halted)
            if batch.sequences:
                decoder.advance(batch)
                most = max(most, 0 if again else batch.contexts)
        if not again:
            for i, row in enumerate(waiting.sequences):
                row.insert(insert[i % len(insert)] if insert else [])
            batch = decoder.resume(waiting)
    return most


@pytest.mark.parametrize("use_numpy", [False, True])
def test_rows_that_share_contexts_draw_what_each_would_draw_alone(nano_policy, use_numpy):
    seeds = [1, 2, 3, 1, 2, 1]
    together = rows(nano_policy, seeds)
    for i, row in enumerate(together):
        row.turn_limit = 4 + i  # rows that leave must not disturb those that stay
    most = decoded(nano_policy, together, use_numpy, ([5, 6], [5, 6], [7]))
    assert most == 3  # copies of a stream are computed once
    for i, seed in enumerate(seeds):
        alone = rows(nano_policy, [seed], 4 + i)
        order = [row for row in together if row is together[i]]
        index = sorted(range(len(seeds)), key=lambda j: together[j].turn_limit).index(i)
        decoded(nano_policy, alone, use_numpy, (([5, 6], [5, 6], [7])[index % 3],))
        assert order[0].tokens == alone[0].tokens
        assert order[0].logprobs == pytest.approx(alone[0].logprobs, abs=1e-4)


@pytest.mark.parametrize("use_numpy", [False, True])
def test_equal_rows_cost_one_context_until_they_part(nano_policy, use_numpy):
    same = rows(nano_policy, [4] * 8)
    assert decoded(nano_policy, same, use_numpy) == 1
    assert len({tuple(row.tokens) for row in same}) == 1
