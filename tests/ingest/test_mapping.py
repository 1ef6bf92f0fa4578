import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.mapping import (
    FieldPath,
    JoinKey,
    json_path,
    parse_key,
    parse_values,
    resolve_path,
)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", FieldPath("a")),
        ("a.b.c", FieldPath("a", ("b", "c"))),
        ("a[].b", FieldPath("a", (None, "b"))),
        ("a[2].b[]", FieldPath("a", (2, "b", None))),
        ('a."b.c [x]".d', FieldPath("a", ("b.c [x]", "d"))),
        ("x.y", FieldPath("x.y")),
        ("x.y.z", FieldPath("x.y", ("z",))),
        ("x.z", None),
        ("b.c", None),
        ("a..b", None),
        ("a[x]", None),
        ("a[", None),
        ("", None),
    ],
)
def test_a_path_begins_at_the_longest_column(text, path):
    assert resolve_path(text, ["a", "x.y"]) == path


def test_paths_are_json_paths_of_duckdb():
    assert json_path(["a b", 0, "ü'"]) == "'$.\"a b\"[0].\"ü''\"'"
    assert json_path([]) == "'$'"


def test_values_may_hold_anything_but_their_own_signs():
    entries = ["type:view item=view", "query:a=b=c", "user_id:web:anon="]
    assert parse_values(entries, "events") == (
        ("type", "view item", "view"),
        ("query", "a=b", "c"),
        ("user_id", "web:anon", ""),
    )
    assert parse_values(["attributes.colour:rot=red"], "products") == (
        ("attributes.colour", "rot", "red"),
    )


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("type=view", "write it as field:value=meaning"),
        ("type:view", "write it as field:value=meaning"),
        ("type:=view", "write it as field:value=meaning"),
        ("tpe:a=view", "events have no field 'tpe', only user_id"),
        ("type:a=veiw", "'veiw' is no event type; use search, view, click, cart, purchase"),
        ("attributes.x:a=b", "no field"),
    ],
)
def test_values_that_mean_nothing_are_refused(entry, says):
    with pytest.raises(QAgentError, match=says):
        parse_values([entry], "events")


def test_keys_of_joins():
    assert parse_key("query_id") == JoinKey("query_id", "query_id")
    assert parse_key("id=search.id") == JoinKey("id", "search.id")
    with pytest.raises(QAgentError, match="cannot be read"):
        parse_key("=x")
