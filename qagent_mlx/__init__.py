"""qagent-mlx: query recommendation by a search agent that learns from what it retrieves.

An open implementation of QueryAgent-R1 (arXiv:2606.05671) on MLX-LM, DuckDB and usearch.

Importing the package loads nothing and changes nothing in the process. Call `configure` first,
before numpy and MLX are imported, for a fast BLAS and settings that suit a CPU:

    import qagent_mlx as qa

    qa.configure()
    shop = qa.sample_shop("shop")
    qa.recommend(shop, ["u0001"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import QAgentError
from .shop.hooks import Hooks, name_hooks

__version__ = "0.1.0"

# public name -> the module that defines it; imported when the name is first used.
_MODULES = {
    "configure": "qagent_mlx.utils.runtime",
    "Shop": "qagent_mlx.shop.shop",
    "Policy": "qagent_mlx.policy.policy",
    "sample_shop": "qagent_mlx.build",
    "ingest": "qagent_mlx.ingest",
    "build": "qagent_mlx.build",
    "inspect_memory": "qagent_mlx.policy.shop_memory",
    "search_products": "qagent_mlx.inventory.product_search",
    "recommend": "qagent_mlx.agent.recommend",
    "pretrain": "qagent_mlx.train.pretrain",
    "train_sft": "qagent_mlx.train.sft",
    "train_grpo": "qagent_mlx.train.grpo_run",
    "open_run": "qagent_mlx.runs.reader",
    "policies": "qagent_mlx.policy.versions",
    "promote": "qagent_mlx.policy.versions",
    "rollback": "qagent_mlx.policy.versions",
    "evaluate_policies": "qagent_mlx.evaluate.suite",
    "abtest": "qagent_mlx.evaluate.abtest",
}

_CALLABLE_MODULES = ("ingest", "build")  # modules that are functions, too

__all__ = ["QAgentError", "__version__", *_MODULES]

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from .agent.recommend import recommend
    from .build import build, sample_shop
    from .evaluate.abtest import abtest
    from .evaluate.suite import evaluate_policies
    from .ingest.api import ingest
    from .inventory.product_search import search_products
    from .policy.policy import Policy
    from .policy.shop_memory import inspect_memory
    from .policy.versions import policies, promote, rollback
    from .runs.reader import open_run
    from .shop.config import MemoryConfig
    from .shop.hooks import Follower
    from .shop.shop import Shop
    from .train.grpo_run import train_grpo
    from .train.pretrain import pretrain
    from .train.sft import train_sft
    from .utils.runtime import configure


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_MODULES:
        return import_module(_MODULES[name])
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _apply_journal(shop: Shop) -> object:
    from .ingest.journal import apply_journal

    return apply_journal(shop)


def _make_follower(connection: DuckDBPyConnection, config: MemoryConfig) -> Follower:
    from .memory.follow import Follower

    return Follower(connection, config)


name_hooks(Hooks(_apply_journal, _make_follower))


def __dir__() -> list[str]:
    return sorted(__all__)
