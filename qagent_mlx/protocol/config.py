"""Settings of an agent's chains."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import QAgentError
from .actions import MAX_SEARCHES


@dataclass(frozen=True)
class AgentConfig:
    """How a policy's chains run. Saved with the policy, as it was trained that way."""

    profile_budget: int = 128
    sections: tuple[str, ...] = ("latest", "graph", "identity", "neighbours", "trending")
    max_searches: int = 4
    results_shown: int = 2
    title_words: int = 4
    turn_tokens: int = 24
    memory: bool = True  # off: the profile is empty (ablation)
    search: bool = True  # off: searches return nothing (ablation)
    marks: bool = True  # off: results do not say how they fit this user
    guided: bool = True  # off: a served chat model may write what is no action, and fail

    def check(self) -> None:
        """Refuse chains that cannot run.

        Raises:
            QAgentError: names the setting and what it may be.
        """
        if not 1 <= self.max_searches <= MAX_SEARCHES:
            raise QAgentError(f"agent: max_searches must be from 1 to {MAX_SEARCHES}")
        for name in ("profile_budget", "title_words", "turn_tokens"):
            if getattr(self, name) < 1:
                raise QAgentError(f"agent: {name} must be at least 1")
        if self.results_shown < 0:
            raise QAgentError("agent: results_shown must be a number from 0 on")
