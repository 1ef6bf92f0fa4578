from __future__ import annotations

from datetime import datetime

import pytest
from starlette.exceptions import HTTPException

from qagent_mlx.serve.schema import (
    EventBody,
    PolicyBody,
    RecommendBody,
    SearchParameters,
    parse,
    parse_time,
)


def test_numbers_and_switches_may_be_text_as_in_a_query():
    parameters = parse(SearchParameters, {"q": "tent", "k": "3", "in_stock": "True"})
    assert (parameters.k, parameters.in_stock, parameters.max_price) == (3, True, None)
    assert parse(RecommendBody, {"user": "u", "k": 3.0, "as_of": None}).k == 3


def test_text_stays_text():
    event = parse(EventBody, {"user_id": "null", "query": "true", "product_id": "7"})
    assert (event.user_id, event.query, event.product_id, event.type) == ("null", "true", "7", None)


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (RecommendBody, {}, "user_id must be given"),
        (RecommendBody, {"user": "u", "K": 3}, "unknown field 'K'; known are user_id, k, chains, "),
        (RecommendBody, {"user": "u", "k": 101}, "k must be a whole number of at most 100"),
        (RecommendBody, {"user": "u", "k": True}, "k must be a whole number or nothing"),
        (RecommendBody, {"user": "u", "deadline_ms": float("nan")}, "deadline_ms must be a number"),
        (RecommendBody, {"user": "u", "deadline_ms": 10**400}, "deadline_ms cannot be used: "),
        (SearchParameters, {"q": "x" * 501}, "q must be text of at most 500 characters"),
        (SearchParameters, {"query": "x" * 501}, "query must be text of at most 500 characters"),
        (SearchParameters, {"query": "x", "q": "y"}, "query and its old name q say different"),
        (SearchParameters, {"q": "x", "in_stock": "maybe"}, "in_stock must be true or false"),
        (EventBody, {"user_id": 7}, "user_id must be text or nothing"),
        (EventBody, {"query": "\ud800"}, "query must be text of whole characters"),
        (PolicyBody, {"\ud800": 1}, "unknown field '\\ud800'; known are policy"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(kind, values, text):
    with pytest.raises(HTTPException) as refused:
        parse(kind, values, "event 2: ")
    assert refused.value.status_code == 422
    assert refused.value.detail.startswith(f"event 2: {text}")


def test_a_time_is_utc_unless_it_has_a_zone():
    assert parse_time("2026-03-01", "time") == datetime(2026, 3, 1)
    assert parse_time("2026-03-01T12:00+02:00", "time") == datetime(2026, 3, 1, 10)
    assert parse_time(None, "time") is None
    with pytest.raises(HTTPException, match="time must be a time such as"):
        parse_time("yesterday", "time")
