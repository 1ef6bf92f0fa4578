"""Whether the log before a moment, and the catalog, are still what they were."""

from datetime import timedelta

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.log_digest import log_digests


def test_a_digest_is_of_what_came_before_its_moment(own_shop):
    connection = own_shop.connection
    (start, end) = connection.execute("SELECT min(ts), max(ts) FROM events").fetchone()
    moments = [start, start + (end - start) / 2, end, end + timedelta(days=1)]
    before = log_digests(connection, moments)
    assert len(set(before)) == len(moments) and before == log_digests(connection, moments)
    assert log_digests(connection, moments[::-1]) == before[::-1]
    event = {"user_id": "u00", "time": moments[1], "type": "search", "query": "tent"}
    append_events(own_shop, [event])
    after = log_digests(connection, moments)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, False]


def test_a_digest_is_of_the_catalog_and_of_what_else_it_stands_for(own_shop):
    connection = own_shop.connection
    moments = [connection.execute("SELECT max(ts) FROM events").fetchone()[0]]
    found = [log_digests(connection, moments, of) for of in ("", "a", "b")]
    connection.execute("UPDATE products SET title = title || ' x' WHERE product_id = 'p000'")
    found.append(log_digests(connection, moments))
    assert len({digest for (digest,) in found}) == 4
    assert log_digests(connection, []) == []
