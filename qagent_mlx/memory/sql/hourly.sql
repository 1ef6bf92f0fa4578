-- Searches of each query by the hour, in the log from event `after_id` on.
SELECT date_trunc('hour', ts) AS hour, query_key, count(*) AS n
FROM events WHERE type = 'search' AND event_id > {after_id} GROUP BY ALL
