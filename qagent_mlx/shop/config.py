"""Settings of a shop, stored in its ``shop.json``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from msgspec import Meta

Weight = Annotated[float, Meta(ge=0, le=1e6)]
# A century at most: what is longer overflows timestamps.
Days = Annotated[float, Meta(gt=0, le=36_500, extra={"unit": "days"})]


@dataclass(frozen=True)
class MemoryConfig:
    """How a user's events become memory. Stored with the shop, so that profiles are repeatable."""

    session_gap_minutes: Annotated[
        float,
        Meta(
            gt=0,
            le=36_500 * 1440,
            description="Pause between two events that starts a new session.",
            extra={"unit": "minutes"},
        ),
    ] = 30.0
    typing_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=60,
            description="A search that goes on as a longer one within this time, and led to "
            "nothing, was half a word: it is dropped as events are stored. 0 keeps all.",
            extra={"unit": "seconds"},
        ),
    ] = 3.0
    half_life_days: Annotated[
        Days, Meta(description="Age at which an event counts half in a user's interests.")
    ] = 14.0
    weight_search: Annotated[Weight, Meta(description="Weight of a search.")] = 1.0
    weight_view: Annotated[Weight, Meta(description="Weight of a product view.")] = 0.3
    weight_click: Annotated[Weight, Meta(description="Weight of a click.")] = 1.0
    weight_cart: Annotated[Weight, Meta(description="Weight of an add to cart.")] = 2.0
    weight_purchase: Annotated[Weight, Meta(description="Weight of a purchase.")] = 4.0
    trend_days: Annotated[Days, Meta(description="Window of the shop's current trends.")] = 2.0
    trend_long_days: Annotated[
        Days, Meta(description="Window that current trends are compared with.")
    ] = 14.0
    budget: Annotated[
        int,
        Meta(ge=0, le=10**6, description="Tokens of a profile, at most.", extra={"unit": "tokens"}),
    ] = 128
    references: Annotated[
        int, Meta(ge=0, le=32, description="Queries of a profile that the agent can refer to.")
    ] = 16
    least_users: Annotated[
        int,
        Meta(ge=1, description="Users who must have searched a query before others may see it."),
    ] = 2
    least_users_unknown: Annotated[
        int,
        Meta(
            ge=1,
            description="The same, at least, for a query that holds a word the catalog lacks, as "
            "names, insults and advertisements do.",
        ),
    ] = 10
    new_user_hours: Annotated[
        float,
        Meta(
            ge=0,
            le=36_500 * 24,
            description="Time from a user's first event in which they are new: new users who "
            "search the same within an hour count as one, for least_users and for trends by users.",
            extra={"unit": "hours"},
        ),
    ] = 24.0
    trends_by: Annotated[
        Literal["searches", "users"],
        Meta(
            description="What trends count: searches, or users, each once a day, so that nobody "
            "makes a trend alone."
        ),
    ] = "users"
    hide_personal: Annotated[
        bool,
        Meta(
            description="Queries that look like mail addresses, phone or card numbers, or that "
            "hold long numbers, reach nobody else."
        ),
    ] = True
    own_only: Annotated[
        bool,
        Meta(
            description="Nobody's queries reach anybody else: profiles hold a user's own queries "
            "alone, and nothing tells how others searched."
        ),
    ] = False
    swing: Annotated[
        Weight,
        Meta(
            description="Weight of pairs of users who share a transition (Swing); 0 turns it off."
        ),
    ] = 0.0


@dataclass(frozen=True)
class SearchConfig:
    """Weights of the rankings that hybrid search fuses, and how deep it looks into each."""

    weight_lexical: Annotated[Weight, Meta(description="Fusion weight of the BM25 ranking.")] = 1.0
    weight_dense: Annotated[Weight, Meta(description="Fusion weight of the vector ranking.")] = 0.3
    weight_clicks: Annotated[Weight, Meta(description="Fusion weight of the click ranking.")] = 3.0
    weight_shares: Annotated[
        Weight, Meta(description="Weight of a product's share of the query's past clicks.")
    ] = 1.0
    click_half_life_days: Annotated[
        Days, Meta(description="Age at which a past click counts half.")
    ] = 30.0
    rrf_k: Annotated[
        int, Meta(ge=0, le=10**6, description="Constant of reciprocal rank fusion.")
    ] = 60
    pool: Annotated[
        int, Meta(ge=1, le=10**5, description="Candidates that BM25 and vectors each contribute.")
    ] = 50
    dimensions: Annotated[int, Meta(ge=2, le=8192, description="Length of vectors, at most.")] = 128
    similar_clicks: Annotated[
        float,
        Meta(
            ge=0,
            description="Cosine similarity from which a past query's clicks stand in for those of "
            "a query without any; above 1 turns it off.",
        ),
    ] = 0.8
    encoder: Annotated[
        str,
        Meta(
            description="Encoder of the vectors: subword (learned from the shop), a model folder, "
            "or FILE.py:FUNCTION."
        ),
    ] = "subword"
    encoder_instruction: Annotated[
        str, Meta(description="Instruction that encoder and reranker models read before a query.")
    ] = "Given a shop's search query, retrieve the products it asks for"
    reranker: Annotated[
        str | None, Meta(description="Folder of a model that reranks the best hits.")
    ] = None
    rerank_depth: Annotated[
        int, Meta(ge=0, le=10**4, description="Best hits that the reranker reads.")
    ] = 20
    relevance_floor: Annotated[
        bool,
        Meta(
            description="Leave out what vectors alone find and what is less like the query than "
            "what people choose; see inventory/relevance.py."
        ),
    ] = True
    engine: Annotated[
        dict[str, Any] | None,
        Meta(description="The shop's own search engine; see inventory/external_engines.py."),
    ] = None


@dataclass(frozen=True)
class ShopConfig:
    """All settings of a shop."""

    name: Annotated[str, Meta(description="Name of the shop.")] = "shop"
    currency: Annotated[str, Meta(description="Currency sign shown before prices.")] = "$"
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    simulated: Annotated[
        dict[str, Any] | None, Meta(description="Settings of the simulator that made the data.")
    ] = None
    store: Annotated[
        str | None,
        Meta(
            description="Address of the lake that holds the shop's rows, where several machines "
            "share it; see shop/lake.py."
        ),
    ] = None
    data: Annotated[
        str | None,
        Meta(
            description="Where that lake keeps its files, as it said when this shop joined it; "
            "it is not used once it says otherwise."
        ),
    ] = None
    derived_queries: Annotated[
        str | None, Meta(description="How queries were derived, where nobody typed any.")
    ] = None


PLACES = ("store", "data")  # settings that say where a shop is, which each machine knows itself


def outside_lakes(config: ShopConfig) -> ShopConfig:
    """The settings of a shop whose rows are in its file."""
    return replace(config, store=None, data=None)
