-- Who has searched a query, of the queries that {which} selects: when first, and since when the
-- person has been known.
SELECT query_key, asked, since FROM (
    SELECT query_key, user_id, min(ts) AS asked FROM events
    WHERE type = 'search' AND {which} GROUP BY ALL)
JOIN (
    SELECT user_id, min(ts) AS since FROM events WHERE user_id IN (
        SELECT user_id FROM events WHERE type = 'search' AND {which}) GROUP BY ALL) USING (user_id)
