"""What a policy may write in a shop: words that its chain has read, and those of the catalog."""

from __future__ import annotations

from ..inventory.catalog import Catalog
from ..policy.policy import Policy
from ..protocol.codec import ShopCodec
from ..protocol.config import AgentConfig
from ..protocol.query_automaton import QueryAutomaton, ReadableWords


def query_automaton(policy: Policy, agent: AgentConfig, catalog: Catalog) -> QueryAutomaton | None:
    """The queries that a policy may write; None where nothing but pointing was trained.

    Ready-made chat models write freely: guided decoding keeps their format (`protocol.grammar`).
    """
    if not (agent.writes and isinstance(policy.codec, ShopCodec)):
        return None
    return QueryAutomaton(policy.codec, ReadableWords(catalog.words), agent.turn_tokens)
