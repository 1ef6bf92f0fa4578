"""What clients send and receive, as types: they validate requests and describe the API.

`parse` reads a request into one of the types; ``/openapi.json`` (`openapi`) is generated from
the same types.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.exceptions import HTTPException

from ..agent.suggest import Source as SuggestionSource
from ..live.experiments import Kind
from ..live.rules import RuleKind
from ..types import EVENT_TYPES
from ..utils.settings import Natural, Positive, requirement
from ..utils.text import parse_utc

S = TypeVar("S", bound=Struct)

MAX_QUERIES = 100
MAX_DEADLINE_MS = 60_000.0
MAX_PRICE = 1e12

Source = Literal["agent", "top-line", "trending", "interleaved"]
Reason = Literal["", "deadline", "overload", "error", "experiment"]
QueryCount = Annotated[int, Meta(ge=1, le=MAX_QUERIES)]
Milliseconds = Annotated[float, Meta(ge=1, le=MAX_DEADLINE_MS)]
PolicyVersion = Annotated[
    int | None, Meta(description="Number of the policy's version; null where it has none.")
]
Text = Annotated[str, Meta(min_length=1, max_length=500)]
Price = Annotated[float, Meta(ge=0, le=MAX_PRICE)]
Time = Annotated[
    str, Meta(description="UTC unless it has a zone.", extra_json_schema={"format": "date-time"})
]


def _deprecated(name: str) -> Meta:
    """A field's old name, which is still read and written."""
    return Meta(description=f"The old name of {name}.", extra_json_schema={"deprecated": True})


class RecommendBody(Struct, forbid_unknown_fields=True):
    """Body of POST /recommend."""

    old_names: ClassVar[dict[str, str]] = {"user": "user_id"}

    user_id: Annotated[Text, Meta(description="An id; somebody unknown is a new user.")]
    k: Annotated[QueryCount | None, Meta(description="Number of queries.")] = None
    chains: Annotated[
        Positive | None,
        Meta(
            description="The budget: chains of retrieval that are run; by default what the "
            "server was started with, or as many as the policy needs."
        ),
    ] = None
    deadline_ms: Annotated[
        Milliseconds | None, Meta(description="When it cannot be met the response is a fallback.")
    ] = None
    as_of: Annotated[Time | None, Meta(description="Nothing at or after it is used.")] = None


class ProductBody(Struct, forbid_unknown_fields=True):
    """A product, whole or in part: what is left out stays as it is, null clears it."""

    product_id: Annotated[Text, Meta(description="Its id; always needed.")]
    title: Annotated[
        str | UnsetType, Meta(description="Needed for a product that is not in the catalog.")
    ] = UNSET
    brand: str | UnsetType | None = UNSET
    category: Annotated[
        str | list[str] | UnsetType | None,
        Meta(description="A path such as Phones > Cases, or its parts."),
    ] = UNSET
    price: Price | UnsetType | None = UNSET
    stock: Annotated[
        bool | float | UnsetType, Meta(description="Whether it is in stock, or how many are.")
    ] = UNSET
    attributes: Annotated[
        dict[str, Any] | UnsetType | None, Meta(description="All of them, by name.")
    ] = UNSET
    time: Annotated[
        Time | UnsetType, Meta(description="From when on this holds; by default from now.")
    ] = UNSET


class ProductsBody(Struct):
    """Several products in one request."""

    products: Annotated[list[ProductBody], Meta(min_length=1)]


class EventBody(Struct, forbid_unknown_fields=True):
    """One event. An event that lacks something is rejected, with the reason in the response."""

    user_id: Annotated[str | None, Meta(description="Who did it; always needed.")] = None
    type: Annotated[
        str | None, Meta(description=f"One of {', '.join(EVENT_TYPES)}; always needed.")
    ] = None
    query: Annotated[str | None, Meta(description="What was typed; needed for a search.")] = None
    product_id: Annotated[str | None, Meta(description="Needed for everything but a search.")] = (
        None
    )
    time: Annotated[Time | None, Meta(description="When it happened; by default now.")] = None
    recommendation_id: Annotated[
        Annotated[str, Meta(min_length=1, max_length=100)] | None,
        Meta(description="The answer of /recommend that it came of."),
    ] = None
    position: Annotated[
        Positive | None, Meta(description="Place of the query in that answer, from 1 on.")
    ] = None


class EventsBody(Struct):
    """Several events in one request."""

    events: Annotated[list[EventBody], Meta(min_length=1)]


class PolicyReply(Struct):
    """The policy that recommends from now on."""

    policy: str
    version: PolicyVersion


class PolicyBody(Struct, forbid_unknown_fields=True):
    """The name of a policy of the shop."""

    policy: Annotated[str, Meta(min_length=1, max_length=100)]


class SearchParameters(Struct, forbid_unknown_fields=True):
    """Query parameters of GET /search."""

    old_names: ClassVar[dict[str, str]] = {"q": "query"}

    query: Annotated[Text, Meta(description="What to search for.")]
    k: QueryCount = 10
    in_stock: bool = False
    min_price: Price | None = None
    max_price: Price | None = None
    category: str | None = None


class MemoryParameters(Struct, forbid_unknown_fields=True):
    """Query parameters of GET /users/{user_id}/memory."""

    as_of: Time | None = None


class ProductTitle(Struct):
    """A product by its id and title."""

    product_id: str
    title: str


class RecommendedQuery(Struct):
    """A query worth showing, with what it retrieves."""

    query: str
    score: Annotated[
        float, Meta(description="Share of the chains that agree; 0 for what fills up the row.")
    ]
    chance: Annotated[
        float | None,
        Meta(
            description="Chance that the user's next search that leads to something is this very "
            "query, as the policy learned it on earlier cases; null where it has not, for new "
            "users, and for queries that the shop pins."
        ),
    ]
    products: list[ProductTitle]
    reason: str
    votes: Natural


class RecommendReply(Struct):
    """Recommendations to a user: the agent's, or a fallback that is marked as one."""

    recommendation_id: Annotated[
        str | None,
        Meta(
            description="Name it in events that come of this answer; null where it is not "
            "recorded, as with as_of and by servers that are read only."
        ),
    ]
    user_id: str
    user: Annotated[str, _deprecated("user_id")]
    as_of: str | None
    recommendations: list[RecommendedQuery]
    source: Annotated[
        Source,
        Meta(
            description="interleaved: two systems share the answer, for an experiment; "
            "top-line: the user's memory without a chain; trending: what the shop "
            "searches for now."
        ),
    ]
    fallback: bool
    reason: Annotated[
        Reason, Meta(description="Why it is a fallback; experiment: the arm shows memory's lines.")
    ]
    policy: str
    version: PolicyVersion
    chains: Natural
    cached: bool
    thought_before: Annotated[
        bool, Meta(description="The answer was computed before it was asked for.")
    ]
    age_seconds: Annotated[
        float, Meta(description="How long ago an answer was computed that was known already.")
    ]
    latency_ms: float


class FoundProduct(Struct):
    """A product that a search found."""

    product_id: str
    title: str
    score: float
    price: float | None
    in_stock: bool
    brand: str | None


class SearchReply(Struct):
    """Products for a query, the best first."""

    query: str
    results: list[FoundProduct]


class MemoryReply(Struct):
    """What is remembered of a user."""

    user_id: str
    user: Annotated[str, _deprecated("user_id")]
    as_of: str
    events: Natural
    tokens: Natural
    raw_tokens: Natural
    text: str
    sections: dict[str, list[str]]
    graph: dict[str, Any]
    wishes: Annotated[list[dict[str, Any]], Meta(description="What the user wants no more.")]


class SuggestBody(Struct, forbid_unknown_fields=True):
    """Body of POST /suggest."""

    prefix: Annotated[str, Meta(max_length=200, description="What was typed so far.")]
    user_id: Annotated[Text | None, Meta(description="Whose queries come first.")] = None
    k: Annotated[QueryCount, Meta(description="Number of completions, at most.")] = 8


class SuggestedQuery(Struct):
    """A completion."""

    query: str
    source: Annotated[
        SuggestionSource,
        Meta(
            description="own: the user searched it; memory: expected of the user; policy: "
            "recommended last; shop: many searched it; catalog: a category or brand."
        ),
    ]


class SuggestReply(Struct):
    """Completions of what was typed, the likeliest first."""

    prefix: str
    suggestions: list[SuggestedQuery]
    latency_ms: float


class RuleBody(Struct, forbid_unknown_fields=True):
    """A rule of the merchant."""

    kind: RuleKind
    text: Annotated[str, Meta(min_length=1, max_length=300)] | None = None
    product_id: Text | None = None
    category: Text | None = None
    position: Annotated[int, Meta(ge=1, le=MAX_QUERIES)] | None = None
    starts: Annotated[Time | None, Meta(description="From when on; by default now.")] = None
    ends: Annotated[Time | None, Meta(description="Before when; by default never.")] = None
    author: Annotated[
        Annotated[str, Meta(min_length=1, max_length=100)],
        Meta(description="Who makes it, for the history."),
    ] = "api"


class RulesBody(Struct):
    """Several rules in one request."""

    rules: Annotated[list[RuleBody], Meta(min_length=1)]


class RulesParameters(Struct, forbid_unknown_fields=True):
    """Query parameters of GET /rules."""

    everything: Annotated[bool, Meta(description="Also those that were withdrawn.")] = False


class RulesReply(Struct):
    """Rules of the merchant, the oldest first."""

    rules: list[dict[str, Any]]


class WithdrawParameters(Struct, forbid_unknown_fields=True):
    """Query parameters of DELETE /rules/{rule_id}."""

    author: Annotated[str, Meta(min_length=1, max_length=100)] = "api"


class ExperimentBody(Struct, forbid_unknown_fields=True):
    """Two systems to compare: agent, memory, or a policy of the shop."""

    name: Text
    control: Text = "memory"
    treatment: Text = "agent"
    share: Annotated[
        Annotated[float, Meta(gt=0, lt=1)],
        Meta(description="Share of the users who get the treatment."),
    ] = 0.5
    kind: Annotated[
        Kind, Meta(description="split: each user gets one system; interleave: both share answers.")
    ] = "split"


class ExperimentReply(Struct):
    """An experiment."""

    experiment: dict[str, Any]


class ExperimentsReply(Struct):
    """The experiments of a shop, the oldest first."""

    experiments: list[dict[str, Any]]


class ExperimentReportReply(Struct):
    """What an experiment has shown, as ``qagent experiment report --json`` says it."""

    report: dict[str, Any]


class WishBody(Struct, forbid_unknown_fields=True):
    """What a user wants no more: a query, a category, or a query of an answer."""

    query: Text | None = None
    category: Text | None = None
    recommendation_id: Text | None = None
    position: Annotated[Positive | None, Meta(description="In that answer, from 1 on.")] = None
    forget: Annotated[
        bool, Meta(description="Also delete the user's own events of it, for good.")
    ] = False


class WishReply(Struct):
    """A wish that is honoured from now on."""

    user_id: str
    wish: dict[str, Any]
    events: Annotated[Natural, Meta(description="Events of the user that were deleted.")]


class WishesReply(Struct):
    """What a user wants no more."""

    user_id: str
    wishes: list[dict[str, Any]]


class RemovalReply(Struct):
    """A product that is in the catalog no longer."""

    product_id: str


class ErasureReply(Struct):
    """How much was erased, and the policies that saw the user before."""

    user_id: str
    events: Natural
    impressions: Natural
    recommendations: Natural
    rejects: Natural
    wishes: Natural
    cases: Annotated[dict[str, int], Meta(description="By run.")]
    rollouts: Annotated[dict[str, int], Meta(description="By run.")]
    summaries: Natural
    queries: Annotated[Natural, Meta(description="That nobody else had typed.")]
    files: Annotated[dict[str, int], Meta(description="Erased rows of other tables, by file.")]
    remains: Annotated[
        list[str], Meta(description="Files that still hold traces or got what was exported.")
    ]
    policies: list[dict[str, Any]]


class ExportReply(Struct):
    """Everything that is stored about a user."""

    user_id: str
    events: list[dict[str, Any]]
    impressions: list[dict[str, Any]]
    recommendations: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    wishes: list[dict[str, Any]]
    memory: dict[str, Any] | None
    stored: dict[str, Any] | None
    cases: dict[str, list[dict[str, Any]]]
    rollouts: dict[str, list[dict[str, Any]]]
    summaries: list[dict[str, Any]]
    policies: list[dict[str, Any]]


class HealthReply(Struct):
    """Whether the server answers."""

    status: Literal["ok", "failed"]
    policy: str
    version: PolicyVersion
    problem: Annotated[
        str,
        Meta(
            description="Why nothing can be stored, why the search is the one from before, or why "
            "a policy was not taken up that was promoted or saved anew."
        ),
    ]
    waiting: Natural
    read_only: bool


class ErrorReply(Struct):
    """Why a request was refused."""

    error: str
    request_id: str


def parse(kind: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Read JSON values or query parameters into a type. Numbers may be given as text.

    A field may be given by its old name (``old_names`` of the type).

    Raises:
        HTTPException: 422, names the first field that is unknown or has a wrong value.
    """
    names = kind.__struct_fields__
    old_names = {name: old for old, name in getattr(kind, "old_names", {}).items() if old in values}
    values = dict(values)
    for name, old in old_names.items():
        value = values.pop(old)
        if values.setdefault(name, value) != value:
            raise HTTPException(422, f"{where}{name} and its old name {old} say different things")
    unknown = (
        sorted(set(values) - set(names)) if kind.__struct_config__.forbid_unknown_fields else []
    )
    if unknown:
        known = ", ".join(names)
        raise HTTPException(422, f"{where}unknown field {unknown[0][:40]!r}; known are {known}")
    for name, value in values.items():
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            # JSON's escapes can make half characters, which nothing can store.
            text = f"{where}{old_names.get(name, name)} must be text of whole characters"
            raise HTTPException(422, text)
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        name, must = requirement(str(error))
        raise HTTPException(422, f"{where}{old_names.get(name, name)} {must}") from None


def parse_time(text: str | None, name: str) -> datetime | None:
    """A naive UTC datetime of ISO 8601; a time without a zone is UTC.

    Raises:
        HTTPException: 422, it is no such time.
    """
    if text is None:
        return None
    try:
        return parse_utc(text)
    except (ValueError, OverflowError):
        raise HTTPException(422, f"{name} must be a time such as 2026-03-01T12:00:00Z") from None
