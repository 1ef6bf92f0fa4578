"""Settings of an agent's chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from ..utils.settings import check
from .actions import MAX_SEARCHES

SECTIONS = ("latest", "graph", "identity", "neighbours", "trending")  # of a profile


@dataclass(frozen=True)
class AgentConfig:
    """How a policy's chains run. Saved with the policy, which was trained that way."""

    profile_budget: Annotated[
        int,
        Meta(ge=1, le=10**6, description="Longest profile of a user.", extra={"unit": "tokens"}),
    ] = 128
    sections: Annotated[tuple[str, ...], Meta(description="Sections that a profile may hold.")] = (
        SECTIONS
    )
    max_searches: Annotated[
        int, Meta(ge=1, le=MAX_SEARCHES, description="Most searches of a chain.")
    ] = 4
    results_shown: Annotated[
        int, Meta(ge=0, le=1000, description="Products that a search shows to the agent.")
    ] = 2
    title_words: Annotated[
        int, Meta(ge=1, le=1000, description="Words of a product's title that the agent sees.")
    ] = 4
    turn_tokens: Annotated[
        int,
        Meta(ge=1, le=10**5, description="Longest action of the agent.", extra={"unit": "tokens"}),
    ] = 24
    memory: Annotated[
        bool, Meta(description="The agent reads a profile; without it every profile is empty.")
    ] = True
    search: Annotated[
        bool, Meta(description="Searches return products; without it they return nothing.")
    ] = True
    marks: Annotated[bool, Meta(description="Results say how they fit the user.")] = True
    writes: Annotated[
        bool,
        Meta(
            description="The agent learns to write queries of its own beside pointing at lines of "
            "memory; a policy that was pretrained on the shop writes words that it has read."
        ),
    ] = False
    guided: Annotated[
        bool, Meta(description="A served chat model can only write actions that are allowed.")
    ] = True

    def check(self) -> None:
        """Validate the settings.

        Raises:
            SettingError: names the first setting that has a value it cannot have.
        """
        check(self)
