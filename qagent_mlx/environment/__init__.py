"""What a policy learns in and is measured in.

- A *case* is a moment of the log at which a query could have been recommended, together with
  what the user then did: the query and the products engaged with (`cases`). Cases are split by
  time into train, validation and test.
- An *example* is a case and the profile that the agent reads in it; an `Environment` holds
  examples and the search as it was at each of their moments (`environment`).
- An *episode* is one chain of retrieval for an example, from prompt to recommended query; it
  ends as a `Rollout` (`agent.episode`, run by `Environment.rollout_runner`).
- An *outcome* puts a rollout beside what the user then did (`Environment.outcome`).
- A *reward component* scores an outcome in [0, 1]; the reward is a weighted mean of the
  components (`rewards`, with those from users' files in `custom_rewards`).

`evaluate_policy` measures a policy on examples; `files` stores an environment in a run's folder.
NDCG is that of `inventory.ir_metrics`.

`ShopEnvironment` (`shop_environment`) offers all of that to other trainers, in text and without
MLX: ``reset(case)`` and ``step(action)``, as `text_environment` defines them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .shop_environment import ShopEnvironment
    from .text_environment import Step, TextEnvironment

__all__ = ["ShopEnvironment", "Step", "TextEnvironment"]
_MODULES = {"ShopEnvironment": "shop_environment"}


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when it is first used: the command line's help needs none of it
        return getattr(import_module(f".{_MODULES.get(name, 'text_environment')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
