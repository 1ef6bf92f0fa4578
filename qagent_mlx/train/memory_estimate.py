"""How much memory a GRPO run will need, told before its first step.

An estimate from shapes, not a measurement: the larger of what decoding holds (keys and values
of all rows) and what one micro-batch of the update holds (activations for the backward pass,
attention weights, logits of trained positions), on top of weights and optimizer. The factors
were fitted to MLX's peak on a CPU (`tests/benchmarks/footprint.py` compares the two).
"""

from __future__ import annotations

from typing import Protocol

from mlx.utils import tree_flatten

from ..errors import QAgentError
from ..models.cpu_kernels import HEAD_BLOCK
from ..policy.policy import Policy
from ..protocol.config import AgentConfig
from ..utils.runtime import device_name, total_memory
from .monitors import AlarmConfig

ROWS = 256  # chains that decode together at most (RolloutRunner)
KEPT_HIDDEN = 14  # tensors of the hidden width that a block keeps for its backward pass
KEPT_INNER = 6  # and of the feed-forward width
KEPT_SCORES = 3  # and of attention weights
KEPT_LOGITS = 6  # tensors of the logits' size
# What `blocks` keeps on a CPU, where it computes attention again: norms, queries, sums, outputs;
# gate, up and their product; keys and values before and after their rotation.
SPARING_HIDDEN, SPARING_INNER, SPARING_KEYS = 8, 3, 4
ATTENTION = 12  # tensors of one block's attention weights while its gradient is computed
ACTIVATIONS = 96 << 20  # bytes that one micro-batch may keep on a CPU


class Sizes(Protocol):
    """What of a `GrpoConfig` takes memory."""

    @property
    def cases_per_step(self) -> int: ...  # noqa: D102
    @property
    def group(self) -> int: ...  # noqa: D102
    @property
    def token_budget(self) -> int: ...  # noqa: D102


def chain_tokens(policy: Policy, agent: AgentConfig) -> tuple[int, int]:
    """Tokens of a long chain, and how many of them the policy writes itself."""
    words = agent.title_words + 8  # a result's number, marks and price beside its title
    results = agent.results_shown * words * 2 if agent.search else 2
    own = 4 * (agent.max_searches + 2)
    profile = agent.profile_budget if agent.memory else 4
    return len(policy.prompt) + profile + agent.max_searches * results + own, own


def grpo_bytes(policy: Policy, sizes: Sizes) -> int:
    """Estimated peak bytes of a GRPO run."""
    parameters = dict(tree_flatten(policy.model.parameters()))
    weights = sum(v.nbytes for v in parameters.values())
    width = next(iter(parameters.values())).dtype.size
    # Gradient, its accumulator, two moments, and the weights that an update replaces.
    trained = 5 * sum(v.nbytes for v in policy.adapter().values())
    shape = _shape(policy)
    layers, hidden, inner = len(policy.layers), shape["hidden"], shape["inner"]
    length, own = chain_tokens(policy, policy.info.agent)

    rows = min(ROWS, sizes.cases_per_step * sizes.group)
    # Four times: batches that rows join, leave or wait beside are copies.
    cache = 4 * rows * length * layers * 2 * shape["keys"] * width
    logits = 2 * rows * shape["vocabulary"] * 4
    decoding = cache + logits

    tokens = max(micro_tokens(policy, sizes.token_budget), sizes.group * length)
    positions = tokens * own // length
    if sparing(policy):
        kept = tokens * (kept_bytes(policy) + ATTENTION * shape["heads"] * length * 4)
        # The head works on a block of logits at a time.
        heads = 3 * min(positions * shape["vocabulary"], HEAD_BLOCK) * 4
        return int(weights + trained + max(decoding, kept + heads))
    block = KEPT_HIDDEN * hidden + KEPT_INNER * inner + KEPT_SCORES * shape["heads"] * length
    updating = tokens * layers * block * width + positions * shape["vocabulary"] * 4 * KEPT_LOGITS
    return int(weights + trained + max(decoding, updating))


def sparing(policy: Policy) -> bool:
    """Whether an update of this policy keeps no more than it must (`blocks.run` on a CPU)."""
    return policy.by_blocks and device_name() == "cpu" and policy.head_weight() is not None


def kept_bytes(policy: Policy) -> int:
    """Bytes that a `sparing` update keeps of each token from its forward to its backward pass."""
    shape = _shape(policy)
    block = SPARING_HIDDEN * shape["hidden"] + SPARING_INNER * shape["inner"]
    block += SPARING_KEYS * shape["keys"]
    return 4 * block * max(1, len(policy.layers) - policy.first_trained)


def micro_tokens(policy: Policy, budget: int) -> int:
    """Padded tokens of one micro-batch: the budget, or on a CPU what `ACTIVATIONS` allows.

    A CPU gains nothing from larger products than those of a thousand rows or so, and an
    update's memory is what a run needs most of. A GPU wants its batches large.
    """
    return min(budget, ACTIVATIONS // kept_bytes(policy)) if sparing(policy) else budget


def _shape(policy: Policy) -> dict[str, int]:
    """Widths of a model, from its own settings where it has them, else from its weights."""
    language = getattr(policy.model, "language_model", policy.model)
    settings = getattr(language, "args", None)
    parameters = dict(tree_flatten(policy.model.parameters()))
    embedding = max(
        (v.shape for k, v in parameters.items() if "embed" in k and v.ndim == 2),
        default=(0, 0),
        key=lambda shape: shape[0],
    )

    def one(name: str, otherwise: int) -> int:
        value = getattr(settings, name, None)
        return value if isinstance(value, int) and value > 0 else otherwise

    hidden = one("hidden_size", embedding[1])
    heads = one("num_attention_heads", max(1, hidden // 64))
    each = one("head_dim", hidden // heads)
    return {
        "hidden": hidden,
        "inner": one("intermediate_size", 4 * hidden),
        "heads": heads,
        "keys": one("num_key_value_heads", heads) * each,
        "vocabulary": one("vocab_size", embedding[0]),
    }


def check_memory(estimate: int, config: AlarmConfig, available: int | None = None) -> str:
    """What to say when a run will not fit; empty when it will.

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
        "used; lower --token-budget, --cases-per-step or --group"
    )
    if config.memory == "stop":
        raise QAgentError(f"{reason}, or go on with --alarm memory=warn")
    return reason
