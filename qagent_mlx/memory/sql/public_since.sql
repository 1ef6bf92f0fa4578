-- The moment at which each of $keys had been searched by as many people as $needed says beside it.
-- Who was new then (less than $new_hours since the first event) counts as one with all others who
-- were new and searched it within an hour of each other.
WITH wanted AS (SELECT unnest($keys) AS query_key, unnest($needed) AS needed),
heard AS (
    SELECT query_key, asked, asked < since + to_seconds($new_hours * 3600) AS is_new FROM {voices}),
counted AS (
    SELECT query_key, asked FROM heard WHERE NOT is_new
    UNION ALL
    SELECT query_key, asked FROM heard WHERE is_new QUALIFY coalesce(
        asked - lag(asked) OVER (PARTITION BY query_key ORDER BY asked) > INTERVAL 1 HOUR, true))
SELECT query_key, list_sort(list(asked))[any_value(needed)] AS public_since
FROM counted JOIN wanted USING (query_key) GROUP BY query_key
