"""The memory ranker without an agent: what a policy has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from ...environment.environment import Example
from ...utils.text import query_key
from ..metrics import Ranking


class MemoryRankerBaseline:
    """The queries of the user's profile, in the order of its lines."""

    name = "top-line"

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        rankings = []
        for example in examples:
            distinct: dict[str, str] = {}
            for query in example.profile.references:
                distinct.setdefault(query_key(query), query)
            rankings.append(Ranking(tuple(distinct.values())[:k]))
        return rankings
