-- Searches of each query by the hour, in the log from event `after_id` on, with the people who
-- searched it, each once a day, and apart from them those who were new: whose first event, as the
-- log came, lay less than `new_hours` before.
WITH fresh AS (FROM events WHERE type = 'search' AND event_id > {after_id}),
past AS (
    SELECT event_id, user_id, ts, type, query_key, min(ts) OVER (
        PARTITION BY user_id ORDER BY event_id ROWS UNBOUNDED PRECEDING) AS since
    FROM events WHERE user_id IN (SELECT user_id FROM fresh)),
searches AS (
    SELECT *, row_number() OVER (
        PARTITION BY user_id, query_key, date_trunc('day', ts) ORDER BY event_id) = 1 AS is_first,
        ts < since + to_seconds({new_hours} * 3600) AS is_new
    FROM past WHERE type = 'search')
SELECT date_trunc('hour', ts) AS hour, query_key, count(*) AS n,
       count(*) FILTER (is_first AND NOT is_new) AS people,
       count(*) FILTER (is_first AND is_new) AS newcomers
FROM searches WHERE event_id > {after_id} GROUP BY ALL
