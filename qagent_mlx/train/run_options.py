"""What a recorded training may be given beside its settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..environment.config import SplitConfig
from ..environment.environment import Environment
from ..policy.lora import LoraConfig
from ..policy.policy import Policy
from ..policy.registry import derive
from ..protocol.config import AgentConfig
from ..shop.shop import Shop


@dataclass(frozen=True)
class RunOptions:
    """What a recorded training may be given beside its settings.

    Attributes:
        run: Name of the run; the policy's (with a number when that is taken) by default.
        agent: How chains run; as the parent policy's by default.
        environment: Cases that are at hand already; made from the shop by default.
        about: What else to keep in the run's config, such as a preset's name.
    """

    run: str | None = None
    agent: AgentConfig | None = None
    environment: Environment | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def derive_policy(
        self, shop: Shop, parent: str, name: str, lora: LoraConfig, seed: int
    ) -> Policy:
        """A new policy on top of its parent."""
        policy = derive(shop, parent, name, lora, seed)
        policy.info = replace(policy.info, agent=self.agent or policy.info.agent)
        return policy

    def open_environment(
        self, shop: Shop, policy: Policy, split: SplitConfig | None
    ) -> Environment:
        """The cases of the shop, as the policy reads them."""
        return self.environment or Environment.shared(
            shop, lambda: Environment.of_shop(shop, policy.codec, policy.info.agent, split)
        )
