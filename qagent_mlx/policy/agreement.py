"""Whether a model is scored as mlx-lm scores it, tried on a few tokens when it is loaded.

Sampling and training score with the same code of this package, so an error that they share shows
in no ratio and in no test of a policy against itself. The model's own forward pass is the judge.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import QAgentError
from ..models.composition import FAILURES, PROBE, attempt, describe, difference, run_whole
from ..models.row_decoder import serves_rows
from . import scoring
from .batches import TrainingSequence
from .lora import LoraConfig
from .policy import Policy

OTHER = "choose another model: qagent models list"


def check_agreement(policy: Policy, folder: Path) -> None:
    """Compare the policy's scores of a few tokens with those of the model itself.

    Raises:
        QAgentError: the model does not run, its weights give no numbers, or it scores tokens
            otherwise when they come one after another.
    """
    tokens = mx.array([PROBE[0]])
    own = attempt(lambda: run_whole(policy.model, tokens))
    if isinstance(own, str):
        raise QAgentError(f"{folder}: the model does not run on this machine ({own}); {OTHER}")
    if not bool(mx.isfinite(own).all()):
        raise QAgentError(
            f"{folder}: the model's logits are no numbers; its weights are damaged, or too large "
            "for its precision: pull it again, or set dtype to float32"
        )
    ours = attempt(lambda: policy.logits(tokens))
    off = float("inf") if isinstance(ours, str) else difference(ours, own)
    if not off <= policy.tolerance:
        raise QAgentError(
            f"{folder}: tokens would be scored otherwise than mlx-lm scores them (by {off:.3f} "
            f"nats); {OTHER}, and report this with the model's name"
        )
    if not policy.decodes_batches and not serves_rows(
        policy.model, policy.logits, policy.tolerance
    ):
        raise QAgentError(
            f"{folder}: mlx-lm scores tokens otherwise when they come one after another than all "
            f"at once, so what is sampled could not be trained; {OTHER}"
        )


def make_trainable(policy: Policy, lora: LoraConfig) -> None:
    """Put a new adapter on a policy, and take the gradient of a few tokens' likelihood by it.

    Raises:
        QAgentError: the model takes no adapter, or the gradient cannot be computed or is zero.
    """
    try:
        policy.add_lora(lora)
    except FAILURES as error:
        raise _untrainable(policy, describe(error)) from error
    if policy.by_blocks:  # whose gradients are this package's own, and have tests
        return
    trained = [False, *(True for _ in PROBE[0][1:])]
    sequences = [TrainingSequence(list(row), trained, 0) for row in PROBE]
    batches = scoring.prepare(policy, sequences, token_budget=len(PROBE) * len(PROBE[0]))

    def largest() -> mx.array:
        result = scoring.gradient(policy, batches, lambda _, scores: (-scores.logprobs.mean(), {}))
        gradient = dict(tree_flatten(result.total))
        return mx.stack([mx.abs(value).max() for value in gradient.values()]).max()

    value = attempt(largest)
    if isinstance(value, str):
        raise _untrainable(policy, value)
    if not bool(mx.isfinite(value)) or float(value) == 0.0:
        raise _untrainable(policy, f"its gradient is {float(value)}")


def _untrainable(policy: Policy, reason: str) -> QAgentError:
    kind = type(policy.model).__module__.rpartition(".")[2]
    return QAgentError(
        f"models of the kind {kind} act but cannot be trained here ({reason}); train another "
        "model: qagent models list"
    )
