"""Settings of a shop."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import QAgentError


@dataclass(frozen=True)
class MemoryConfig:
    """How events become memory. Saved with the shop, so that a profile can be made again."""

    session_gap_minutes: float = 30.0
    half_life_days: float = 14.0
    weight_search: float = 1.0
    weight_view: float = 0.3
    weight_click: float = 1.0
    weight_cart: float = 2.0
    weight_purchase: float = 4.0
    trend_days: float = 2.0
    trend_long_days: float = 14.0
    budget: int = 128
    references: int = 16
    least_users: int = 1  # who must have searched a query before others may see it
    swing: float = 0.0  # how much pairs of users who made the same step add to its count


@dataclass(frozen=True)
class SearchConfig:
    """Weights of the rankings that hybrid search fuses, and their pool sizes."""

    weight_lexical: float = 1.0
    weight_dense: float = 0.3
    weight_clicks: float = 3.0  # of their ranks
    weight_shares: float = 1.0  # of their shares
    click_half_life_days: float = 30.0
    rrf_k: int = 60
    pool: int = 50
    dimensions: int = 128
    similar_clicks: float = 0.8  # clicks of queries at least so similar stand in; above 1: none
    encoder: str = "subword"  # or a model folder, or FILE.py:FUNCTION; see inventory/encoders.py
    encoder_instruction: str = "Given a shop's search query, retrieve the products it asks for"
    reranker: str | None = None  # a model folder; see inventory/rerank.py
    rerank_depth: int = 20  # how many of the best hits it reads
    engine: dict[str, Any] | None = None  # the shop's own search; see inventory/engines.py


@dataclass(frozen=True)
class ShopConfig:
    """All settings of a shop, as saved in ``shop.shop.json``."""

    name: str = "shop"
    currency: str = "$"
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    simulated: dict[str, Any] | None = None  # the simulator's settings, for simulated shops
    derived_queries: str | None = None  # how queries were made, where the log had none


def from_dict(cls: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass from a dict, with unknown keys and wrong types refused by name."""
    if not isinstance(values, dict):
        raise QAgentError(f"{where} must be an object, not {type(values).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(name[:40] for name in set(values) - set(known))[:5]
    if unknown:
        raise QAgentError(
            f"{where}: unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    default, hints = cls(), typing.get_type_hints(cls)
    made = {}
    for name, value in values.items():
        now = getattr(default, name)
        hint = hints[name]
        allowed = [typing.get_origin(a) or a for a in typing.get_args(hint) or (hint,)]
        if now is not None:
            allowed = [float, int] if isinstance(now, float) else [type(now)]
        if isinstance(now, tuple):
            allowed.append(list)
        # A bool is an int to Python, and to nobody else.
        fits = isinstance(value, tuple(allowed)) and (
            not isinstance(value, bool) or bool in allowed
        )
        if not fits:
            wanted = " or ".join(
                "null" if a is type(None) else a.__name__ for a in allowed if a is not list
            )
            raise QAgentError(f"{where}: {name} must be {wanted}, not {type(value).__name__}")
        if isinstance(now, float):
            try:
                value = float(value)
            except OverflowError:
                raise QAgentError(f"{where}: {name} is too large a number") from None
        if isinstance(now, tuple) and isinstance(value, list):
            value = tuple(value)
        made[name] = value
    return replace(default, **made)


def config_from_dict(values: dict[str, Any], where: str) -> ShopConfig:
    """A `ShopConfig` from the JSON in ``shop.shop.json``."""
    values = dict(values)
    memory = from_dict(MemoryConfig, values.pop("memory", {}), f"{where}: memory")
    search = from_dict(SearchConfig, values.pop("search", {}), f"{where}: search")
    made: ShopConfig = from_dict(ShopConfig, values, where)
    return replace(made, memory=memory, search=search)
