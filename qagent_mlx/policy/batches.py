"""Training sequences, padded into batches in which a group's common beginning stands once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

FORBIDDEN = -1e9  # as a logit; minus infinity would make 0 x infinity of an entropy


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """Token ids of one chain; ``trained[i]`` says whether token i carries loss.

    Sequences with the same ``group`` number may share their first tokens. Trained token i was
    drawn from the ids of ``allowed[i]`` only, a (vocabulary,) mask; from all where it has none.
    """

    tokens: list[int]
    trained: list[bool]
    group: int
    allowed: Mapping[int, np.ndarray] = field(default_factory=dict)

    def without_first(self, count: int) -> TrainingSequence:
        """The sequence without its first tokens, none of which is trained."""
        allowed = {i - count: mask for i, mask in self.allowed.items()}
        return TrainingSequence(self.tokens[count:], self.trained[count:], self.group, allowed)


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """The trained tokens of a batch that were drawn from some of the ids only."""

    index: np.ndarray  # (M,) which of the T trained tokens, ascending
    masks: np.ndarray  # (M, vocabulary) of bool

    def of_rows(self, start: int, stop: int) -> AllowedTokens:
        """Those among the trained tokens from ``start`` to before ``stop``, counted from there."""
        first, last = np.searchsorted(self.index, (start, stop))
        return AllowedTokens(self.index[first:last] - start, self.masks[first:last])

    def constrain(self, logits: mx.array) -> mx.array:
        """(T, V) logits with those of forbidden ids lowered until their probability is 0.

        V may be larger than the vocabulary: its padding is never allowed.
        """
        if not len(self.index):
            return logits
        bias = np.full((len(self.index), logits.shape[-1]), FORBIDDEN, dtype=np.float32)
        bias[:, : self.masks.shape[1]][self.masks] = 0.0
        return logits.at[mx.array(self.index)].add(mx.array(bias))


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """S sequences of K groups, padded; they train T tokens, listed sequence by sequence.

    Trained token ``target[t]`` of sequence ``sequence[t]`` is predicted at ``position[t]`` of
    the flattened [prefix; suffix].
    """

    prefix: mx.array  # (K, P) what a group's sequences begin with
    prefix_length: mx.array  # (K,) real tokens of each prefix
    suffix: mx.array  # (S, L) the rest of each sequence
    group: mx.array  # (S,) index of a sequence's group
    position: mx.array  # (T,)
    target: mx.array  # (T,)
    sequence: np.ndarray  # (T,)
    allowed: AllowedTokens | None = None

    @property
    def padded_tokens(self) -> int:
        """Tokens that a forward pass computes, padding included."""
        return self.prefix.size + self.suffix.size


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """Number of first tokens that all sequences share."""
    first, shortest = sequences[0], min(len(tokens) for tokens in sequences)
    for i in range(shortest):
        if any(tokens[i] != first[i] for tokens in sequences):
            return i
    return shortest


def make_batch(sequences: Sequence[TrainingSequence]) -> TrainingBatch:
    """Pad sequences into one batch, in their order."""
    groups = _by_group(sequences)
    index = {group: at for at, group in enumerate(groups)}
    # Every sequence keeps a token of its own, and a lone sequence is all suffix.
    cut = {
        group: min(
            _shared_length(sequences, members), *(len(sequences[i].tokens) - 1 for i in members)
        )
        for group, members in groups.items()
    }
    longest = max(len(s.tokens) - cut[s.group] for s in sequences)
    prefix = np.zeros((len(groups), max(cut.values())), dtype=np.int32)
    suffix = np.zeros((len(sequences), longest), dtype=np.int32)
    for group, members in groups.items():
        prefix[index[group], : cut[group]] = sequences[members[0]].tokens[: cut[group]]
    position: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    constrained: list[int] = []
    masks: list[np.ndarray] = []
    for i, sequence in enumerate(sequences):
        start, tokens = cut[sequence.group], sequence.tokens
        suffix[i, : len(tokens) - start] = tokens[start:]
        # Token t is predicted by the hidden state of token t - 1.
        in_prefix = index[sequence.group] * prefix.shape[1] - 1
        in_suffix = prefix.size + i * longest - start - 1
        for t, trained in enumerate(sequence.trained):
            if trained and t > 0:
                if t in sequence.allowed:
                    constrained.append(len(target))
                    masks.append(sequence.allowed[t])
                position.append(t + (in_prefix if t - 1 < start else in_suffix))
                target.append(tokens[t])
                owner.append(i)
    return TrainingBatch(
        prefix=mx.array(prefix),
        prefix_length=mx.array([cut[group] for group in groups]),
        suffix=mx.array(suffix),
        group=mx.array([index[s.group] for s in sequences]),
        position=mx.array(np.array(position, dtype=np.int32)),
        target=mx.array(np.array(target, dtype=np.int32)),
        sequence=np.array(owner, dtype=np.int64),
        allowed=AllowedTokens(np.array(constrained), np.stack(masks)) if masks else None,
    )


def micro_batches(sequences: Sequence[TrainingSequence], budget: int) -> list[list[int]]:
    """Split sequences into micro-batches of similar length; returns indices of sequences.

    Groups are never torn, and a group that is over the budget is a micro-batch of its own.

    Args:
        sequences: Of any number of groups.
        budget: Padded tokens that a micro-batch may have, prefixes included.
    """
    sized = []
    for members in _by_group(sequences).values():
        shared = _shared_length(sequences, members)
        longest = max(len(sequences[i].tokens) for i in members) - shared
        sized.append((longest, shared, members))
    sized.sort(key=lambda item: (-item[0], -item[1], item[2][0]))
    batches: list[list[int]] = []
    groups = suffix = prefix = 0
    for longest, shared, members in sized:
        suffix, prefix, groups = max(suffix, longest), max(prefix, shared), groups + 1
        count = len(batches[-1]) + len(members) if batches else 0
        if batches and count * suffix + groups * prefix <= budget:
            batches[-1] += members
        else:
            batches.append(list(members))
            suffix, prefix, groups = longest, shared, 1
    return batches


def _by_group(sequences: Sequence[TrainingSequence]) -> dict[int, list[int]]:
    """Indices of the sequences of each group."""
    groups: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        groups.setdefault(sequence.group, []).append(i)
    return groups


def _shared_length(sequences: Sequence[TrainingSequence], members: Sequence[int]) -> int:
    """Number of first tokens that several sequences share; 0 for a lone one."""
    return common_prefix([sequences[i].tokens for i in members]) if len(members) > 1 else 0
