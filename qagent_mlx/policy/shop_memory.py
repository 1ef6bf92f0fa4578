"""A shop's memory as its policies read it: counted in their tokens, summarised by their models."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import QAgentError
from ..memory.interest_graph import graph
from ..memory.profile import SECTIONS, Memory, count_words
from ..memory.ranker import MemoryRanker
from ..memory.summarizer import Summarizer
from ..memory.types import CountTokens, Moment
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
        made: list[int] = []
        for token, _ in generate_step(mx.array(ids), policy.model, max_tokens=32):
            if int(token) in policy.codec.eos_ids:
                break
            made.append(int(token))
            if "\n" in policy.codec.decode(made).strip():
                break
        return policy.codec.decode(made)

    return Summarizer(write, fingerprint(folder), shop.path / SUMMARIES)


def inspect_memory(
    shop: Shop,
    user: str,
    as_of: datetime | None = None,
    count: CountTokens | None = None,
    summarizer: str | None = None,
    memory: Memory | None = None,
) -> dict[str, Any]:
    """A user's profile and interest graph at a moment.

    Args:
        shop: Read only is enough.
        user: An id; somebody unknown has the memory of a new user.
        as_of: Nothing at or after it is seen; by default the moment after the log.
        count: Counts tokens; `token_counter` by default.
        summarizer: A model folder or policy that writes the identity line; off by default.
        memory: One that is open, in place of a new one with ``count`` and ``summarizer``.

    Returns:
        user, as_of, events (before the moment), tokens, raw_tokens (of the log itself),
        text, sections (name -> texts of its lines), graph.
    """

    moment = Moment(user, as_of or shop.end_of_log())
    if memory is None:
        memory = Memory(
            shop.connection,
            shop.config.memory,
            count or token_counter(shop),
            MemoryRanker.of_shop(shop),
            open_summarizer(shop, summarizer) if summarizer else None,
        )
    profile = memory.profiles([moment])[0]
    sections: dict[str, list[str]] = {name: [] for name in SECTIONS}
    for line in profile.lines:
        sections[line.section].append(line.text)
    row = shop.connection.execute(
        "SELECT count(*) FROM events WHERE user_id = ? AND ts < ?", [user, moment.as_of]
    ).fetchone()
    return {
        "user": user,
        "as_of": moment.as_of.isoformat(),
        "events": row[0] if row else 0,
        "tokens": profile.tokens,
        "raw_tokens": memory.raw_tokens(moment),
        "text": profile.text,
        "sections": sections,
        "graph": graph(memory, moment),
    }
