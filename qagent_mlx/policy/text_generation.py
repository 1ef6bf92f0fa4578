"""Write and count text with a policy outside of the agent's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import QAgentError
from ..memory.profile import CountTokens, words_cost
from ..memory.summarizer import Summarizer
from ..shop.shop import Shop

if TYPE_CHECKING:
    from .policy import Policy

SUMMARIES = "summaries"  # the folder of lines that a summarizer wrote


def token_counter(shop: Shop) -> CountTokens:
    """Counts tokens as the shop's first policy does; by words where no policy can be read."""
    from ..protocol.codec import load_codec
    from .registry import SAMPLE, policy_names, resolve

    for name in [*policy_names(shop), SAMPLE]:
        try:
            folder = resolve(shop, name)
            if (folder / "tokenizer.json").exists():
                return load_codec(folder).count
        except QAgentError:
            continue
    return words_cost


def open_summarizer(shop: Shop, name: str) -> Summarizer:
    """A model that writes identity lines, greedily; its lines are kept in the shop's folder.

    Raises:
        QAgentError: there is no such model, or it cannot be loaded.
    """
    from ..models.fingerprint import fingerprint
    from .files import load_policy
    from .registry import resolve

    folder = resolve(shop, name)
    loaded: list[Policy] = []

    def write(prompt: str) -> str:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        if not loaded:  # only when no line is kept
            loaded.append(load_policy(folder))
        policy = loaded[0]
        ids = policy.codec.encode(prompt)
        made: list[int] = []
        for token, _ in generate_step(mx.array(ids), policy.model, max_tokens=32):
            if int(token) in policy.codec.eos_ids:
                break
            made.append(int(token))
            if "\n" in policy.codec.decode(made).strip():
                break
        return policy.codec.decode(made)

    return Summarizer(write, fingerprint(folder), shop.path / SUMMARIES)
