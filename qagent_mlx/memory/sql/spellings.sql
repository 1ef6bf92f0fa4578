-- How each query was first typed, in the log from event `after_id` on.
SELECT query_key, arg_min(query, (ts, event_id)) AS query, min(ts) AS ts,
       arg_min(event_id, (ts, event_id)) AS event_id
FROM events WHERE type = 'search' AND event_id > {after_id} GROUP BY query_key
