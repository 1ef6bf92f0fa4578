-- Sessions with their first search that led to an engagement (`join` is JOIN), or with their first
-- search whatever came of it (LEFT JOIN). What comes at $before or later does not count.
WITH log AS (SELECT * FROM events WHERE ts < $before),
engaged AS (
    SELECT search_id, product_id, min(ts) AS ts,
           max(CASE type WHEN 'click' THEN 1 WHEN 'cart' THEN 2 ELSE 3 END) AS level
    FROM log WHERE type IN ('click', 'cart', 'purchase') AND search_id IS NOT NULL
    GROUP BY search_id, product_id),
ranked AS (
    SELECT search_id, list(product_id ORDER BY level DESC, ts, product_id) AS products
    FROM engaged GROUP BY search_id),
started AS (SELECT session_id, any_value(user_id) AS user_id, min(ts) AS start
            FROM log GROUP BY session_id),
first AS (
    SELECT s.session_id, arg_min(s.event_id, (s.ts, s.event_id)) AS event_id
    FROM log s {join} ranked r ON r.search_id = s.event_id
    WHERE s.type = 'search' GROUP BY s.session_id),
earlier AS (
    SELECT st.session_id, count(e.event_id) AS n
    FROM started st LEFT JOIN log e ON e.user_id = st.user_id AND e.ts < st.start
    GROUP BY st.session_id)
SELECT st.user_id, st.start, s.query, s.query_key, coalesce(r.products, []), h.n
FROM first f JOIN started st USING (session_id) JOIN log s ON s.event_id = f.event_id
{join} ranked r ON r.search_id = f.event_id JOIN earlier h ON h.session_id = f.session_id
WHERE st.start >= $after AND h.n >= $history ORDER BY st.start {order}, f.event_id {order} {limit}
