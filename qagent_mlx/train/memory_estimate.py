"""How much memory a GRPO run will need, estimated before its first step.

An estimate from shapes, not a measurement: the larger of what decoding holds (keys and values
of all chains) and what one micro-batch of the update holds (activations for the backward pass,
attention weights, logits of trained positions), on top of weights and optimizer. The factors
were fitted to MLX's peak on a CPU (`tests/benchmarks/footprint.py` compares the two).
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx.utils import tree_flatten

from ..errors import QAgentError
from ..models import trained_block
from ..models.cpu_kernels import HEAD_BLOCK
from ..policy.policy import Policy
from ..protocol.config import AgentConfig
from ..utils.runtime import total_memory
from .config import AlarmConfig
from .grpo_config import GrpoConfig

DECODED_TOGETHER = 256  # chains, at most (RolloutRunner)
# What a block keeps for its backward pass, in tensors of the hidden width, of the feed-forward
# width, and of attention weights; and tensors of the logits' size.
KEPT_HIDDEN, KEPT_INNER, KEPT_SCORES, KEPT_LOGITS = 14, 6, 3, 6
# The same where `transformer_blocks` recomputes attention (see `recomputes`): norms, queries,
# sums, outputs; gate, up and their product; keys and values before and after their rotation.
RECOMPUTED_HIDDEN, RECOMPUTED_INNER, RECOMPUTED_KEYS = 8, 3, 4
ATTENTION = 12  # tensors of one block's attention weights while its gradient is computed
ACTIVATIONS = 96 << 20  # bytes that one micro-batch may keep on a CPU


@dataclass(frozen=True, slots=True)
class _Shape:
    """Widths of a model."""

    hidden: int
    inner: int
    heads: int
    keys: int
    vocabulary: int


def chain_tokens(policy: Policy, agent: AgentConfig) -> tuple[int, int]:
    """Tokens of a long chain, and how many of them the policy writes itself."""
    result_tokens = agent.title_words + 8  # number, marks and price beside the title
    results = agent.results_shown * result_tokens * 2 if agent.search else 2
    written = 4 * (agent.max_searches + 2)
    profile = agent.profile_budget if agent.memory else 4
    return len(policy.prompt) + profile + agent.max_searches * results + written, written


def grpo_bytes(policy: Policy, config: GrpoConfig) -> int:
    """Estimated peak bytes of a GRPO run."""
    parameters = dict(tree_flatten(policy.model.parameters()))
    weights = sum(v.nbytes for v in parameters.values())
    item_size = next(iter(parameters.values())).dtype.size
    # Gradient, its accumulator, two moments, and the weights that an update replaces.
    trained = 5 * sum(v.nbytes for v in policy.adapter().values())
    shape, layers = _shape(policy), len(policy.layers)
    length, written = chain_tokens(policy, policy.info.agent)

    chains = min(DECODED_TOGETHER, config.cases_per_step * config.group)
    # Four times: batches that chains join, leave or wait beside are copies.
    cache = 4 * chains * length * layers * 2 * shape.keys * item_size
    decoding = cache + 2 * chains * shape.vocabulary * 4

    tokens = max(micro_batch_tokens(policy, config.token_budget), config.group * length)
    logits = tokens * written // length * shape.vocabulary
    if recomputes(policy):
        scores = min(
            shape.heads * length, trained_block.most_probabilities(shape.hidden, shape.inner)
        )
        blocks = max(1, layers - policy.first_trained)
        kept = tokens * (kept_bytes(policy) + blocks * scores * 4)
        kept += tokens * ATTENTION * shape.heads * length * 4
        # The head works on a block of logits at a time.
        updating = kept + 3 * min(logits, HEAD_BLOCK) * 4
    else:
        block = KEPT_HIDDEN * shape.hidden + KEPT_INNER * shape.inner
        block += KEPT_SCORES * shape.heads * length
        updating = tokens * layers * block * item_size + logits * 4 * KEPT_LOGITS
    return int(weights + trained + max(decoding, updating))


def recomputes(policy: Policy) -> bool:
    """Whether an update keeps as little as it can: `transformer_blocks` on a CPU."""
    return policy.by_blocks and policy.frozen_head() is not None


def kept_bytes(policy: Policy) -> int:
    """Bytes that an update which `recomputes` keeps of each token for its backward pass."""
    shape = _shape(policy)
    block = RECOMPUTED_HIDDEN * shape.hidden + RECOMPUTED_INNER * shape.inner
    block += RECOMPUTED_KEYS * shape.keys
    return 4 * block * max(1, len(policy.layers) - policy.first_trained)


def micro_batch_tokens(policy: Policy, budget: int) -> int:
    """Padded tokens of one micro-batch: the budget, or on a CPU what `ACTIVATIONS` allows.

    A CPU gains nothing from larger products than those of a thousand tokens or so, and an
    update's memory is what a run needs most. A GPU wants its batches large.
    """
    return min(budget, ACTIVATIONS // kept_bytes(policy)) if recomputes(policy) else budget


def _shape(policy: Policy) -> _Shape:
    """Widths of a model, from its own settings where it has them, else from its weights."""
    language = getattr(policy.model, "language_model", policy.model)
    settings = getattr(language, "args", None)
    matrices = [
        value.shape
        for name, value in dict(tree_flatten(policy.model.parameters())).items()
        if "embed" in name and value.ndim == 2
    ]
    vocabulary, width = max(matrices, default=(0, 0), key=lambda shape: shape[0])

    def setting(name: str, default: int) -> int:
        value = getattr(settings, name, None)
        return value if isinstance(value, int) and value > 0 else default

    hidden = setting("hidden_size", width)
    heads = setting("num_attention_heads", max(1, hidden // 64))
    return _Shape(
        hidden=hidden,
        inner=setting("intermediate_size", 4 * hidden),
        heads=heads,
        keys=setting("num_key_value_heads", heads) * setting("head_dim", hidden // heads),
        vocabulary=setting("vocab_size", vocabulary),
    )


def check_memory(estimate: int, config: AlarmConfig, available: int | None = None) -> str:
    """A warning when a run will not fit into memory; empty when it will.

    Args:
        estimate: Of `grpo_bytes`.
        config: ``memory`` says whether to stop, warn or keep quiet.
        available: Bytes that this process may use; asked of the system by default.

    Raises:
        QAgentError: it will not fit and the alarm stops the run.
    """
    limit = (total_memory() if available is None else available) * config.memory_share
    if config.memory == "off" or estimate <= limit:
        return ""
    reason = (
        f"the run needs about {estimate / 2**30:.1f} GiB, and {limit / 2**30:.1f} GiB may be "
        "used; lower token_budget, cases_per_step or group"
    )
    if config.memory == "stop":
        raise QAgentError(f"{reason}, or go on all the same with the alarm memory=warn")
    return reason
