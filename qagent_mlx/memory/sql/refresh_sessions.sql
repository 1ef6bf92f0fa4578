-- Numbers the sessions of `users` and ties their events to searches.
UPDATE events SET session_id = n.session_id, search_id = n.search_id FROM (
    WITH marked AS (
        SELECT event_id, user_id, ts, type, query_key,
               CASE WHEN ts - lag(ts) OVER w <= {gap} THEN NULL ELSE event_id END AS first
        FROM events WHERE user_id IN ({users})
        WINDOW w AS (PARTITION BY user_id ORDER BY ts, event_id)),
    numbered AS (
        SELECT *, last_value(first IGNORE NULLS) OVER (
            PARTITION BY user_id ORDER BY ts, event_id) AS session_id FROM marked),
    tied AS (
        SELECT *, CASE WHEN type = 'search' THEN event_id END AS own FROM numbered)
    SELECT event_id, session_id, CASE
        WHEN query_key IS NULL THEN last_value(own IGNORE NULLS) OVER (
            PARTITION BY user_id, session_id ORDER BY ts, event_id)
        ELSE last_value(own IGNORE NULLS) OVER (
            PARTITION BY user_id, session_id, query_key ORDER BY ts, event_id)
        END AS search_id
    FROM tied) n
WHERE events.event_id = n.event_id
  AND (events.session_id IS DISTINCT FROM n.session_id
       OR events.search_id IS DISTINCT FROM n.search_id)
