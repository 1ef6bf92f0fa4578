"""A shop's memory as its policies read it: counted in their tokens, summarised by their models."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from ..errors import QAgentError
from ..live.wishes import wishes_of
from ..memory.inspect import MemoryView, memory_view
from ..memory.profile import Memory, count_words
from ..memory.ranker import MemoryRanker
from ..memory.summarizer import Summarizer
from ..memory.types import CountTokens, Moment
from ..shop.shop import Shop
from ..utils.text import clean_id

if TYPE_CHECKING:
    from .policy import Policy

SUMMARIES = "summaries"  # the shop's folder of lines that a summarizer wrote


def token_counter(shop: Shop) -> CountTokens:
    """Count tokens as the shop's first policy does; by words where no policy can be read."""
    from ..protocol.codec import load_codec
    from .registry import SAMPLE, policy_names, resolve

    for name in [*policy_names(shop), SAMPLE]:
        try:
            folder = resolve(shop, name)
            if (folder / "tokenizer.json").exists():
                return load_codec(folder).count
        except QAgentError:
            continue
    return count_words


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
        written: list[int] = []
        for token, _ in generate_step(mx.array(ids), policy.model, max_tokens=32):
            if int(token) in policy.codec.eos_ids:
                break
            written.append(int(token))
            if "\n" in policy.codec.decode(written).strip():
                break
        return policy.codec.decode(written)

    return Summarizer(write, fingerprint(folder), shop.path / SUMMARIES)


def inspect_memory(
    shop: Shop,
    user: str,
    as_of: datetime | None = None,
    count: CountTokens | None = None,
    summarizer: str | None = None,
    memory: Memory | None = None,
) -> MemoryView:
    """A user's profile and interest graph at a moment.

    Args:
        shop: Read only is enough.
        user: An id; somebody unknown has the memory of a new user.
        as_of: Nothing at or after it is seen; by default the moment after the log.
        count: Counts tokens; `token_counter` by default.
        summarizer: A model folder or policy that writes the identity line; off by default.
        memory: One that is open, in place of a new one with ``count`` and ``summarizer``.
    """
    if memory is None:
        memory = Memory(
            shop.connection,
            shop.config.memory,
            count or token_counter(shop),
            MemoryRanker.of_shop(shop),
            open_summarizer(shop, summarizer) if summarizer else None,
        )
    user = clean_id(user)
    view = memory_view(memory, Moment(user, as_of or shop.end_of_log()))
    wishes = [wish.to_dict() for wish in wishes_of(shop, [user])]
    return msgspec.structs.replace(view, wishes=wishes)
