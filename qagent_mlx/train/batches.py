"""Sequences to padded batches, and the log-probabilities of their trained tokens.

Rollouts of a group share their beginning (task, memory action, profile). `token_logprobs`
computes that prefix once a group, forward and backward, and attends from each rollout's own
part to it; this is exact. The head runs on trained positions only.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..policy.scoring import TrainingSequence, common_prefix


def micro_batches(sequences: Sequence[TrainingSequence], budget: int) -> list[list[int]]:
    """Split groups into batches of at most ``budget`` padded tokens, similar lengths together.

    Groups are never torn. A group that is over the budget on its own is a batch on its own.
    """
    groups: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        groups.setdefault(sequence.group, []).append(i)
    sized = []
    for members in groups.values():
        shared = common_prefix([sequences[i].tokens for i in members]) if len(members) > 1 else 0
        longest = max(len(sequences[i].tokens) for i in members) - shared
        sized.append((longest, shared, members))
    sized.sort(key=lambda item: (-item[0], -item[1], item[2][0]))
    made: list[list[int]] = []
    rows = longest = width = count = 0
    for size, shared, members in sized:
        new = (rows + len(members)) * max(longest, size) + (count + 1) * max(width, shared)
        if made and rows and new <= budget:
            made[-1] += members
        else:
            made.append(list(members))
            rows = longest = width = count = 0
        rows += len(members)
        longest, width, count = max(longest, size), max(width, shared), count + 1
    return made
