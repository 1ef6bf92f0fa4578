-- The moment at which each of $keys had been searched by $least_users people. Who was new then
-- (less than $new_hours since the first event) counts as one with all others who were new and
-- searched it within an hour of each other.
WITH searched AS (
    SELECT query_key, user_id, min(ts) AS asked FROM events
    WHERE type = 'search' AND query_key IN (SELECT unnest($keys)) GROUP BY ALL),
began AS (
    SELECT user_id, min(ts) AS since FROM events
    WHERE $new_hours > 0 AND user_id IN (SELECT user_id FROM searched) GROUP BY ALL),
voices AS (
    SELECT query_key, asked, coalesce(asked < since + to_seconds($new_hours * 3600), false) AS is_new
    FROM searched LEFT JOIN began USING (user_id)),
counted AS (
    SELECT query_key, asked FROM voices WHERE NOT is_new
    UNION ALL
    SELECT query_key, asked FROM voices WHERE is_new QUALIFY coalesce(
        asked - lag(asked) OVER (PARTITION BY query_key ORDER BY asked) > INTERVAL 1 HOUR, true))
SELECT query_key, list_sort(list(asked))[$least_users] AS public_since
FROM counted GROUP BY query_key
